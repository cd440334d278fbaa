"""Guests get what they need before they get weight, from the agent by ssh or while they are off, in
all three methods, with the network of real guests; and `xenlb guest` as an operator types it.

Three guests with other programs for their network, all as bare as an installer leaves them. What is
in their way is broken by hand, named by `verify` and put right by `apply`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.lab.agent import LabAgent
from tests.lab.debian.definition import Init, Network
from tests.lab.netns import NetNs
from tests.lab.uml import UmlLab
from tests.lab.uml.debian import DebianGuest

CONFIG = """
libvirt: {{uris: ["lxc:///"]}}
director: {{interface: front0, sysctls: apply}}
defaults:
  check: {{interval: 1s, timeout: 900ms, fall: 20}}
  guest-side: {{delivery: ssh, on-boot: {on_boot}}}
services:
  direct:
    address: {direct}
    ports: [80]
    forwarding: gatewaying
    servers: [{{guest: in1}}, {in2}]
  tunnel:
    address: 192.0.2.12
    ports: [80]
    forwarding: tunnel
    servers: [{{guest: in1}}, {in2}]
  masked:
    address: 192.0.2.13
    ports: [80]
    server-port: 8080
    forwarding: masquerade
    guest-side: {{return-path: rule}}
    servers:
      - {{guest: in1, address: 10.0.0.161}}
      - {{guest: in2, address: 10.0.0.162, guest-side: {{on-boot: verify}}}}
      - {{guest: in3, address: 10.0.0.163}}
"""
DIRECT, MOVED, TUNNEL, MASKED = "192.0.2.11", "192.0.2.14", "192.0.2.12", "192.0.2.13"
SERVICES = {"direct": DIRECT, "tunnel": TUNNEL, "masked": MASKED}
# The default gateway of in3 is nobody: its replies come back by the rule, or not at all.
SERVED = {"in1": SERVICES, "in2": SERVICES, "in3": {"masked": MASKED}}


# It gets its files while it is off, and is only looked at when it boots.
IN2 = "{guest: in2, address: 10.0.0.62, guest-side: {on-boot: verify}}"


def config(*, direct: str = DIRECT, on_boot: str = "apply") -> str:
    return CONFIG.format(direct=direct, on_boot=on_boot, in2=IN2)


GUESTS: tuple[tuple[str, Network, Init], ...] = (
    ("in1", "ifupdown", "systemd"),
    ("in2", "networkd", "systemd"),
    ("in3", "ifupdown", "sysvinit"),
)


@pytest.fixture(scope="module")
def lab(uml: UmlLab) -> UmlLab:
    uml.start_libvirtd()
    return uml


@pytest.fixture(scope="module")
def guests(lab: UmlLab) -> dict[str, DebianGuest]:
    found = {}
    for number, (name, network, init) in enumerate(GUESTS, 1):
        found[name] = lab.define_debian_guest(
            name,
            f"10.0.0.6{number}",
            addresses=[f"10.0.0.16{number}"],
            gateway="10.0.0.254" if name == "in3" else None,
            services=(80, 8080),
            network=network,
            init=init,
            ssh=True,
        )
    return found


@pytest.fixture(scope="module")
def client(lab: UmlLab) -> NetNs:
    return lab.client("client", "192.0.2.100")


@pytest.fixture(scope="module")
def agent(lab: UmlLab, guests: dict[str, DebianGuest]) -> Iterator[LabAgent]:
    agent = LabAgent(lab, config())
    agent.start()
    yield agent
    agent.stop()


def answers(client: NetNs, *vips: str) -> dict[str, set[str]]:
    """Who answers at each address: three requests, each a new connection."""
    return {vip: {client.fetch(f"{vip}:80") for _ in range(3)} for vip in vips}


@pytest.mark.parametrize("name", [name for name, _, _ in GUESTS])
def test_a_bare_guest_serves_in_all_methods(
    agent: LabAgent, guests: dict[str, DebianGuest], client: NetNs, name: str
) -> None:
    """And again after another boot, by its own files."""
    guest = guests[name]
    off = ("guest", "apply", name, "--delivery", "rootfs")
    if name == "in2":
        assert agent.xenlb(*off).out.endswith("in2 has all that it needs\n")
    guest.start()
    guest.wait_serving()
    for service in SERVED[name]:
        served(agent, name, service)
    everywhere = {vip: {name} for vip in SERVED[name].values()}
    assert answers(client, *everywhere) == everywhere
    if name == "in2":
        refused = agent.xenlb(*off, check=False)
        assert (refused.rc, "in2 is running; its files can be changed" in refused.err) == (1, True)
        # Now that it shows which file networkd takes for eth0, routes go beside that.
        agent.xenlb("guest", "apply", name)
    plan = agent.xenlb("guest", "plan", name, check=False)
    assert (plan.rc, plan.out) == (0, "")
    before = files(guest)
    guest.virsh("destroy", name)
    guest.wait_gone()
    if name == "in1":
        return  # it boots again below; the next one is alone
    guest.start()
    guest.wait_serving(timeout=120)
    for service in SERVED[name]:
        served(agent, name, service)
    assert answers(client, *everywhere) == everywhere
    assert files(guest) == before
    guest.virsh("destroy", name)
    guest.wait_gone()


def served(agent: LabAgent, name: str, service: str) -> None:
    agent.lab.wait_until(
        lambda: agent.servers(service)[name]["weight"] == 1,
        120,
        f"{name} in service {service}: {agent.servers(service)[name]['reason']}",
        every=0.5,
    )


def files(guest: DebianGuest) -> str:
    """Of what a guest is configured by, and when it was written."""
    return guest.lab.out(
        f"cd {guest.root} && find etc usr/local -newer usr/bin/env -type f -printf '%p %T@ %m\\n'"
        " | grep -v -e '^etc/resolv' -e '^etc/network/run' -e adjtime | sort"
    )


# What somebody else has put there is not xenlb's to take away.
FOREIGN = "ip addr del 192.0.2.11/24 dev lo; ip addr del 192.0.2.12/32 dev eth0"
BROKEN = {
    "ip addr del 192.0.2.11/32 dev lo; ip addr add 192.0.2.11/24 dev lo": (
        "192.0.2.11 is on lo with prefix length 24, not 32"
    ),
    "ip addr add 192.0.2.12/32 dev eth0": "192.0.2.12 is on eth0, as well as on",
    "sysctl -qw net.ipv4.conf.all.arp_ignore=0": "arp_ignore",
    "sysctl -qw net.ipv4.conf.tunl0.rp_filter=1": "rp_filter",
    "ip rule del from 10.0.0.161": "packets from 10.0.0.161 are not routed by table 731",
    "ip route del default table 731": "table 731 has no default route",
}


def test_verify_names_each_and_apply_puts_it_right(
    agent: LabAgent, guests: dict[str, DebianGuest], client: NetNs
) -> None:
    guest = guests["in1"]
    guest.start()
    served(agent, "in1", "direct")
    # It would put all of it right by itself, within three seconds.
    guest.run("systemctl kill -s STOP xenlb-guest")
    for command in BROKEN:
        guest.run(command)
    found = agent.xenlb("guest", "verify", "in1", "--json", check=False)
    assert found.rc == 1
    messages = [each["message"] for each in json.loads(found.out)["differences"]]
    for says in BROKEN.values():
        assert [says in message for message in messages].count(True) == 1, (says, messages)
    assert len(messages) == len(BROKEN), messages
    guest.run(FOREIGN)
    assert agent.xenlb("guest", "apply", "in1").out.endswith("in1 has all that it needs\n")
    everywhere = {vip: {"in1"} for vip in SERVICES.values()}
    assert answers(client, *everywhere) == everywhere
    guest.run("(ifdown eth0; ifup eth0) >/dev/null 2>&1 &")
    guest.lab.wait_until(
        lambda: agent.xenlb("guest", "verify", "in1", check=False).rc == 0, 60, "eth0 is back"
    )
    assert answers(client, *everywhere) == everywhere


def test_a_new_service_address_reaches_it_and_the_old_one_goes(
    agent: LabAgent, guests: dict[str, DebianGuest], client: NetNs
) -> None:
    guest = guests["in1"]
    agent.configure(config(direct=MOVED))
    agent.lab.wait_until(
        lambda: MOVED in guest.run("ip addr show dev lo").out, 60, "the new address is there"
    )
    served(agent, "in1", "direct")
    assert answers(client, MOVED) == {MOVED: {"in1"}}
    assert DIRECT not in guest.run("ip addr show dev lo").out


def test_removal_leaves_the_guest_as_it_was(
    agent: LabAgent, guests: dict[str, DebianGuest]
) -> None:
    agent.configure(config(direct=MOVED, on_boot='"off"'))
    guest = guests["in1"]
    removed = agent.xenlb("guest", "remove", "in1")
    assert removed.out.endswith("in1 has nothing of xenlb\n")
    assert guest.lab.out(f"cd {guest.root} && find etc usr/local var/lib -name '*xenlb*'") == ""
    here = guest.run("ip -o addr show; ip rule; ip route show table all").out
    for gone in (MOVED, TUNNEL, "731"):
        assert gone not in here
    conf = "/proc/sys/net/ipv4/conf/all"
    assert guest.run(f"cat {conf}/arp_ignore {conf}/arp_announce").out.split() == ["0", "0"]
    assert agent.xenlb("guest", "remove", "in1").out == "in1 has nothing of xenlb\n"
