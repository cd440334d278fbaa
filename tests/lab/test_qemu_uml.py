"""A QEMU guest as the agent sees it: requests by QMP, its hold, a save, a reboot in its domain."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.agent import LabAgent
from tests.lab.debian import guest_shell
from tests.lab.uml import UmlLab
from tests.lab.uml.guests import QemuGuest

CONFIG = """
libvirt: {uris: ["qemu:///system"]}
director: {interface: front0}
defaults: {drain: {shutdown-grace: 20s}}
services:
  web:
    address: 192.0.2.10
    ports: [80]
    forwarding: masquerade
    servers: [{guest: "q*", address: 10.0.0.41}]
"""
SLOW = 180.0  # seconds; the guest's processor is emulated


@pytest.fixture(scope="module")
def guest(uml: UmlLab) -> QemuGuest:
    uml.start_libvirtd()
    return uml.define_qemu_guest("q1", "10.0.0.41", stop_delay=5)


@pytest.fixture(scope="module")
def agent(uml: UmlLab, guest: QemuGuest) -> Iterator[LabAgent]:
    agent = LabAgent(uml, CONFIG)
    agent.start()
    yield agent
    agent.stop()


def test_asked_by_the_power_button_rebooted_and_gone(agent: LabAgent, guest: QemuGuest) -> None:
    guest.start()
    starting = agent.wait_server("q1", lambda s: s["phase"] == "starting", SLOW)
    assert not starting["in_table"]
    agent.wait_serving("q1", timeout=SLOW)
    guest.wait_serving(SLOW)
    domain = agent.why("q1")["domain_id"]

    guest.reboot()
    asked = agent.wait_server("q1", lambda s: s["phase"] == "draining", SLOW)
    assert (asked["in_table"], asked["weight"]) == (True, 0)
    agent.wait_serving("q1", timeout=SLOW)
    assert agent.why("q1")["domain_id"] == domain

    guest.wait_serving(SLOW)
    guest.shutdown()
    asked = agent.wait_server("q1", lambda s: s["phase"] == "draining", SLOW)
    assert (asked["in_table"], asked["weight"]) == (True, 0)
    assert "powerdown" in asked["reason"]
    agent.wait_server("q1", lambda s: s["phase"] == "absent" and not s["in_table"], SLOW)
    guest.wait_gone(SLOW)
    text = "\n".join(line["text"] for line in agent.events())
    print(f"\n{text}")
    assert text.index("asked for powerdown") < text.index("-w 0") < text.index("ipvsadm -d")


def test_a_hold(agent: LabAgent, guest: QemuGuest) -> None:
    """As it is rendered, in the guest; heard by the virtio port it opens."""
    if not guest.alive():
        guest.start()
    agent.wait_serving("q1", timeout=SLOW)
    guest.wait_serving(SLOW)
    folder = "/run/lab/hold-q1"
    agent.xenlb("guest", "render", "q1", "--output", folder)
    for name in ("etc/xenlb-hold.conf", "usr/local/lib/xenlb/hold.sh"):
        guest.run(guest_shell.write(f"/{name}", guest.lab.read(f"{folder}/{name}"), mode=0o700))

    said = guest.run("sh /usr/local/lib/xenlb/hold.sh stop").out
    assert "waiting until none is left" in said
    assert "could not be notified" not in said
    held = agent.wait_server("q1", lambda s: s["weight"] == 0, SLOW)
    assert held["reason"].startswith("shuts down from inside")
    said = guest.run("sh /usr/local/lib/xenlb/hold.sh start").out
    assert "the host is notified (virtio)" in said
    agent.wait_serving("q1", timeout=SLOW)


# Takes a migration, and its time.
DESTINATION = """
import socket, time
listening = socket.create_server(("127.0.0.1", 7999))
kept = listening.accept()
time.sleep(600)
"""


def test_a_migration_that_is_given_up(agent: LabAgent, guest: QemuGuest) -> None:
    """Out of service from its beginning, while the guest still runs here; and back."""
    agent.wait_serving("q1", timeout=SLOW)
    destination = guest.lab.spawn(["/usr/bin/python3", "-c", DESTINATION])

    def monitor(command: str) -> None:
        guest.virsh("qemu-monitor-command", "q1", "--hmp", command)

    monitor("migrate_set_parameter max-bandwidth 4k")
    monitor("migrate -d tcp:127.0.0.1:7999")
    leaving = agent.wait_server("q1", lambda s: s["weight"] == 0, SLOW)
    assert (leaving["phase"], leaving["in_table"]) == ("draining", True)
    assert leaving["reason"].startswith("asked for suspend")
    monitor("migrate_cancel")
    agent.wait_serving("q1", timeout=SLOW)
    assert agent.why("q1")["last_drain"]["end"] == "guest stayed"
    destination.kill()
