"""A guest's state against its needs: set up for real in a network name space, then one thing
broken at a time, and exactly that named. What this kernel lacks (tunnels) is in the lab, in
tests/lab/test_verify_uml.py."""

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import UUID

import pytest

from tests.unit.director.netns import in_own_network, sh
from tests.unit.guestside.shells import SHELLS, SYSTEM
from xenlb.guestside.inspect.observed import Address, DefaultRoute, Observed, ObservedLink, Unit
from xenlb.guestside.inspect.parse import output_budget, parse_observed
from xenlb.guestside.inspect.script import observe_script
from xenlb.guestside.inspect.verify import differences
from xenlb.guestside.requirements.compile import ServiceBinding, compile_needs
from xenlb.guestside.requirements.hold import Hold, NotifyVia
from xenlb.guestside.requirements.needs import (
    Clamp,
    Decapsulation,
    Needs,
    Rule,
    TunnelDevice,
    TunnelKind,
)
from xenlb.ipvs.table import Family, Forwarding, Protocol, family_of
from xenlb.model.guest_side import GuestSide, ReturnPath
from xenlb.model.settings import DrainUntil, Port, ServiceSettings

V4, V6 = "192.0.2.10", "2001:db8::10"
DIRECTOR = {Family.INET: ip_address("10.0.0.1"), Family.INET6: ip_address("fd00:10::1")}


def place(
    vip: str, own: str, *, side: GuestSide | None = None, gatewaying: str = ""
) -> ServiceBinding:
    service = ServiceSettings(
        name="mail",
        address=ip_address(vip),
        family=family_of(ip_address(vip)),
        ports=(Port(number=25), Port(number=53, protocol=Protocol.UDP)),
        forwarding=Forwarding.GATEWAYING if gatewaying else Forwarding.MASQUERADE,
    )
    address = ip_address(own)
    return ServiceBinding(
        service=service, side=side or GuestSide(), address=address, gateways=DIRECTOR
    )


# A guest in one service of each kind; it needs no more, so that each case breaks one thing.
NEEDS = compile_needs(
    [
        place(V4, "10.0.0.11", gatewaying="yes"),
        place(V6, "fd00:10::11", gatewaying="yes"),
        place("192.0.2.11", "10.0.0.11", side=GuestSide(return_path=ReturnPath.RULE)),
        place("2001:db8::11", "fd00:10::11", side=GuestSide(return_path=ReturnPath.RULE)),
        place(
            "192.0.2.12",
            "10.0.1.11",
            side=GuestSide(interface="eth1", return_path=ReturnPath.MARK, table=731),
        ),
        place("192.0.2.13", "10.0.0.11"),
    ]
)
# Without the addresses that the kernel gives itself, tentative for seconds.
GOOD = f"""
ip link set lo up
ip link add eth0 type veth peer name peer0
ip link add eth1 type veth peer name peer1
ip link set eth0 addrgenmode none
ip link set peer0 addrgenmode none
ip link set eth1 addrgenmode none
ip link set peer1 addrgenmode none
ip link set eth0 up
ip link set peer0 up
ip link set eth1 up
ip link set peer1 up
sysctl -qw net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2
sysctl -qw net.ipv4.conf.all.src_valid_mark=1
ip addr add 10.0.0.11/24 dev eth0
ip addr add 10.0.1.11/24 dev eth1
ip addr add fd00:10::11/64 dev eth0 nodad
ip addr add {V4}/32 dev lo
ip addr add {V6}/128 dev lo nodad
ip route add default via 10.0.0.1 dev eth0
ip route add default via 10.0.0.1 dev eth0 table 731
ip -6 route add default via fd00:10::1 dev eth0 table 731
ip route add default via 10.0.0.1 dev eth1 onlink table 732
ip rule add from 10.0.0.11 table 731 priority 731
ip -6 rule add from fd00:10::11 table 731 priority 731
ip rule add fwmark 732 table 732 priority 732
"""
# As guest.sh writes them.
IN = "-m addrtype --dst-type LOCAL -m conntrack --ctstate NEW --ctdir ORIGINAL"
MARKED = "-m connmark --mark 732 -m conntrack --ctdir REPLY -j MARK --set-mark 732"
RULES = f"""*mangle
:XENLB-IN - [0:0]
:XENLB-OUT - [0:0]
-A PREROUTING -j XENLB-IN
-A OUTPUT -j XENLB-OUT
-A XENLB-IN -i eth1 -p tcp --dport 25 {IN} -j CONNMARK --set-mark 732
-A XENLB-IN -i eth1 -p udp --dport 53 {IN} -j CONNMARK --set-mark 732
-A XENLB-IN {MARKED}
-A XENLB-OUT {MARKED}
COMMIT
"""

# What breaks it, and the beginning of the one sentence.
BROKEN: dict[str, tuple[str, str]] = {
    "address missing": (
        f"ip addr del {V4}/32 dev lo",
        f"{V4} is missing, wanted on lo",
    ),
    "wide netmask": (
        f"ip addr del {V4}/32 dev lo\nip addr add {V4}/24 dev lo",
        f"{V4} is on lo with prefix length 24, not 32: the guest answers ARP for all of that",
    ),
    "address on eth0": (
        f"ip addr del {V4}/32 dev lo\nip addr add {V4}/32 dev eth0",
        f"{V4} is on eth0, not on lo: the guest answers ARP for it",
    ),
    "address on eth0 too": (
        f"ip addr add {V4}/32 dev eth0",
        f"{V4} is on eth0, as well as on lo: the guest answers ARP for it",
    ),
    "address by a label": (
        f"ip addr del {V4}/32 dev lo\nip addr add {V4}/32 dev eth0 label eth0:1",
        f"{V4} is on eth0, not on lo",
    ),
    "IPv6 address missing": (f"ip addr del {V6}/128 dev lo", f"{V6} is missing"),
    "IPv6 address on eth0 too": (
        f"ip addr add {V6}/128 dev eth0 nodad",
        f"{V6} is on eth0, as well as on lo: the guest answers neighbour discovery for it",
    ),
    "arp_ignore": (
        "sysctl -qw net.ipv4.conf.all.arp_ignore=0 net.ipv4.conf.eth1.arp_ignore=1"
        " net.ipv4.conf.peer0.arp_ignore=1 net.ipv4.conf.peer1.arp_ignore=2",
        "arp_ignore of eth0 is 0 (all: 0, eth0: 0), wanted 1: the guest answers ARP",
    ),
    "arp_ignore of no use": (
        "sysctl -qw net.ipv4.conf.eth1.arp_ignore=3",
        "arp_ignore of eth1 is 3 (all: 1, eth1: 3), wanted 1",
    ),
    "arp_announce": (
        "sysctl -qw net.ipv4.conf.all.arp_announce=0",
        "arp_announce of ",
    ),
    "src_valid_mark": (
        "sysctl -qw net.ipv4.conf.all.src_valid_mark=0",
        "src_valid_mark of eth1 is 0 (all: 0, eth1: 0), wanted 1",
    ),
    "route missing": (
        "ip route del default table 731",
        "table 731 has no default route, wanted via 10.0.0.1 on eth0",
    ),
    "other gateway": (
        "ip route replace default via 10.0.0.99 dev eth0 table 731",
        "the default route of table 731 goes via 10.0.0.99 on eth0, wanted via 10.0.0.1 on eth0",
    ),
    "a better route": (
        "ip route replace default via 10.0.0.1 dev eth0 table 731 metric 9\n"
        "ip route del default table 731 metric 0\n"
        "ip route add default via 10.0.0.99 dev eth0 table 731 metric 5",
        "the default route of table 731 goes via 10.0.0.99",
    ),
    "unreachable": (
        "ip route replace unreachable default table 731",
        "the default route of table 731 goes nowhere",
    ),
    "IPv6 route missing": (
        "ip -6 route del default table 731",
        "table 731 has no default route, wanted via fd00:10::1",
    ),
    "interface down": (
        "ip link set eth1 down",
        "table 732 has no default route, wanted via 10.0.0.1 on eth1: eth1 is down",
    ),
    "rule missing": (
        "ip rule del priority 731",
        "packets from 10.0.0.11 are not routed by table 731: there is no such rule",
    ),
    "rule of another table": (
        "ip rule del priority 731\nip rule add from 10.0.0.11 table 100 priority 731",
        "packets from 10.0.0.11 are not routed by table 731: there are rules for table 100",
    ),
    "rule for less": (
        "ip rule del priority 731\nip rule add from 10.0.0.11 to 198.51.100.0/24 table 731",
        "packets from 10.0.0.11 are not routed by table 731",
    ),
    "rule behind another": (
        "ip route add default via 10.0.0.2 dev eth0 table 100\n"
        "ip rule add from 10.0.0.0/24 table 100 priority 100",
        "packets from 10.0.0.11 do not reach table 731: the rule `from 10.0.0.0/24 lookup 100`"
        " with priority 100 comes before priority 731",
    ),
    "rule behind main": (
        "ip rule del priority 731\nip rule add from 10.0.0.11 table 731 priority 40000",
        "packets from 10.0.0.11 do not reach table 731: the rule `from all lookup main`",
    ),
    "IPv6 rule behind a refusal": (
        "ip -6 rule add from fd00:10::/64 prohibit priority 5",
        "packets from fd00:10::11 do not reach table 731",
    ),
    "mark's rule missing": (
        "ip rule del priority 732",
        "packets with mark 732 are not routed by table 732",
    ),
    "marks missing": (
        "iptables -t mangle -D XENLB-IN 2",
        "IPv4 connections through eth1 to UDP port 53 get no mark 732",
    ),
    "mark of another interface": (
        f"iptables -t mangle -R XENLB-IN 1 -i eth0 -p tcp --dport 25 {IN} -j CONNMARK"
        " --set-mark 732",
        "IPv4 connections through eth1 to TCP port 25 get no mark 732",
    ),
    "replies unmarked": (
        "iptables -t mangle -F XENLB-OUT",
        "IPv4 replies do not get the mark of their connection (732)",
    ),
    "default gateway": (
        "ip route replace default via 10.0.0.254 dev eth0",
        "the default gateway is not 10.0.0.1, the director: it goes via 10.0.0.254 on eth0",
    ),
    "no default gateway": (
        "ip route del default",
        "the default gateway is not 10.0.0.1, the director: there is none",
    ),
}
# What is otherwise than guest.sh makes it, and as good.
AS_GOOD = {
    "by interface": "sysctl -qw net.ipv4.conf.all.arp_ignore=0 net.ipv4.conf.eth0.arp_ignore=1"
    " net.ipv4.conf.eth1.arp_ignore=2 net.ipv4.conf.peer0.arp_ignore=1"
    " net.ipv4.conf.peer1.arp_ignore=1",
    "rule of another priority": "ip rule del priority 731\n"
    "ip rule add from 10.0.0.11 table 731 priority 20",
    "a table without a way in front": "ip rule add from all table 100 priority 5",
    "rules for others": "ip route add default via 10.0.0.2 dev eth0 table 100\n"
    "ip rule add from 10.0.9.0/24 table 100 priority 5\n"
    "ip rule add fwmark 0x5 table 100 priority 6",
    "a second route": "ip route add default via 10.0.0.99 dev eth0 table 731 metric 50",
    "no nodad on lo": f"ip addr del {V6}/128 dev lo\nip addr add {V6}/128 dev lo",
    "several ports": "iptables -t mangle -R XENLB-IN 1 -i eth1 -p tcp -m multiport --dports"
    " 20:30,80 -j CONNMARK --set-mark 732",
    "any port": "iptables -t mangle -R XENLB-IN 1 -i eth1 -p tcp -j CONNMARK --set-mark 732",
    "restored": "iptables -t mangle -F XENLB-OUT\n"
    "iptables -t mangle -A XENLB-OUT -j CONNMARK --restore-mark",
}


def set_up() -> None:
    sh(GOOD)
    restore = ["iptables-restore", "--noflush"]
    subprocess.run(restore, input=RULES, text=True, check=True, capture_output=True)


def look(shell: str, needs: Needs = NEEDS, *, env: Mapping[str, str] | None = None) -> Observed:
    script = observe_script(needs, interfaces=["eth0"])
    done = subprocess.run(
        SHELLS[shell],
        input=script.encode(),
        capture_output=True,
        check=True,
        timeout=60,
        env={**os.environ, **(env or {})},
    )
    assert done.stderr == b""
    return parse_observed(done.stdout, output_budget())


def messages(needs: Needs, state: Observed) -> list[str]:
    return [each.message for each in differences(needs, state)]


@pytest.mark.parametrize("shell", SHELLS)
@in_own_network
def test_nothing_is_named_where_all_is_in_place(shell: str) -> None:
    set_up()
    state = look(shell)
    assert messages(NEEDS, state) == []
    address = ip_address("fd00:10::11")
    assert [entry.interface for entry in state.addresses if entry.address == address] == ["eth0"]
    link = state.link("eth0")
    assert link is not None
    assert link.mac is not None
    assert link.mac in sh("ip link show eth0")


@in_own_network
def test_to_look_changes_nothing() -> None:
    """Not even what nobody has used: the older iptables makes a table by being asked for it."""
    everything = """
        cat /proc/net/ip_tables_names
        ip -d addr
        ip rule
        ip route show table all
        sysctl net
        iptables-save
    """
    set_up()
    before = sh(everything)
    look("dash")
    quiet = re.compile(r"^#.*|(age|expires|lft) \S+|\[\d+:\d+\]|^net\.netfilter.*", re.MULTILINE)
    assert quiet.sub("", sh(everything)) == quiet.sub("", before)


def some_shell(case: str) -> str:
    return sorted(SHELLS)[len(case) % len(SHELLS)]


@pytest.mark.parametrize("case", BROKEN)
@in_own_network
def test_what_is_broken_is_named_and_nothing_else(case: str) -> None:
    set_up()
    breaks, says = BROKEN[case]
    sh(breaks)
    found = differences(NEEDS, look(some_shell(case)))
    assert [each.message for each in found if not each.message.startswith(says)] == []
    assert len(found) == 1
    assert found[0].hint


@pytest.mark.parametrize("case", AS_GOOD)
@in_own_network
def test_what_does_the_same_is_no_difference(case: str) -> None:
    set_up()
    sh(AS_GOOD[case])
    assert messages(NEEDS, look(some_shell(case))) == []


@in_own_network
def test_the_needs_of_one_service_are_held_against_the_guest_alone() -> None:
    set_up()
    sh(f"ip rule del priority 731\nip addr del {V4}/32 dev lo")
    state = look("dash")
    assert len(messages(NEEDS, state)) == 2
    one = compile_needs([place(V4, "10.0.0.11", gatewaying="yes")])
    assert messages(one, state) == [
        f"{V4} is missing, wanted on lo: the guest does not accept packets to it"
    ]


OLD_TOOLS = ("id", "tr", "sed", "cat", "grep", "ifconfig", "route")


# Debian's busybox takes its own `ip` for any.
@pytest.mark.parametrize("shell", ["dash", "bash"])
@in_own_network
def test_a_guest_without_ip_is_seen_by_ifconfig(shell: str) -> None:
    set_up()
    with TemporaryDirectory() as folder:
        for tool in OLD_TOOLS:
            program = shutil.which(tool, path=SYSTEM)
            assert program, f"this machine has no {tool}"
            (Path(folder) / tool).symlink_to(program)
        needs = compile_needs([place(V4, "10.0.0.11", gatewaying="yes")])
        old = {"XENLB_GUEST_PATH": folder}
        # The way of such guests: ifconfig shows one address of each name.
        sh(f"ip addr del {V4}/32 dev lo\nip addr add {V4}/32 dev lo label lo:1")
        assert messages(needs, look(shell, needs, env=old)) == []
        sh(f"ip addr del {V4}/32 dev lo\nip addr add {V4}/24 dev lo label lo:1")
        (message,) = messages(needs, look(shell, needs, env=old))
        assert message.startswith(f"{V4} is on lo with prefix length 24, not 32")
        (message,) = messages(RULED, look(shell, RULED, env=old))
        assert message.startswith("it is unknown whether packets from 10.0.0.11 are routed")
        assert message.endswith("the guest has no ip(8)")


# ---- by values: what this kernel or machine does not have ----

TUNNEL = TunnelDevice(
    name="xenlb-gre", kind=TunnelKind.GRE, module="ip_gre", local=ip_address("10.0.0.11")
)
GRE = ObservedLink(name="xenlb-gre", up=True, kind="gre", local=ip_address("10.0.0.11"))
TUNNELS = Needs(tunnels=(TUNNEL,))
HOLD = Needs(
    hold=Hold(
        uuid=UUID("3a0f4a8e-5f05-4c8e-9df8-3dd9d9a3d0f1"),
        tell=NotifyVia.NONE,
        timeout=60,
        until=DrainUntil.ESTABLISHED,
        watches=(),
    )
)
GUE = Needs(decapsulations=(Decapsulation(port=6080, family=Family.INET),))
RULED = Needs(rules=(Rule(family=Family.INET, table=731, source=ip_address("10.0.0.11")),))
CLAMPED = Needs(clamps=(Clamp(address=ip_address(V4), size=1440),))
IN_NEED_OF_V6 = compile_needs([place(V6, "fd00:10::11", gatewaying="yes")])


def v6_on_lo(*flags: str) -> Observed:
    address = Address(interface="lo", address=ip_address(V6), prefix=128, flags=frozenset(flags))
    return Observed(addresses=(address,))


BY_VALUES: dict[str, tuple[Needs, Observed, Sequence[str]]] = {
    "tunnel": (TUNNELS, Observed(links=(GRE,)), ()),
    "a tunnel of which little is known": (
        TUNNELS,
        Observed(links=(ObservedLink(name="xenlb-gre", up=True),)),
        (),
    ),
    "hold": (HOLD, Observed(units=(Unit(name="xenlb-hold", active=True, enabled=True),)), ()),
    "no hold": (HOLD, Observed(), ["xenlb-hold is not installed"]),
    "hold not started": (
        HOLD,
        Observed(units=(Unit(name="xenlb-hold", active=False, enabled=True),)),
        ["xenlb-hold is not active"],
    ),
    "hold not enabled": (
        HOLD,
        Observed(units=(Unit(name="xenlb-hold", active=True, enabled=False),)),
        ["xenlb-hold is not enabled: it does not start at boot"],
    ),
    "guest.sh not started": (
        IN_NEED_OF_V6,
        Observed(
            addresses=v6_on_lo("nodad").addresses,
            units=(Unit(name="xenlb-guest", active=False, enabled=True),),
        ),
        ["xenlb-guest is not active"],
    ),
    "a gateway by advertisements": (
        Needs(default_gateways=(DIRECTOR[Family.INET6],)),
        Observed(
            default_routes=(
                DefaultRoute(
                    family=Family.INET6,
                    table=254,
                    gateway=ip_address("fe80::1"),
                    interface="eth0",
                ),
            )
        ),
        ["it is unknown whether the default gateway fe80::1 is the director (fd00:10::1)"],
    ),
    "no iproute2": (
        GUE,
        Observed(programs=frozenset({"ip"})),
        [
            "it is unknown whether packets to UDP port 6080 are unpacked: only iproute2 shows it, "
            "which the guest does not have"
        ],
    ),
    "gue": (GUE, Observed(decapsulated=frozenset({(Family.INET, 6080)})), ()),
    "dad failed": (
        IN_NEED_OF_V6,
        v6_on_lo("tentative", "dadfailed"),
        [f"{V6} is on lo and cannot be used: duplicate address detection failed"],
    ),
    "tentative": (
        IN_NEED_OF_V6,
        v6_on_lo("tentative"),
        [f"{V6} is on lo and cannot be used yet: duplicate address detection is running"],
    ),
    "nothing to see marks with": (
        CLAMPED,
        Observed(root=True),
        [
            "the maximum segment size of TCP cannot be read or set: the guest has neither nft nor "
            "iptables"
        ],
    ),
    "not as root": (
        CLAMPED,
        Observed(programs=frozenset({"nft"})),
        ["the maximum segment size of TCP cannot be read: xenlb is not root in the guest"],
    ),
    "checksums by the card": (
        Needs(no_tx_checksums=("eth0",)),
        Observed(checksums={"eth0": True}),
        ["tx-checksumming of eth0 is on, wanted off"],
    ),
    "checksums by the kernel": (
        Needs(no_tx_checksums=("eth0",)),
        Observed(checksums={"eth0": False}),
        (),
    ),
    "no ethtool": (
        Needs(no_tx_checksums=("eth0",)),
        Observed(),
        ["tx-checksumming of eth0 is unknown: the guest has no ethtool"],
    ),
}


@pytest.mark.parametrize("case", BY_VALUES)
def test_by_values(case: str) -> None:
    needs, state, says = BY_VALUES[case]
    assert messages(needs, state) == list(says)


def test_what_busybox_cannot_do_is_not_promised() -> None:
    def hint(*programs: str, table: int) -> str:
        rule = Rule(family=Family.INET, table=table, mark=table)
        (found,) = differences(Needs(rules=(rule,)), Observed(programs=frozenset(programs)))
        return found.hint

    assert "busybox's" in hint("ip", table=1731)
    assert "busybox's" not in hint("ip", "iproute2", table=1731)
    assert hint("ip", table=371) == hint("ip", "iproute2", table=371)
