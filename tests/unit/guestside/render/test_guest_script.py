"""guest.sh in each shell, with a real kernel's network and packet filters: makes, keeps, undoes.

What this machine's kernel has no devices for, tunnels, is in tests/lab/test_guest_script_uml.py.
"""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.lab.host import LabError
from tests.lab.needed import lacking
from tests.soak import often
from tests.unit.director.netns import in_own_network, sh
from tests.unit.guestside.render.guests import (
    FETCHED,
    FILTERS,
    Guest,
    Xenstored,
    network,
    picture,
    tool,
)
from tests.unit.guestside.shells import SHELLS
from xenlb.guestside.inspect.netfilter_output import iptables_rules, nft_rules
from xenlb.guestside.inspect.observed import FilterAction
from xenlb.ipvs.table import Family

V4, V6 = "192.0.2.10", "2001:db8::10"
ADDRESSES = (f"address {V4} lo", f"address {V6} lo")
SILENT = ("sysctl net/ipv4/conf/all/arp_ignore 1", "sysctl net/ipv4/conf/all/arp_announce 2")
# Numbers of tables that busybox's ip knows too.
MARKED = (
    "sysctl net/ipv4/conf/eth0/rp_filter 2",
    "route 4 10.0.0.1 eth0 731",
    "route 6 fd00:10::1 eth0 731",
    "rule 4 from 10.0.0.11 731",
    "rule 4 mark 731 731",
    "rule 6 mark 731 731",
    "mark eth0 tcp 25 731",
    "mark eth0 tcp any 732",
    "mark eth0 udp any 731",
    f"clamp {V4} 1440",
    f"clamp {V6} 1420",
)
every_shell = pytest.mark.parametrize("shell", SHELLS)


@pytest.fixture(scope="module", autouse=True)
def _fetched() -> None:
    """Before a test is in a network from which nothing can be fetched."""
    try:
        for name in FETCHED:
            tool(name)
    except LabError as error:
        lacking(f"the tests of guest.sh need it: {error}")


def addresses(interface: str) -> set[str]:
    (link,) = json.loads(sh(f"ip -j addr show dev {interface}"))
    return {f"{each['local']}/{each['prefixlen']}" for each in link["addr_info"]}


def sysctl(name: str) -> str:
    return Path("/proc/sys/net/ipv4/conf", name).read_text().strip()


def until(true: Callable[[], bool], what: str, seconds: float = 20) -> None:
    ends = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < ends, f"not within {seconds} s: {what}"
        time.sleep(0.1)


@every_shell
@pytest.mark.parametrize("packets", FILTERS)
def test_up_and_down_again(tmp_path: Path, shell: str, packets: str) -> None:
    @in_own_network
    def test() -> None:
        network()
        if packets == "iptables":  # this one leaves the empty chains of the kernel's table behind
            sh("iptables -t mangle -A OUTPUT -j ACCEPT")
            sh("ip6tables -t mangle -A PREROUTING -j ACCEPT")
            sh("ip6tables -t mangle -A POSTROUTING -j ACCEPT")
            sh("iptables -t mangle -A PREROUTING -j ACCEPT")
            sh("iptables -t mangle -A POSTROUTING -j ACCEPT")
            sh("ip6tables -t mangle -A OUTPUT -j ACCEPT")
        sh("iptables-legacy -t mangle -A PREROUTING -s 10.9.9.9 -j ACCEPT")
        guest = Guest(tmp_path / "guest", shell, ("ip", *FILTERS[packets]))
        guest.settings(*SILENT, *MARKED, *ADDRESSES)
        before = picture()

        up = guest.run("up")
        assert (up.status, up.errors) == (0, ""), up.lines
        rules = f"done: the rules for marks and clamps ({packets})"
        single = [each for each in MARKED if each.split()[0] not in ("mark", "clamp")]
        assert sorted(up.lines) == sorted(
            [rules, *(f"done: {each}" for each in (*SILENT, *single, *ADDRESSES))]
        )
        assert up.lines[: len(SILENT)] == [f"done: {each}" for each in SILENT]
        assert up.lines[-2:] == [f"done: {each}" for each in ADDRESSES]
        assert {f"{V4}/32", f"{V6}/128"} < addresses("lo")
        assert (sysctl("all/arp_ignore"), sysctl("all/arp_announce")) == ("1", "2")
        assert "default via 10.0.0.1 dev eth0" in sh("ip route show table 731")
        assert "default via fd00:10::1 dev eth0" in sh("ip -6 route show table 731")
        assert "731:\tfrom 10.0.0.11 lookup 731" in sh("ip rule show")
        assert "731:\tfrom all fwmark 0x2db lookup 731" in sh("ip -6 rule show")
        shown = guest.run("rules").lines
        assert any("25" in line and "731" in line for line in shown)
        assert any(V6 in line and "1420" in line for line in shown)

        # Whoever verifies this guest reads them so too.
        if packets == "nft":
            read = list(nft_rules(sh(f"{tool('nft')} list table inet xenlb").splitlines()))
        else:
            lines = sh(f"{packets} -t mangle -S").splitlines()
            read = list(iptables_rules(lines, family=Family.INET))
        assert {rule.action for rule in read} == set(FilterAction)
        assert {rule.value for rule in read if rule.action is FilterAction.RESTORE} == {731, 732}

        after = picture()
        again = guest.run("up")
        assert (again.status, again.lines, again.errors) == (0, [], "")
        assert picture() == after
        assert guest.run("status").lines == ["all is in place"]

        down = guest.run("down")
        assert (down.status, down.errors) == (0, "")
        assert picture() == before
        assert os.listdir(guest.root / "run") == []

    test()


@every_shell
def test_what_the_guests_own_configuration_made_is_taken_for_its_own(
    tmp_path: Path, shell: str
) -> None:
    """What of it is no longer wanted goes; what nobody has said stays."""

    @in_own_network
    def test() -> None:
        network()
        guest = Guest(tmp_path / "guest", shell, ("ip", *FILTERS["nft"]))
        before = picture()
        sh(f"""
            ip addr add {V4}/32 dev lo
            ip addr add 192.0.2.11/32 dev lo
            ip route add default via 10.0.0.1 dev eth0 table 731
            ip rule add from 10.0.0.11 table 731 priority 731
        """)
        former = guest.root / "former"
        lines = (f"address {V4} lo", "route 4 10.0.0.1 eth0 731", "rule 4 from 10.0.0.11 731")
        former.write_text("\n".join(("xenlb 1", *lines, "address 192.0.2.99 lo")) + "\n")
        assert guest.run("adopt", str(former)).status == 0
        guest.settings("address 192.0.2.12 lo")
        up = guest.run("up")
        assert (up.status, up.errors) == (0, "")
        assert addresses("lo") == {"127.0.0.1/8", "::1/128", "192.0.2.11/32", "192.0.2.12/32"}
        sh("ip addr del 192.0.2.11/32 dev lo")
        guest.run("down")
        assert picture() == before

    test()


@every_shell
def test_sysctls_of_a_boot_before_this_one(tmp_path: Path, shell: str) -> None:
    """Set by the guest's own configuration, they are what they were before the first apply."""
    former = "\n".join(("xenlb 1", *SILENT, "sysctl net/ipv4/conf/eth0/rp_filter 2", ""))

    @in_own_network
    def test() -> None:
        network()
        guest = Guest(tmp_path / "guest", shell)
        state = guest.root / "var/lib/xenlb"
        state.mkdir(parents=True)
        before = {name: sysctl(name) for name in ("all/arp_ignore", "all/arp_announce")}
        guest.settings(*SILENT)
        assert guest.run("up").status == 0
        after = {name: sysctl(name) for name in before}
        assert after == {"all/arp_ignore": "1", "all/arp_announce": "2"} != before
        # Another boot, in which sysctl.d has set them, and one that is somebody else's.
        (guest.root / "run/xenlb-guest.state").unlink()
        sh("sysctl -q -w net.ipv4.conf.eth0.rp_filter=2")
        (guest.root / "former").write_text(former)
        guest.run("adopt", str(guest.root / "former"))
        # One is wanted otherwise now; what it was before the first apply is remembered still.
        guest.settings("sysctl net/ipv4/conf/all/arp_ignore 2")
        assert guest.run("up").status == 0
        assert (sysctl("all/arp_ignore"), sysctl("all/arp_announce")) == (
            "2",
            before["all/arp_announce"],
        )
        (guest.root / "run/xenlb-guest.state").unlink()
        guest.settings("sysctl net/ipv4/conf/all/arp_ignore 1")
        assert guest.run("up").status == 0
        assert guest.run("down").status == 0
        assert {name: sysctl(name) for name in before} == before
        assert sysctl("eth0/rp_filter") == "2"
        assert list(state.iterdir()) == []

    test()


@every_shell
def test_settings_that_change(tmp_path: Path, shell: str) -> None:
    @in_own_network
    def test() -> None:
        network()
        guest = Guest(tmp_path / "guest", shell, ("ip", "nft"))
        sh(f"{tool('nft')} add table inet theirs")
        before = picture()
        guest.settings(*SILENT, *MARKED, *ADDRESSES)
        guest.run("up")
        guest.settings(
            SILENT[0].replace(" 1", " 2"),
            "route 4 10.0.0.2 eth0 731",
            "rule 4 from 10.0.0.11 731",
            f"clamp {V4} 1400",
            ADDRESSES[1],
        )
        changed = guest.run("up")
        assert (changed.status, changed.errors) == (0, "")
        assert {each for each in changed.lines if each.startswith("done")} == {
            "done: sysctl net/ipv4/conf/all/arp_ignore 2",
            "done: route 4 10.0.0.2 eth0 731",
            "done: the rules for marks and clamps (nft)",
        }
        assert sysctl("all/arp_ignore") == "2"
        assert sysctl("all/arp_announce") == "0"
        assert sh("ip route show table 731").split() == [
            "default",
            "via",
            "10.0.0.2",
            "dev",
            "eth0",
        ]
        assert sh("ip -6 route show table all").count("fd00:10::1 ") == 0
        assert addresses("lo") == {"127.0.0.1/8", "::1/128", f"{V6}/128"}
        rules = sh(f"{tool('nft')} list table inet xenlb")
        assert "1400" in rules
        assert "eth0" not in rules

        guest.settings()
        assert guest.run("up").status == 0
        assert picture() == before

    test()


def test_what_was_there_before_stays(tmp_path: Path) -> None:
    @in_own_network
    def test() -> None:
        network()
        sh(f"ip addr add {V4}/32 dev lo")
        sh("ip rule add from 10.0.0.11 table 731 priority 731")
        Path("/proc/sys/net/ipv4/conf/all/arp_ignore").write_text("1")
        before = picture()
        guest = Guest(tmp_path / "guest")
        guest.settings(*SILENT, "rule 4 from 10.0.0.11 731", *ADDRESSES)
        assert guest.run("up").lines == [f"done: {SILENT[1]}", f"done: {ADDRESSES[1]}"]
        # Somebody's later value is not ours to undo either.
        Path("/proc/sys/net/ipv4/conf/all/arp_announce").write_text("1")
        guest.run("down")
        Path("/proc/sys/net/ipv4/conf/all/arp_announce").write_text("0")
        assert picture() == before

    test()


@every_shell
def test_a_line_that_fails_does_not_hold_up_the_others(tmp_path: Path, shell: str) -> None:
    @in_own_network
    def test() -> None:
        network()
        guest = Guest(tmp_path / "guest", shell)
        guest.settings(
            "sysctl net/ipv4/conf/eth7/rp_filter 0",
            "tunnel nosuch0 ipip no_such_module any",
            "route 4 10.9.9.9 eth0 731",
            "no-tx-checksums eth0",
            f"address {V4} eth7",
            ADDRESSES[1],
        )
        up = guest.run("up")
        assert (up.status, up.errors) == (1, "")
        assert up.lines[0] == f"done: {ADDRESSES[1]}"
        assert [each.partition(": ")[2].partition(": ")[0] for each in up.lines[1:]] == [
            "tunnel nosuch0 ipip no_such_module any",
            "sysctl net/ipv4/conf/eth7/rp_filter 0",
            "route 4 10.9.9.9 eth0 731",
            "no-tx-checksums eth0",
            f"address {V4} eth7",
        ]
        for words in ("no /proc/sys/net/ipv4/conf/eth7", "no ethtool", "eth7"):
            assert any(words in each for each in up.lines), words
        status = guest.run("status")
        assert status.status == 1
        assert f"missing: address {V4} eth7" in status.lines
        assert len(status.lines) == 5

    test()


REFUSED = (
    "sysctl net/../kernel/hostname 1",
    "sysctl kernel/panic 1",
    "sysctl /net/ipv4/ip_forward 1",
    "sysctl net/ipv4/ip_forward 01",
    "sysctl net/ipv4/ip_forward",
    "tunnel x vti x any",
    "tunnel -x ipip ipip any",
    "tunnel x ipip ../evil any",
    "tunnel name-of-16-chars ipip ipip any",
    "gue 5 80",
    "gue 4 65536",
    "route 4 fd00::1 eth0 7",
    "route 6 10.0.0.1 eth0 7",
    "rule 4 to 10.0.0.1 7",
    "rule 4 mark 0x7 7",
    "mark eth0 icmp any 7",
    "mark eth/0 tcp any 7",
    "clamp 1.2.3.4 0",
    "address 1.2.3 lo",
    "address 1.2.3.4/24 lo",
    "address 2001:DB8::1 lo",
    "address --help lo",
    "address 1.2.3.4 lo lo",
    "up",
    "reboot now",
)


@pytest.mark.parametrize("shell", ["dash", "bash"])  # busybox would take its own ip
def test_lines_that_are_not_understood(tmp_path: Path, shell: str) -> None:
    """Each is said, with its words; no program sees any of them."""
    (tmp_path / "ip").write_text(f"#!/bin/sh\necho $@ >>{tmp_path}/called\n")
    (tmp_path / "ip").chmod(0o755)
    guest = Guest(tmp_path / "guest", shell, ())
    (guest.root / "bin/ip").symlink_to(tmp_path / "ip")
    up = guest.run("up", "-", given="\n".join(["xenlb 1", *REFUSED]))
    assert (up.status, up.errors) == (1, "")
    assert up.lines == [
        f"standard input, line {n} is invalid: {each}" for n, each in enumerate(REFUSED, 2)
    ]
    assert (tmp_path / "called").read_text() == "addr show\n"


HOSTILE = st.one_of(
    st.text(max_size=60),
    st.sampled_from(["$(touch {})", "`touch {}`", "; touch {}", "' ; touch {} #", "\ntouch {}\n",
                     "|touch {}", "\x1b[2J", "address $(touch {}) lo", "hold secret=$(touch {})",
                     "sysctl net/ipv4/$(touch {}) 1", "mark eth0;touch tcp 25 1", "@etc", "*",
                     "address " + "1" * 10_000 + " lo", "x" * 10_000, "hold " + "y" * 10_000,
                     "xenlb 2", "END", "\0", "address 192.0.2.66 lo\r"]),
)  # fmt: skip


@every_shell
def test_hostile_lines(tmp_path: Path, shell: str) -> None:
    """Whatever stands between good lines: it is not run, and those apply."""
    canary = tmp_path / "canary"

    @in_own_network
    def test() -> None:
        network()
        guest = Guest(tmp_path / "guest", shell)
        (guest.root / "bin/touch").symlink_to(tool("touch"))

        @settings(
            max_examples=often(10, soak=100),
            deadline=None,
            database=None,
            suppress_health_check=[HealthCheck.function_scoped_fixture],
        )
        @given(st.lists(HOSTILE, min_size=1, max_size=6))
        def lines(hostile: list[str]) -> None:
            text = "\n".join(each.replace("{}", str(canary)) for each in hostile)
            text = f"xenlb 1\n{ADDRESSES[0]}\n{text}\n{ADDRESSES[1]}\n"
            guest.conf.write_bytes(text.encode(errors="replace"))
            up = guest.run("up")
            assert {f"{V4}/32", f"{V6}/128"} < addresses("lo")
            assert "192.0.2.66/32" not in addresses("lo")
            assert not canary.exists()
            assert all(each.isprintable() and len(each) < 300 for each in up.lines)
            guest.run("down")

        lines()

    test()


@every_shell
def test_settings_of_another_version(tmp_path: Path, shell: str) -> None:
    """They are refused as a whole, and so is half a file; what was good before stays."""

    @in_own_network
    def test() -> None:
        network()
        guest = Guest(tmp_path / "guest", shell)
        missing = guest.run("up")
        assert (missing.status, missing.lines) == (1, ["there are no settings"])
        guest.settings(ADDRESSES[0])
        assert guest.run("up").status == 0
        for text in (f"xenlb 2\n{ADDRESSES[1]}\n", "", ADDRESSES[1]):
            guest.conf.write_text(text)
            up = guest.run("up")
            assert up.status == 1
            assert up.lines == [
                f"{guest.conf}: not settings of version 1; the former settings stay"
            ]
            assert f"{V4}/32" in addresses("lo")
            assert f"{V6}/128" not in addresses("lo")
        sh(f"ip addr del {V4}/32 dev lo")
        assert guest.run("up").lines[0] == f"done: {ADDRESSES[0]}"

    test()


@every_shell
def test_the_settings_of_the_hold_come_along(tmp_path: Path, shell: str) -> None:
    guest = Guest(tmp_path / "guest", shell)
    hold = guest.root / "etc/xenlb-hold.conf"
    guest.settings("hold tell=xenstore", "hold watch=192.0.2.10 25", "hold timeout=`id`")
    up = guest.run("up")
    assert up.lines == [
        "done: the settings of the hold",
        f"{guest.conf}, line 4 has invalid characters",
    ]
    assert hold.read_text() == "tell=xenstore\nwatch=192.0.2.10 25\n"
    assert hold.stat().st_mode & 0o777 == 0o600
    written = hold.stat().st_ino
    guest.run("up")
    assert hold.stat().st_ino == written, "it is written only where it changes"


def test_every_source_adds_its_own(tmp_path: Path) -> None:
    @in_own_network
    def test() -> None:
        network()
        guest = Guest(tmp_path / "guest")
        guest.settings(ADDRESSES[0])
        raw = guest.root / "sys/firmware/qemu_fw_cfg/by_name/opt/org.xenlb/settings/raw"
        raw.parent.mkdir(parents=True)
        raw.write_text(f"xenlb 1\n{ADDRESSES[1]}\nsysctl net/ipv4/conf/all/arp_ignore 1")
        assert guest.run("up").status == 0
        assert {f"{V4}/32", f"{V6}/128"} < addresses("lo")
        guest.settings("sysctl net/ipv4/conf/all/arp_ignore 2")
        (said,) = [each for each in guest.run("up").lines if "conflicts with" in each]
        assert said.startswith(f"{raw}, line 3 ")

    test()


def parts(serial: str, *texts: str) -> dict[str, str]:
    values = {"vm-data/xenlb/serial": serial, "vm-data/xenlb/parts": str(len(texts))}
    return values | {f"vm-data/xenlb/{n}": text for n, text in enumerate(texts)}


@every_shell
def test_settings_from_xenstore(tmp_path: Path, shell: str) -> None:
    @in_own_network
    def test() -> None:
        network()
        guest = Guest(tmp_path / "guest", shell)
        filler = "# " + "x" * 180 + "\n"
        first = "xenlb 1\n" + filler * 15 + "\n"
        store = Xenstored(guest, parts("a1", first, ADDRESSES[0] + "\n"))
        try:
            up = guest.run("up")
            assert (up.status, up.lines, up.errors) == (0, [f"done: {ADDRESSES[0]}"], "")
            assert store.asked == [
                *(f"vm-data/xenlb/{each}" for each in ("serial", "parts", "0", "1", "serial")),
                "data/xenlb-guest = a1 ok",
            ]
            store.values |= parts("a2", f"xenlb 1\naddress {V6} eth9\n")
            assert guest.run("up").status == 1
            assert store.asked[-1] == "data/xenlb-guest = a2 failed"
            assert f"{V4}/32" not in addresses("lo")
            # Half written: of three parts there is one.
            store.values |= parts("a3", f"xenlb 1\n{ADDRESSES[0]}\n") | {"vm-data/xenlb/parts": "3"}
            del store.values["vm-data/xenlb/1"]
            assert "the settings are incomplete" in "".join(guest.run("up").lines)
            # None: what is made stays until `down`.
            del store.values["vm-data/xenlb/serial"]
            guest.settings(ADDRESSES[1])
            assert guest.run("up").status == 0
            assert addresses("lo") == {"127.0.0.1/8", "::1/128", f"{V6}/128"}
        finally:
            store.close()

    test()


def stop(process: "subprocess.Popen[str]") -> list[str]:
    process.send_signal(signal.SIGTERM)
    out, errors = process.communicate(timeout=10)
    assert (process.returncode, errors) == (0, "")
    return [each.removeprefix("xenlb-guest: ") for each in out.splitlines()]


@every_shell
def test_watch_keeps_it_so(tmp_path: Path, shell: str) -> None:
    @in_own_network
    def test() -> None:
        network()
        guest = Guest(tmp_path / "guest", shell, ("ip", "nft"))
        guest.settings("route 4 10.0.0.1 eth0 731", f"clamp {V4} 1440", f"address {V4} dum0")
        store = Xenstored(guest, {})
        watch = guest.start("watch")
        try:
            # An interface that comes later, as at boot.
            assert watch.stdout
            first = ""
            while "failed: " not in first:
                first = watch.stdout.readline()
            sh("ip link add dum0 type veth peer name dum1")
            sh("ip link set dum0 addrgenmode none")
            sh("ip link set dum0 up")
            until(lambda: f"{V4}/32" in addresses("dum0"), "the address")
            sh("ip addr flush dev dum0")
            sh(f"{tool('nft')} flush ruleset")
            sh("ip link set eth0 down")
            sh("ip link set eth0 up")
            until(lambda: f"{V4}/32" in addresses("dum0"), "the address again")
            until(lambda: "1440" in sh(f"{tool('nft')} list ruleset"), "the rules again")
            until(lambda: "10.0.0.1" in sh("ip route show table all"), "the route again")
            guest.settings("route 4 10.0.0.1 eth0 731", f"clamp {V4} 1440", f"address {V4} lo")
            until(lambda: f"{V4}/32" in addresses("lo"), "the new settings")
            store.values |= parts("b7", f"xenlb 1\n{ADDRESSES[1]}\n")
            until(lambda: "data/xenlb-guest" in store.values, "the new serial")
            assert store.values["data/xenlb-guest"] == "b7 ok"
            quiet = picture()
            time.sleep(1)
        finally:
            lines = stop(watch)
            store.close()
        assert picture() == quiet
        assert lines.count(f"done: address {V4} dum0") == 2
        assert lines.count("done: the rules for marks and clamps (nft)") == 1
        assert lines.count("done: route 4 10.0.0.1 eth0 731") == 1
        assert lines[-3:] == [
            f"removed: address {V4} dum0",
            f"done: address {V4} lo",
            f"done: {ADDRESSES[1]}",
        ]
        assert not [each for each in lines if each.startswith("failed: ")], "said once"

    test()


def net_tools() -> bool:
    return Path("/usr/sbin/ifconfig").exists() or Path("/sbin/ifconfig").exists()


@pytest.mark.parametrize("ifconfig", ["busybox", "net-tools"])
def test_a_guest_without_ip(tmp_path: Path, ifconfig: str) -> None:
    if ifconfig == "net-tools" and not net_tools():
        lacking("net-tools is not installed here")

    @in_own_network
    def test() -> None:
        network()
        before = picture()
        guest = Guest(tmp_path / "guest", "dash", ())
        link = "/usr/bin/busybox" if ifconfig == "busybox" else tool("ifconfig")
        (guest.root / "bin/ifconfig").symlink_to(link)
        guest.settings(*SILENT, "rule 4 from 10.0.0.11 731", *ADDRESSES, "address 192.0.2.11 lo")
        up = guest.run("up")
        assert [each for each in up.lines if not each.startswith("done")] == [
            "failed: rule 4 from 10.0.0.11 731: this guest has no ip (iproute2)"
        ]
        assert {f"{V4}/32", f"{V6}/128", "192.0.2.11/32"} < addresses("lo")
        again = guest.run("up")
        assert not [each for each in again.lines if each.startswith("done")]
        guest.run("down")
        assert picture() == before

    test()


def test_many_at_once_keep_one_record(tmp_path: Path) -> None:
    """An `up` by hand while the watch does the same; and one of them was killed in the middle."""

    @in_own_network
    def test() -> None:
        network()
        before = picture()
        guest = Guest(tmp_path / "guest")
        dead = guest.start("status")
        dead.communicate()
        (guest.root / "run/xenlb-guest.lock").mkdir()
        (guest.root / "run/xenlb-guest.lock/pid").write_text(f"{dead.pid}\n")
        guest.settings(*SILENT, *ADDRESSES, *(f"address 192.0.2.{n} lo" for n in range(20, 40)))
        running = [guest.start("up") for _ in range(12)]
        said = [each.communicate(timeout=60) for each in running]
        assert [each.returncode for each in running] == [0] * 12, said
        assert sum(out.count("done:") for out, _ in said) == 24
        guest.run("down")
        assert picture() == before

    test()


def test_checksums(tmp_path: Path) -> None:
    @in_own_network
    def test() -> None:
        network()
        guest = Guest(tmp_path / "guest", "dash", ("ip", "ethtool"))
        guest.settings("no-tx-checksums eth0")
        assert guest.run("up").status == 0
        assert "tx-checksumming: off" in sh(f"{tool('ethtool')} -k eth0")
        assert guest.run("up").lines == []
        guest.run("down")
        assert "tx-checksumming: on" in sh(f"{tool('ethtool')} -k eth0")

    test()


def test_a_record_of_another_boot_is_not_believed(tmp_path: Path) -> None:
    """/var/run is not emptied by every boot; addresses are."""

    @in_own_network
    def test() -> None:
        network()
        sh(f"ip addr add {V4}/32 dev lo")
        guest = Guest(tmp_path / "guest")
        (guest.root / "run/xenlb-guest.state").write_text(f"boot 1234\nmade {ADDRESSES[0]}\n")
        guest.run("down")
        assert f"{V4}/32" in addresses("lo")

    test()


@every_shell
def test_the_init_script(tmp_path: Path, shell: str) -> None:
    @in_own_network
    def test() -> None:
        network()
        guest = Guest(tmp_path / "guest", shell, ("ip",))
        (guest.root / "var/lock/subsys").mkdir(parents=True)
        guest.settings(ADDRESSES[0])
        script = Path(guest.argv[-1])
        argv = [*SHELLS[shell], str(script.with_name("xenlb-guest.init"))]
        environment = {
            "PATH": str(guest.root / "bin"),
            "XENLB_GUEST_ROOT": str(guest.root),
            "XENLB_GUEST_SCRIPT": str(script),
        }

        def init(verb: str) -> int:
            return subprocess.run(
                [*argv, verb], env=environment, timeout=30, check=False, capture_output=True
            ).returncode

        try:
            assert init("status") == 3
            for _ in range(2):
                assert init("start") == 0
                until(lambda: f"{V4}/32" in addresses("lo"), "the address")
            until(lambda: init("status") == 0, "that it runs")
        finally:
            assert init("stop") == 0
        assert f"{V4}/32" in addresses("lo")
        assert init("status") == 3
        assert os.listdir(guest.root / "var/lock/subsys") == []

    test()
