"""Guests' states as observe.sh shows them in the User-mode Linux lab: tunnels, which only that
kernel has, broken one at a time; and what Debian guests with systemd and sysvinit show of
themselves."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from tests.lab.debian import guest_shell
from tests.lab.netns import NetNs
from tests.lab.uml import UmlLab
from xenlb.guestside.inspect.observed import Observed
from xenlb.guestside.inspect.parse import output_budget, parse_observed
from xenlb.guestside.inspect.script import observe_script
from xenlb.guestside.inspect.verify import differences
from xenlb.guestside.requirements.compile import ServiceBinding, compile_needs
from xenlb.guestside.requirements.needs import Needs
from xenlb.ipvs.table import Forwarding, Tunnel, TunnelType, family_of
from xenlb.model.guest_side import GuestSide, Init, System
from xenlb.model.settings import Port, ServiceSettings

OWN4, OWN6 = "10.0.0.31", "fd00:10::31"


def tunnelled(vip: str, own: str, tunnel: Tunnel | None = None) -> ServiceBinding:
    service = ServiceSettings(
        name="mail",
        address=ip_address(vip),
        family=family_of(ip_address(vip)),
        ports=(Port(number=25),),
        forwarding=Forwarding.TUNNEL,
        tunnel=tunnel,
    )
    return ServiceBinding(service=service, side=GuestSide(), address=ip_address(own))


NEEDS = compile_needs(
    [
        tunnelled("192.0.2.10", OWN4),
        tunnelled("2001:db8::10", OWN4),
        tunnelled("192.0.2.11", OWN4, Tunnel(type=TunnelType.GRE)),
        tunnelled("192.0.2.12", OWN6),
        tunnelled("192.0.2.13", OWN4, Tunnel(type=TunnelType.GUE, port=6080)),
    ]
)
CLAMP = "-p tcp --tcp-flags SYN,RST SYN -m tcpmss --mss"
GOOD = "\n".join(
    [
        "set -e",
        "modprobe -a ipip sit ip_gre ip6_tunnel fou xt_TCPMSS",
        "for each in all default; do",
        "sysctl -qw net.ipv4.conf.$each.rp_filter=0",
        "done",
        "sysctl -qw net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2",
        f"ip link add xenlb-gre type gre local {OWN4}",
        f"ip link add xenlb-tnl6 type ip6tnl mode any local {OWN6}",
        "for each in tunl0 sit0 xenlb-gre xenlb-tnl6; do ip link set $each up; done",
        "for each in tunl0 xenlb-gre xenlb-tnl6; do",
        "sysctl -qw net.ipv4.conf.$each.rp_filter=0",
        "done",
        "ip fou add port 6080 gue",
        *(
            f"{'ip6tables' if ':' in str(each.address) else 'iptables'}-legacy -t mangle"
            f" -A POSTROUTING -s {each.address} {CLAMP} {each.size + 1}:65535"
            f" -j TCPMSS --set-mss {each.size}"
            for each in NEEDS.clamps
        ),
        *(
            f"ip addr add {each.address}/{each.address.max_prefixlen} dev {each.device}"
            + (" nodad" if each.address.version == 6 else "")
            for each in NEEDS.addresses
        ),
    ]
)

REPLACED = (
    "ip link del xenlb-tnl6; ip link add xenlb-tnl6 type {}; ip link set xenlb-tnl6 up;"
    "sysctl -qw net.ipv4.conf.xenlb-tnl6.rp_filter=0; ip addr add 192.0.2.12/32 dev xenlb-tnl6"
)

# What breaks it, what mends it again, and the beginning of the one sentence.
BROKEN: dict[str, tuple[str, str, str]] = {
    "rp_filter of all": (
        "sysctl -qw net.ipv4.conf.all.rp_filter=1",
        "sysctl -qw net.ipv4.conf.all.rp_filter=0",
        "rp_filter of tunl0 is 1 (all: 1, tunl0: 0), wanted 0: packets from the tunnel",
    ),
    "rp_filter of a device": (
        "sysctl -qw net.ipv4.conf.xenlb-gre.rp_filter=2",
        "sysctl -qw net.ipv4.conf.xenlb-gre.rp_filter=0",
        "rp_filter of xenlb-gre is 2 (all: 0, xenlb-gre: 2), wanted 0",
    ),
    "tunnel down": (
        "ip link set tunl0 down",
        "ip link set tunl0 up",
        "tunl0 is down: packets from the tunnel are dropped",
    ),
    "another end": (
        "ip link set xenlb-gre type gre local 10.0.0.32",
        f"ip link set xenlb-gre type gre local {OWN4}",
        f"xenlb-gre ends tunnels at 10.0.0.32, wanted {OWN4}",
    ),
    "another kind": (
        REPLACED.format(f"sit local {OWN4}"),
        REPLACED.format(f"ip6tnl mode any local {OWN6}"),
        "xenlb-tnl6 is a sit device, wanted ip6tnl",
    ),
    "another mode": (
        REPLACED.format(f"ip6tnl mode ip6ip6 local {OWN6}"),
        REPLACED.format(f"ip6tnl mode any local {OWN6}"),
        "xenlb-tnl6 accepts IPv6 only (mode ip6ip6), wanted mode any",
    ),
    "address on eth0": (
        "ip addr add 192.0.2.10/32 dev eth0",
        "ip addr del 192.0.2.10/32 dev eth0",
        "192.0.2.10 is on eth0, as well as on tunl0: the guest answers ARP for it",
    ),
    "address on lo": (
        "ip addr del 192.0.2.10/32 dev tunl0; ip addr add 192.0.2.10/32 dev lo",
        "ip addr del 192.0.2.10/32 dev lo; ip addr add 192.0.2.10/32 dev tunl0",
        "192.0.2.10 is on lo, not on tunl0",
    ),
    "port of GUE": (
        "ip fou del port 6080",
        "ip fou add port 6080 gue",
        "packets to UDP port 6080 are not unpacked (ip fou add port 6080 gue)",
    ),
    "a clamp missing": (
        "iptables-legacy -t mangle -D POSTROUTING 1",
        f"iptables-legacy -t mangle -I POSTROUTING -s 192.0.2.10 {CLAMP} 1441:65535"
        " -j TCPMSS --set-mss 1440",
        "the maximum segment size of TCP from 192.0.2.10 is not lowered, wanted 1440",
    ),
    "a clamp too large": (
        "iptables-legacy -t mangle -R POSTROUTING 1 -s 192.0.2.10 -p tcp"
        " --tcp-flags SYN,RST SYN -j TCPMSS --set-mss 1460",
        f"iptables-legacy -t mangle -R POSTROUTING 1 -s 192.0.2.10 {CLAMP} 1441:65535"
        " -j TCPMSS --set-mss 1440",
        "the maximum segment size of TCP from 192.0.2.10 is lowered to 1460, wanted 1440",
    ),
}
SHELLS = ("/usr/bin/dash", "/usr/bin/busybox sh", "/usr/bin/bash --posix")


@pytest.fixture(scope="module")
def server(uml: UmlLab) -> NetNs:
    space = uml.server_ns("seen", OWN4, address6=OWN6)
    space.run(GOOD)
    return space


def look(space: NetNs, shell: str, needs: Needs = NEEDS) -> Observed:
    script = observe_script(needs, interfaces=["eth0"])
    return parse_observed(
        space.lab.run(space.argv(shell.split()), input=script).out.encode(), output_budget()
    )


@pytest.mark.parametrize("shell", SHELLS)
def test_nothing_is_named_where_all_tunnels_are_in_place(server: NetNs, shell: str) -> None:
    found = [each.message for each in differences(NEEDS, look(server, shell))]
    if "busybox" in shell:  # Debian's takes its own `ip` for any, and that knows nothing of GUE
        assert found.pop().startswith("it is unknown whether packets to UDP port 6080 are unpacked")
    assert found == []


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_broken_is_named_and_nothing_else(server: NetNs, case: str) -> None:
    breaks, mends, says = BROKEN[case]
    server.run(breaks)
    try:
        found = differences(NEEDS, look(server, SHELLS[0]))
    finally:
        server.run(mends)
    # rp_filter of "all" spoils each of the tunnels.
    names = ("tunl0", "xenlb-gre", "xenlb-tnl6") if case == "rp_filter of all" else ("tunl0",)
    expected = [says.replace("tunl0", name) for name in names]
    assert len(found) == len(expected), [str(each) for each in found]
    for difference, beginning in zip(
        sorted(found, key=str), sorted(expected, key=str), strict=True
    ):
        assert difference.message.startswith(beginning)


def test_what_debian_guests_show_of_themselves(uml: UmlLab) -> None:
    uml.start_libvirtd()
    guests = [
        uml.define_debian_guest("seen-systemd", "10.0.0.61"),
        uml.define_debian_guest("seen-sysvinit", "10.0.0.62", init="sysvinit"),
    ]
    states = {}
    for guest in guests:
        guest.start()
    for guest in guests:
        guest.wait_serving()
        # sysvinit starts the lab's shell after all scripts.
        assert guest_shell.answers(uml, guest.address, 7001, timeout=60)
        guest.write("/tmp/observe.sh", observe_script(Needs(), interfaces=["eth0"]))
        states[guest.name] = parse_observed(
            guest.run("sh /tmp/observe.sh </dev/null").out.encode(), output_budget()
        )
    systemd, sysvinit = states["seen-systemd"], states["seen-sysvinit"]
    assert (systemd.init, sysvinit.init) == (Init.SYSTEMD, Init.SYSVINIT)
    for state, address in ((systemd, "10.0.0.61"), (sysvinit, "10.0.0.62")):
        interfaces = {a.interface for a in state.addresses if a.address == ip_address(address)}
        assert interfaces == {"eth0"}
    assert systemd.root
    # The lab's own scripts configure their network; they have neither file nor program of any.
    assert {state.system_of("eth0") for state in states.values()} == {System.SHELL}
