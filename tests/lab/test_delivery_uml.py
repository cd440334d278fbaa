"""Files into guests of a real libvirt and out again, by each way that leads there."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.lab.agent import LabAgent
from tests.lab.host import CHECKOUT, venv_directory
from tests.lab.uml import UmlLab, qemu_image
from tests.lab.uml.debian import DebianGuest
from tests.lab.uml.guests import Guest, QemuGuest
from tests.lab.unpacked import program

UNIT = "[Service]\nType=oneshot\nExecStart=/usr/bin/touch /run/delivered\n"
ENABLED = "etc/systemd/system/multi-user.target.wants/delivered.service"
FILES: list[dict[str, Any]] = [
    {"path": "etc/systemd/system/delivered.service", "text": UNIT},
    {"path": ENABLED, "target": "/etc/systemd/system/delivered.service"},
    {"path": "etc/hostname.d/$(touch canary)/it's", "text": "'\"`%s\\n$(touch canary)\n"},
    {"path": "etc/hosts", "text": "192.0.2.1 delivered\n", "block": 1},
    {"path": "etc/issue", "text": "another\n", "mode": 0o600},
]
# All that is below /etc and where the manifest lies: rights, owners, links, contents.
TREE = (
    "cd {root}; find etc usr/local var/lib/xenlb \\( -path etc/mtab -o -path etc/resolv.conf \\) "
    "-prune -o -printf '%p %M %U:%G %l\\n' 2>/dev/null | sort; "
    "find etc usr/local -type f -exec sha256sum {{}} + | sort"
)


def deliver(guest: Guest, delivery: str, files: list[dict[str, Any]]) -> dict[str, Any]:
    lab = guest.lab
    lab.write("/run/lab/wanted.json", json.dumps(files))
    python = str(venv_directory() / "bin/python")
    words = [python, "-m", "tests.lab.deliver", guest.uri, guest.uuid, guest.name, delivery]
    script = 'cd "$1"; shift; exec "$@" </run/lab/wanted.json'
    command = ["sh", "-c", script, "sh", str(CHECKOUT), *words, guest.address]
    answer: dict[str, Any] = json.loads(lab.run(command, timeout=300).out)
    print(json.dumps(answer, indent=1))
    return answer


def tree(guest: DebianGuest) -> str:
    return guest.lab.out(TREE.format(root=guest.root))


@pytest.fixture(scope="module")
def guest(uml: UmlLab) -> DebianGuest:
    uml.start_libvirtd()
    return uml.define_debian_guest("deb1", "10.0.0.51", network="networkd", ssh=True)


def test_a_container_that_is_off_by_its_files(guest: DebianGuest) -> None:
    before = tree(guest)
    answer = deliver(guest, "rootfs", FILES)
    assert answer["again"] == answer["notes"] == []
    guest.start()
    guest.wait_serving()
    try:
        assert "delivered" in guest.run("cat /etc/hosts").out
        guest.lab.wait_until(
            lambda: guest.run("test -e /run/delivered", check=False).rc == 0, 30, "the unit to run"
        )
        refused = deliver(guest, "rootfs", [])
        message = "deb1 is running; its files can be changed from the host only"
        assert refused["error"].startswith(message)
        assert "shut it down first" in refused["hint"]
    finally:
        guest.destroy()
    deliver(guest, "rootfs", [])
    assert tree(guest) == before
    assert (
        guest.lab.out(f"find {guest.root} -xdev -name canary; ls / {CHECKOUT} | grep canary; :")
        == ""
    )


def test_a_guest_that_runs_by_ssh(guest: DebianGuest) -> None:
    guest.start()
    guest.wait_serving()
    try:
        before = tree(guest)
        answer = deliver(guest, "ssh", FILES)
        assert answer["again"] == answer["notes"] == []
        assert "delivered" in guest.run("cat /etc/hosts").out
        assert guest.run("cat /etc/issue; stat -c %a /etc/issue").out.split() == ["another", "600"]
        assert guest.run("systemctl is-enabled delivered").out.strip() == "enabled"
        # Another guest is said to have that address: nothing of it gets into this one.
        other = guest.lab.define_qemu_guest("other", guest.address, mac="52:54:00:00:99:99")
        hosts = guest.run("cat /etc/hosts").out
        answer = deliver(other, "ssh", [{"path": "etc/hosts", "text": "of the other\n"}])
        assert answer["error"].startswith(f"the machine at {guest.address} is not other (it has ")
        assert guest.run("cat /etc/hosts").out == hosts
        other.virsh("undefine", "other")
    finally:
        guest.destroy()
    deliver(guest, "rootfs", [])  # what was brought in by one way goes out by another
    assert tree(guest) == before


SLOW = 180.0  # seconds; the guest's processor is emulated
AGENT_CONFIG = """
libvirt: {uris: ["lxc:///system", "qemu:///system"]}
director: {interface: front0}
services:
  web:
    address: 192.0.2.10
    ports: [80]
    check: none
    forwarding: masquerade
    servers: [{guest: q1}, {guest: deb1}]
"""


def lies_by_its_guest_agent(uml: UmlLab, liar: QemuGuest, victim: DebianGuest) -> None:
    """A guest that says by its agent that it has another's address does not get it."""
    victim.start()
    victim.wait_serving()
    agent = LabAgent(uml, AGENT_CONFIG)
    agent.start()
    try:
        agent.wait_serving("deb1", "q1", timeout=SLOW)
        # The neighbour entry is permanent: which guest answers ARP does not matter.
        mac = victim.run("cat /sys/class/net/eth0/address").out.strip()
        entry = [victim.address, "dev", "br0"]
        uml.run(["ip", "neigh", "replace", *entry, "lladdr", mac, "nud", "permanent"])
        liar.run(f"ip addr add {victim.address}/32 dev eth0")

        def refused() -> bool:
            found = agent.why("q1")["refused_addresses"]
            reasons = {each["address"]: each["reason"] for each in found}
            return reasons.get(victim.address) == "it belongs to guest deb1"

        uml.wait_until(refused, SLOW, "the lie to be heard and refused", every=1)
        warnings = [
            event["text"]
            for event in agent.events()
            if (event["kind"], event["level"], event["guest"]) == ("address", "warning", "deb1")
        ]
        assert any(victim.address in text and "q1" in text for text in warnings), warnings
        servers = agent.servers("web")
        assert servers["deb1"]["address"] == victim.address
        assert servers["deb1"]["phase"] == servers["q1"]["phase"] == "serving"
        assert servers["q1"]["address"] == liar.address
        liar.run(f"ip addr del {victim.address}/32 dev eth0")
        uml.run(["ip", "neigh", "del", *entry])
    finally:
        agent.stop()
        uml.run("ipvsadm -C; rm -f /run/xenlb/state.json")
        victim.destroy()


def test_a_guest_that_runs_by_its_guest_agent(uml: UmlLab, guest: DebianGuest) -> None:
    """Through libvirt, in a guest that has busybox and nothing else."""
    agent = qemu_image.Program(
        name="qemu-ga", path=program("qemu-guest-agent", "/usr/sbin/qemu-ga")
    )
    machine = uml.define_qemu_guest("q1", "10.0.0.41", programs=[agent])
    assert deliver(machine, "agent", FILES)["error"] == "q1 is not running"
    machine.start()
    machine.wait_serving(SLOW)
    listing = "cd /; find etc var usr/local 2>/dev/null | sort; cat etc/hosts etc/issue; "
    listing += "stat -c '%n %a %u' etc/*"
    machine.run("mkdir -p /etc/issue.d; printf before >/etc/issue; printf '#!x' >/etc/hosts")
    before = machine.run(listing, check=False).out
    answer = deliver(machine, "agent", FILES)
    assert answer["again"] == answer["notes"] == []
    expected = "#!x\n# BEGIN xenlb\n192.0.2.1 delivered\n# END xenlb"
    assert machine.run("cat /etc/hosts").out.strip() == expected
    assert machine.run("stat -c %a /etc/issue; cat /etc/issue").out.split() == ["600", "another"]
    assert deliver(machine, "agent", [])["again"] == []
    assert machine.run(listing, check=False).out == before
    assert machine.run("ls / /tmp").out.count("canary") == 0
    lies_by_its_guest_agent(uml, machine, guest)
    machine.run("killall qemu-ga")
    assert "is not connected" in deliver(machine, "agent", FILES)["error"]
    machine.destroy()
