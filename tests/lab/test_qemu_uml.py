"""A QEMU guest as the agent sees it: the request by QMP, the reboot inside its domain."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.agent import LabAgent
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
