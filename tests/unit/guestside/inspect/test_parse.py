"""What a guest printed, read: real outputs, and anything else that it may print."""

import subprocess
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.unit.guestside.shells import SHELLS, SYSTEM
from xenlb.guestside.inspect import parse
from xenlb.guestside.inspect.observed import (
    Address,
    DefaultRoute,
    FilterAction,
    FilterRule,
    NetworkSystem,
    Observed,
    ObservedLink,
    PolicyRule,
    Unit,
)
from xenlb.guestside.inspect.parse import LONGEST, LONGEST_LINE, PIECES, ObserveError, output_budget
from xenlb.guestside.inspect.script import observe_script
from xenlb.guestside.requirements.needs import Needs, Sysctl
from xenlb.ipvs.table import Family, Protocol
from xenlb.model.guest_side import Init, System
from xenlb.untrusted.budget import Budget

FOLDER = Path(__file__).parent / "observed"
REAL = {path.stem: path.read_bytes() for path in sorted(FOLDER.glob("*.txt"))}
INET, INET6 = Family.INET, Family.INET6


def observed(output: bytes, budget: Budget | None = None) -> Observed:
    return parse.parse_observed(output, budget or output_budget())


def framed(**sections: str) -> bytes:
    parts = ["xenlb-observed 1\n"]
    for name, text in sections.items():
        body = text.strip("\n") + "\n"
        parts.append(f"section {name.replace('_', '-')} {len(body)}\n{body}")
    return ("".join(parts) + "section end 0\n").encode()


def part(name: str) -> str:
    return (FOLDER / "parts" / f"{name}.txt").read_text()


# ---- frames ----

EMPTY = framed()
BROKEN = {
    "nothing": (b"", "not that of xenlb's script"),
    "another program": (b"uid=0(root) gid=0(root)\n", "not that of xenlb's script"),
    "another version": (b"xenlb-observed 2\nsection end 0\n", "not that of xenlb's script"),
    "cut in a section": (b"xenlb-observed 1\nsection about 99\nuid 0\n", "incomplete, or mixed"),
    "cut between sections": (b"xenlb-observed 1\nsection about 6\nuid 0\n", "incomplete, or mixed"),
    "a length too long": (b"xenlb-observed 1\nsection about 99999999\n", "incomplete, or mixed"),
    "a section twice": (
        b"xenlb-observed 1\nsection a 1\n\nsection a 1\n\nsection end 0\n",
        "incomplete, or mixed",
    ),
    "sections without end": (
        b"xenlb-observed 1\n"
        + b"".join(b"section a%s 1\n\n" % (b"x" * n) for n in range(18))
        + b"".join(b"section b%s 1\n\n" % (b"x" * n) for n in range(18))
        + b"".join(b"section c%s 1\n\n" % (b"x" * n) for n in range(18))
        + b"section end 0\n",
        "incomplete, or mixed",
    ),
    "too many lines": (
        framed(links="x\n" * (PIECES // 2), addresses="x\n" * (PIECES // 2 + 1)),
        "larger than xenlb reads",
    ),
    "too many hops": (
        framed(routes4=("default" + " nexthop" * 4000 + "\n") * 9),
        "larger than xenlb reads",
    ),
    "a line too long": (
        framed(rules4="1: from all " + "x" * LONGEST_LINE),
        "larger than xenlb reads",
    ),
    "too much": (EMPTY + b" " * LONGEST, "larger than xenlb reads"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_frames_are_one_sentence(case: str) -> None:
    output, says = BROKEN[case]
    with pytest.raises(ObserveError, match=says) as error:
        observed(output)
    assert error.value.hint
    assert "\n" not in error.value.message


def test_a_login_script_may_greet() -> None:
    assert observed(b"Welcome!\nxenlb-observed 1 is nice\n" + EMPTY) == observed(EMPTY)


def test_nothing_inside_a_section_passes_for_another() -> None:
    output = framed(links="x\nsection about 6\nuid 0", about="uid 1000")
    assert not observed(output).root


# ---- anything at all ----


def reads(output: bytes) -> None:
    """To an Observed or to an ObserveError; anything else fails the test."""
    try:
        state = observed(output)
    except ObserveError:
        return
    shown = [rule.text for rule in state.rules]
    shown += [link.name for link in state.links] + [each.interface for each in state.addresses]
    assert all(text.isascii() and text.isprintable() and len(text) <= 80 for text in shown)


@given(st.binary(max_size=300))
def test_random_bytes(output: bytes) -> None:
    reads(output)
    reads(b"xenlb-observed 1\n" + output)


NAMES = (
    *("about", "os", "addresses", "links", "devices", "rules4", "rules6", "routes4", "routes6"),
    *("tables", "sysctls", "nft", "iptables4", "iptables6", "fou", "offloads", "units"),
    *("network", "interfaces-file"),
)
WORDS = sorted({word for text in REAL.values() for word in text.decode().split()})


@given(st.sampled_from(NAMES), st.text(max_size=200))
def test_random_text_in_any_section(name: str, text: str) -> None:
    body = text.encode("utf-8", errors="replace")
    reads(b"xenlb-observed 1\nsection %s %d\n%ssection end 0\n" % (name.encode(), len(body), body))


@given(st.sampled_from(NAMES), st.lists(st.sampled_from([*WORDS, "\n", "\\", "via", "1:"])))
@example("routes4", ["default", "via"])
@example("rules4", ["1:", "from"])
@example("addresses", ["1:", "eth0", "inet"])
def test_its_own_words_in_any_order(name: str, words: list[str]) -> None:
    reads(framed(**{name: " ".join(words)}))


@given(st.sampled_from(sorted(REAL)), st.data())
def test_real_outputs_with_some_bytes_changed(name: str, data: st.DataObject) -> None:
    output = bytearray(REAL[name])
    for _ in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.integers(0, len(output) - 1))
        output[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    reads(bytes(output))


# ---- what the lines say ----


def test_addresses_of_ip_and_of_ifconfig() -> None:
    ip = """
1: lo    inet 127.0.0.1/8 scope host lo\\       valid_lft forever preferred_lft forever
1: lo    inet 192.0.2.10/32 scope global lo:1\\       valid_lft forever preferred_lft forever
2: eth0    inet 10.0.0.11 peer 10.0.0.1/32 scope global eth0\\       valid_lft forever
2: eth0    inet6 2001:db8::10/128 scope global tentative dadfailed \\       valid_lft forever
2: eth0    inet 10.0.0.300/24 scope global eth0
2: ../../x    inet 10.0.0.9/24 scope global eth0
"""
    old = """
eth0      Link encap:Ethernet  HWaddr 36:0C:B4:E5:E9:9A
          inet addr:10.0.0.11  Bcast:10.0.0.255  Mask:255.255.255.0
          inet6 addr: fd00:10::11/64 Scope:Global
lo:1      Link encap:Local Loopback
          inet addr:192.0.2.10  Mask:255.255.255.255
"""
    new = """
eth0: flags=4163<UP,BROADCAST,RUNNING,MULTICAST>  mtu 1500
        inet 10.0.0.11  netmask 255.255.255.0  broadcast 10.0.0.255
        inet6 fd00:10::11  prefixlen 64  scopeid 0x0<global>
lo:1: flags=73<UP,LOOPBACK,RUNNING>  mtu 65536
        inet 192.0.2.10  netmask 255.255.255.255
"""

    def address(interface: str, text: str, prefix: int, *flags: str) -> Address:
        return Address(
            interface=interface, address=ip_address(text), prefix=prefix, flags=frozenset(flags)
        )

    assert observed(framed(addresses=ip)).addresses == (
        address("lo", "127.0.0.1", 8),
        address("lo", "192.0.2.10", 32),
        address("eth0", "10.0.0.11", 32),
        address("eth0", "2001:db8::10", 128, "tentative", "dadfailed"),
    )
    for text in (old, new):
        assert observed(framed(addresses=text)).addresses == (
            address("eth0", "10.0.0.11", 24),
            address("eth0", "fd00:10::11", 64),
            address("lo", "192.0.2.10", 32),
        )


def test_links() -> None:
    assert observed(framed(links=part("links"))).links == (
        ObservedLink(name="eth0", up=True, ethernet=True, mac="02:00:00:00:00:11"),
        ObservedLink(name="xenlb-gre", up=False, kind="gre", local=ip_address("10.0.0.11")),
        ObservedLink(name="tunl0", up=True, kind="ipip", mode="any"),
        ObservedLink(name="ip6tnl0", up=False, kind="ip6tnl", mode="ip6ip6"),
    )
    of_sys = "eth0 0x1003 02:00:00:00:00:11\nlo 0x9 00:00:00:00:00:00\ntunl0 0xc1 0.0.0.0"
    assert observed(framed(devices=of_sys)).links == (
        ObservedLink(name="eth0", up=True, ethernet=True, mac="02:00:00:00:00:11"),
        ObservedLink(name="lo", up=True, mac="00:00:00:00:00:00"),
        ObservedLink(name="tunl0", up=True),
    )


def test_default_routes() -> None:
    state = observed(framed(routes4=part("routes"), tables="255 local\n7371 mail"))

    def route(
        table: int, via: str | None, dev: str | None = "eth0", metric: int = 0
    ) -> DefaultRoute:
        gateway = None if via is None else ip_address(via)
        return DefaultRoute(family=INET, table=table, gateway=gateway, interface=dev, metric=metric)

    usable = [each for each in state.default_routes if each.usable]
    assert usable == [
        route(254, "10.0.0.1", metric=100),
        route(10, "10.0.0.3"),
        route(10, "10.0.0.4", "eth1"),
        route(11, "fe80::1"),
    ]
    assert {each.table for each in state.default_routes if not each.usable} == {7371, 9}
    old = "Kernel IP routing table\n0.0.0.0  10.0.0.1  0.0.0.0  UG  0  0  0 eth0\n"
    assert observed(framed(routes4=old)).default_routes == (route(254, "10.0.0.1"),)


def test_rules() -> None:
    lines = """
0:\tfrom all lookup local
10:\tfrom 10.0.0.0/24 lookup 100
11:\tfrom all fwmark 0x1ccb lookup 7371 proto static
12:\tfrom all fwmark 0x1/0xff lookup 7
13:\tfrom all iif eth0 lookup 8
14:\tfrom all lookup main suppress_prefixlength 0
15:\tfrom 10.0.0.9 prohibit
16:\tfrom all lookup \x1b[31m
"""
    rules = observed(framed(rules4=lines)).rules
    assert [(each.priority, each.table, each.mark, each.narrower) for each in rules] == [
        (0, 255, None, False),
        (10, 100, None, False),
        (11, 7371, 0x1CCB, False),
        (12, 7, None, True),
        (13, 8, None, True),
        (14, 254, None, True),
        (15, None, None, False),
    ]
    assert rules[1] == PolicyRule(
        family=INET,
        priority=10,
        table=100,
        source=ip_address("10.0.0.0"),
        prefix=24,
        text="from 10.0.0.0/24 lookup 100",
    )


def mark(
    family: Family, interface: str, value: int, protocol: Protocol, *ports: range
) -> FilterRule:
    return FilterRule(
        family=family,
        hook="prerouting",
        action=FilterAction.MARK,
        value=value,
        interface=interface,
        protocol=protocol,
        ports=ports or None,
    )


def clamp(family: Family, address: str, size: int) -> FilterRule:
    return FilterRule(
        family=family,
        hook="postrouting",
        action=FilterAction.CLAMP,
        value=size,
        source=ip_address(address),
    )


def of_family(family: Family) -> set[FilterRule]:
    return {
        mark(family, "eth0", 0x1CCB, Protocol.TCP, range(25, 26)),
        mark(family, "eth1", 0x1CCC, Protocol.TCP, range(1, 22), range(23, 65536)),
        mark(family, "eth1", 0x1CCC, Protocol.UDP),
        FilterRule(family=family, hook="output", action=FilterAction.RESTORE, value=0x1CCB),
    }


@pytest.mark.parametrize("name", ["nft-numbers", "nft-words"])
def test_rules_of_nft(name: str) -> None:
    """As nft 1.0.6 prints what guest.sh loads, with -nn and without."""
    assert set(observed(framed(nft=part(name))).filters) == {
        *of_family(INET),
        *of_family(INET6),
        clamp(INET, "192.0.2.10", 1440),
        clamp(INET6, "2001:db8::10", 1420),
    }


def test_rules_of_iptables() -> None:
    """As iptables-save 1.8.9 prints the same."""
    found = {
        rule
        if rule.action is not FilterAction.CLAMP
        else clamp(INET, str(rule.source), rule.value or 0)
        for rule in observed(framed(iptables4=part("iptables"))).filters
    }
    assert found == {*of_family(INET), clamp(INET, "192.0.2.10", 1440)}


@pytest.mark.parametrize(
    "line",
    [
        "tcp dport @mine ct mark set 0x1",
        'iifname "eth0" tcp dport { 25, 80-90 } ct mark set 0x1',
        "ct direction reply ct mark 0x1 meta mark set 0x2",
        "ip saddr 192.0.2.10 tcp option maxseg size set rt mtu",
    ],
)
def test_an_nft_rule_that_guest_sh_does_not_write_is_skipped(line: str) -> None:
    text = f"chain a {{\ntype filter hook prerouting priority 0;\n{line}\n}}"
    assert observed(framed(nft=text)).filters == ()


# ---- what configures it ----

NETWORKD = "networkd active\nlink eth0 ADMIN_STATE=configured\nlink eth0 NETWORK_FILE="
MANAGER = "nm-version nmcli tool, version 1.42.4\nnm-running running\nlink eth0 GENERAL.STATE:"
SYSTEMS: dict[str, tuple[str, str, str, NetworkSystem | None]] = {
    "networkd": (
        f"{NETWORKD}/etc/systemd/network/20-wired.network",
        "",
        "",
        NetworkSystem(system=System.NETWORKD, network_file="20-wired.network"),
    ),
    "netplan by networkd": (
        f"{NETWORKD}/run/systemd/network/10-netplan-main.network",
        "",
        "",
        NetworkSystem(system=System.NETPLAN, network_file="10-netplan-main.network"),
    ),
    "a file elsewhere": (f"{NETWORKD}/etc/shadow", "", "", None),
    "networkd that does not run": (
        NETWORKD.replace("active", "inactive") + "/etc/systemd/network/20-wired.network",
        "",
        "",
        None,
    ),
    "network manager": (
        f"{MANAGER}100 (connected)\nlink eth0 GENERAL.CONNECTION:Wired connection 1",
        "",
        "nmcli",
        NetworkSystem(system=System.NETWORK_MANAGER, by_manager=True),
    ),
    "netplan by network manager": (
        f"{MANAGER}100 (connected)\nlink eth0 GENERAL.CONNECTION:netplan-main",
        "",
        "nmcli",
        NetworkSystem(system=System.NETPLAN, by_manager=True),
    ),
    "ifupdown beside a network manager that looks on": (
        f"ifupdown-file\n{MANAGER}100 (connected (externally))",
        "iface lo inet loopback\niface eth0 inet static",
        "nmcli ifup",
        NetworkSystem(system=System.IFUPDOWN),
    ),
    "ifupdown that has it up": (
        f"ifupdown-file\nlink eth0 ifup\n{MANAGER}100 (connected)",
        "",
        "nmcli ifup",
        NetworkSystem(system=System.IFUPDOWN),
    ),
    "ifupdown gone": ("ifupdown-file", "iface eth0 inet dhcp", "", None),
    "network scripts": (
        "network-scripts\nlink eth0 ifcfg\nlink eth0 address-routes",
        "",
        "ifup",
        NetworkSystem(system=System.NETWORK_SCRIPTS, address_routes=True),
    ),
    "network manager with ifcfg files": (
        f"network-scripts\nlink eth0 ifcfg\n{MANAGER}100 (connected)",
        "",
        "ifup nmcli",
        NetworkSystem(system=System.NETWORK_MANAGER, by_manager=True),
    ),
    "nothing": ("", "", "", None),
}


@pytest.mark.parametrize("case", SYSTEMS)
def test_what_configures_the_network(case: str) -> None:
    network, stanzas, programs, system = SYSTEMS[case]
    about = "\n".join(f"program {program}" for program in programs.split())
    state = observed(framed(network=network, interfaces_file=stanzas, about=about))
    assert state.systems.get("eth0") == system
    assert state.system_of("eth0") is (System.SHELL if system is None else system.system)


def test_other_sections() -> None:
    state = observed(
        framed(
            about="uid 0\ninit systemd\ninit rc-links",
            network=f"{MANAGER}100 (connected)",
            interfaces_file="source /etc/network/interfaces.d/*",
            fou="port 6080 gue\nport 5555 ipproto 4\nport 6081 gue -6",
            offloads="eth0 tx-checksumming: off\neth1 tx-checksumming: on",
        )
    )
    assert (state.root, state.init, state.interfaces_d) == (True, Init.SYSTEMD, True)
    assert state.network_manager == (1, 42)
    assert state.decapsulated == {(INET, 6080), (INET6, 6081)}
    assert state.checksums == {"eth0": False, "eth1": True}
    assert observed(framed(about="init rc-links")).init is Init.SYSVINIT
    assert observed(framed(about="init rc-links\ninit openrc")).init is None


@pytest.mark.parametrize("word", ["$(reboot)", "a b", "'", "a\nb", "", "../../etc/shadow"])
def test_parameters_of_the_script_are_words(word: str) -> None:
    with pytest.raises(ValueError, match="cannot be a parameter"):
        observe_script(Needs(), interfaces=[word])
    with pytest.raises(ValueError, match="cannot be a parameter"):
        observe_script(Needs(sysctls=(Sysctl(name=word, value=1),)))


# ---- real guests ----

OLD_ROOT = {
    "etc/rc.d/rc3.d/S99xenlb-hold": "",
    "etc/init.d/xenlb-hold": "#!/bin/sh\nexit 0\n",
    "etc/init.d/xenlb-guest": "#!/bin/sh\nexit 3\n",
    "etc/sysconfig/network-scripts/ifup-eth": "#!/bin/sh\n",
    "etc/sysconfig/network-scripts/ifcfg-eth7": "DEVICE=eth7\n",
    "etc/sysconfig/network-scripts/route-eth7": "ADDRESS0=10.1.0.0\n",
    "etc/iproute2/rt_tables": "100 mail\n",
}
IFUPDOWN_ROOT = {
    "etc/network/interfaces": "source interfaces.d/*\nauto lo\niface lo inet loopback\n",
    "etc/network/interfaces.d/one": "iface eth8 inet static\n address 10.0.0.1/24\n",
    "run/network/ifstate": "lo=lo\neth7=eth7\n",
    "usr/sbin/ifup": "#!/bin/sh\n",
}


def look(shell: str, root: Path, files: Mapping[str, str]) -> Observed:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
        (root / name).chmod(0o755)
    done = subprocess.run(
        SHELLS[shell],
        input=observe_script(Needs(), interfaces=["eth7"]).encode(),
        env={"XENLB_GUEST_ROOT": str(root), "XENLB_GUEST_PATH": f"{root}/usr/sbin:{SYSTEM}"},
        capture_output=True,
        check=True,
        timeout=60,
    )
    return observed(done.stdout)


@pytest.mark.parametrize("shell", SHELLS)
def test_an_old_guest_is_known_by_its_files(shell: str, tmp_path: Path) -> None:
    state = look(shell, tmp_path, OLD_ROOT)
    assert state.init is Init.SYSVINIT
    assert state.units == (
        Unit(name="xenlb-hold", active=True, enabled=True),
        Unit(name="xenlb-guest", active=False, enabled=False),
    )
    assert state.systems == {
        "eth7": NetworkSystem(system=System.NETWORK_SCRIPTS, address_routes=True)
    }


@pytest.mark.parametrize("shell", SHELLS)
def test_ifupdown_is_known_by_its_files(shell: str, tmp_path: Path) -> None:
    state = look(shell, tmp_path, IFUPDOWN_ROOT)
    assert state.interfaces_d
    assert {name: each.system for name, each in state.systems.items()} == {
        "lo": System.IFUPDOWN,
        "eth7": System.IFUPDOWN,
        "eth8": System.IFUPDOWN,
    }
    assert state.init is None
    assert state.units == ()


@pytest.mark.parametrize("name", REAL)
def test_real_outputs_are_read_in_full(name: str) -> None:
    state = observed(REAL[name])
    assert isinstance(state, Observed)
    assert state.addresses
    assert state.link("lo") is not None
