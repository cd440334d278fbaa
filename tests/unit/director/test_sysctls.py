"""Which sysctls the services need, and setting them: in a folder that looks like /proc/sys."""

import logging
import os
import socket
import struct
import time
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest

from tests.unit.director.netns import in_own_network, sh
from xenlb.director import sysctls
from xenlb.director.sysctls import (
    Scope,
    SysctlFinding,
    SysctlRequirement,
    apply,
    required_sysctls,
)
from xenlb.ipvs.table import Family, Forwarding
from xenlb.model.settings import Director, Port, ServiceSettings, Settings, SysctlPolicy

NEW = (6, 1)
VIP = IPv4Address("192.0.2.10")


def settings(
    *forwardings: Forwarding, persistence: int | None = None, v6: bool = False
) -> Settings:
    return Settings(
        director=Director(interface="eth0.7"),
        services=tuple(
            ServiceSettings(
                name=f"s{number}",
                address=IPv6Address("2001:db8::10") if v6 else VIP,
                family=Family.INET6 if v6 else Family.INET,
                ports=(Port(number=80 + number),),
                forwarding=forwarding,
                persistence=persistence,
            )
            for number, forwarding in enumerate(forwardings)
        ),
    )


def values(needs: tuple[SysctlRequirement, ...]) -> dict[str, int]:
    assert all(need.why for need in needs)
    return {need.name: need.value for need in needs}


MASQUERADE = {
    "net.ipv4.vs.expire_nodest_conn": 1,
    "net.ipv4.vs.conn_reuse_mode": 1,
    "net.ipv4.ip_forward": 1,
}


def test_without_services_nothing_is_required() -> None:
    assert required_sysctls(Settings(), NEW, forwards=True) == ()


def test_masquerading() -> None:
    assert values(required_sysctls(settings(Forwarding.MASQUERADE), NEW)) == MASQUERADE


def test_masquerading_ipv6() -> None:
    assert values(required_sysctls(settings(Forwarding.MASQUERADE, v6=True), NEW)) == {
        "net.ipv4.vs.expire_nodest_conn": 1,
        "net.ipv4.vs.conn_reuse_mode": 1,
        "net.ipv6.conf.all.forwarding": 1,
    }


def test_router_advertisements_are_accepted_before_forwarding() -> None:
    masqueraded = settings(Forwarding.MASQUERADE, v6=True)
    needs = required_sysctls(masqueraded, NEW, advertised_interfaces={"eth0.7", "br0"})
    assert [(need.name, need.value) for need in needs[2:]] == [
        ("net.ipv6.conf.br0.accept_ra", 2),
        ("net.ipv6.conf.eth0/7.accept_ra", 2),
        ("net.ipv6.conf.all.forwarding", 1),
    ]
    assert needs[-1].command == (
        "sysctl -w net.ipv6.conf.br0.accept_ra=2 net.ipv6.conf.eth0/7.accept_ra=2"
        " net.ipv6.conf.all.forwarding=1"
    )
    four = required_sysctls(settings(Forwarding.MASQUERADE), NEW, advertised_interfaces={"eth0"})
    assert "accept_ra" not in str(values(four))


def test_old_kernels_delay_reused_ports_in_mode_1() -> None:
    needs = values(required_sysctls(settings(Forwarding.MASQUERADE), (5, 8)))
    assert needs == MASQUERADE | {"net.ipv4.vs.conn_reuse_mode": 0}


def test_persistent_services() -> None:
    needs = values(required_sysctls(settings(Forwarding.MASQUERADE, persistence=300), NEW))
    assert needs == MASQUERADE | {"net.ipv4.vs.expire_quiescent_template": 1}


@pytest.mark.parametrize("method", [Forwarding.GATEWAYING, Forwarding.TUNNEL])
def test_replies_that_pass_through_this_host(method: Forwarding) -> None:
    ipvs_only = values(required_sysctls(settings(method), NEW))
    # 3: their connections' ends are seen from one side only.
    assert ipvs_only == {
        "net.ipv4.vs.expire_nodest_conn": 1,
        "net.ipv4.vs.conn_reuse_mode": 3,
    }
    assert values(required_sysctls(settings(method), (5, 8)))["net.ipv4.vs.conn_reuse_mode"] == 0
    forwards = required_sysctls(settings(method), NEW, forwards=True, server_interfaces={"xenbr1"})
    assert values(forwards) == ipvs_only | {
        "net.ipv4.conf.all.rp_filter": 0,
        "net.ipv4.conf.xenbr1.accept_local": 1,
        "net.ipv4.conf.xenbr1.rp_filter": 0,
    }
    routed = {
        "net.ipv4.conf.eth0/7.accept_local": 1,
        "net.ipv4.conf.eth0/7.rp_filter": 0,
        "net.ipv4.conf.all.rp_filter": 0,
    }
    assert values(required_sysctls(settings(method), NEW, forwards=True)) == ipvs_only | routed
    both = values(required_sysctls(settings(method, Forwarding.MASQUERADE), NEW))
    assert both == MASQUERADE | ipvs_only | routed


@pytest.mark.parametrize(
    ("release", "version"),
    [("6.1.0-31-amd64", (6, 1)), ("5.10", (5, 10)), ("4.19.0+", (4, 19)), ("strange", (0, 0))],
)
def test_kernel_version(release: str, version: tuple[int, int]) -> None:
    assert sysctls.kernel_version(release) == version


class Proc:
    """A folder that looks like /proc/sys, and where `sysctls: apply` would write."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "sys"
        self.persisted = folder / "sysctl.d" / "90-xenlb.conf"
        self.persisted.parent.mkdir()
        for name, value in {
            "net/ipv4/vs/expire_nodest_conn": 0,
            "net/ipv4/vs/expire_quiescent_template": 0,
            "net/ipv4/vs/conn_reuse_mode": 1,
            "net/ipv4/vs/conntrack": 0,
            "net/ipv4/ip_forward": 0,
            "net/ipv4/conf/all/rp_filter": 0,
            "net/ipv4/conf/eth0.7/rp_filter": 2,
            "net/ipv4/conf/eth0.7/accept_local": 0,
        }.items():
            self.file(name).parent.mkdir(parents=True, exist_ok=True)
            self.file(name).write_text(f"{value}\n")

    def file(self, name: str) -> Path:
        return self.root / name

    def all(self) -> dict[str, str]:
        return {
            str(file.relative_to(self.root)): file.read_text().strip()
            for file in self.root.rglob("*")
            if file.is_file()
        }

    def apply(
        self, policy: SysctlPolicy, needs: tuple[SysctlRequirement, ...]
    ) -> sysctls.SysctlOutcome:
        return apply(needs, policy, root=self.root, file=self.persisted)


@pytest.fixture
def proc(tmp_path: Path) -> Proc:
    return Proc(tmp_path)


BOTH = required_sysctls(
    settings(Forwarding.MASQUERADE, Forwarding.GATEWAYING, persistence=300), NEW
)


def test_ipvs_sets_those_of_ipvs_and_reports_the_rest(
    proc: Proc, caplog: pytest.LogCaptureFixture
) -> None:
    before = proc.all()
    with caplog.at_level(logging.INFO):
        outcome = proc.apply(SysctlPolicy.IPVS, BOTH)
    assert proc.all() == before | {
        "net/ipv4/vs/expire_nodest_conn": "1",
        "net/ipv4/vs/expire_quiescent_template": "1",
        "net/ipv4/vs/conn_reuse_mode": "3",
    }
    assert [(change.required.name, change.old) for change in outcome.changes] == [
        ("net.ipv4.vs.expire_nodest_conn", 0),
        ("net.ipv4.vs.expire_quiescent_template", 0),
        ("net.ipv4.vs.conn_reuse_mode", 1),
    ]
    assert [record.message for record in caplog.records] == [str(c) for c in outcome.changes]
    assert caplog.records[0].message.startswith("net.ipv4.vs.expire_nodest_conn: 0 → 1 (so that")
    assert [(f.name, f.value, f.required, f.fix) for f in outcome.findings] == [
        ("net.ipv4.ip_forward", 0, 1, "sysctl -w net.ipv4.ip_forward=1"),
        (
            "net.ipv4.conf.eth0/7.accept_local",
            0,
            1,
            "sysctl -w net.ipv4.conf.eth0/7.accept_local=1",
        ),
        ("net.ipv4.conf.eth0/7.rp_filter", 2, 0, "sysctl -w net.ipv4.conf.eth0/7.rp_filter=0"),
    ]
    assert not proc.persisted.exists()
    again = proc.apply(SysctlPolicy.IPVS, BOTH)
    assert again == sysctls.SysctlOutcome(findings=outcome.findings)


def test_check_sets_nothing(proc: Proc) -> None:
    before = proc.all()
    outcome = proc.apply(SysctlPolicy.CHECK, BOTH)
    assert proc.all() == before
    assert outcome.changes == ()
    assert len(outcome.findings) == 6
    assert not proc.persisted.exists()


def test_apply_sets_and_persists_all(proc: Proc) -> None:
    before = proc.all()
    outcome = proc.apply(SysctlPolicy.APPLY, BOTH)
    assert outcome.findings == ()
    assert len(outcome.changes) == 6
    assert proc.all() == before | {
        "net/ipv4/vs/expire_nodest_conn": "1",
        "net/ipv4/vs/expire_quiescent_template": "1",
        "net/ipv4/vs/conn_reuse_mode": "3",
        "net/ipv4/ip_forward": "1",
        "net/ipv4/conf/eth0.7/rp_filter": "0",
        "net/ipv4/conf/eth0.7/accept_local": "1",
    }
    text = proc.persisted.read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert lines == [f"-{need.name} = {need.value}" for need in BOTH]
    assert os.listdir(proc.persisted.parent) == [proc.persisted.name]

    inode = proc.persisted.stat().st_ino
    assert proc.apply(SysctlPolicy.APPLY, BOTH) == sysctls.SysctlOutcome()
    assert proc.persisted.stat().st_ino == inode, "not written again"


def test_a_folder_that_is_not_there_is_a_finding(proc: Proc) -> None:
    proc.persisted.parent.rmdir()
    (finding,) = proc.apply(SysctlPolicy.APPLY, BOTH).findings
    assert finding.name == str(proc.persisted)
    assert finding.error == "no such file or directory"


def test_an_accepted_other_value_is_left(proc: Proc) -> None:
    proc.file("net/ipv4/vs/conn_reuse_mode").write_text("3\n")
    proc.apply(SysctlPolicy.APPLY, BOTH)
    assert proc.file("net/ipv4/vs/conn_reuse_mode").read_text() == "3\n"


def test_no_ipvs_is_one_finding(proc: Proc) -> None:
    for file in proc.file("net/ipv4/vs").iterdir():
        file.unlink()
    proc.file("net/ipv4/vs").rmdir()
    outcome = proc.apply(SysctlPolicy.IPVS, required_sysctls(settings(Forwarding.GATEWAYING), NEW))
    (finding,) = outcome.findings
    assert str(finding) == (
        "net.ipv4.vs is missing; this kernel has no IPVS, or its module is not loaded"
        " (modprobe ip_vs)"
    )


def test_a_sysctl_that_the_kernel_does_not_have(proc: Proc) -> None:
    proc.file("net/ipv4/vs/conn_reuse_mode").unlink()
    outcome = proc.apply(SysctlPolicy.APPLY, BOTH)
    assert [(f.name, f.value) for f in outcome.findings] == [("net.ipv4.vs.conn_reuse_mode", None)]


@in_own_network
def test_the_kernel_and_a_value_that_it_refuses(tmp_path: Path) -> None:
    """The kernel's own /proc/sys/net of a name space; a value that it does not take."""
    assert sysctls.read_sysctl("net.ipv4.conf.lo.accept_local") == 0
    needs = tuple(
        SysctlRequirement(name=f"net.ipv4.conf.{name}", value=value, why="so")
        for name, value in (("lo.accept_local", 1), ("lo.rp_filter", 1 << 40))
    )
    outcome = apply(needs, SysctlPolicy.APPLY, file=tmp_path / "90-xenlb.conf")
    assert [change.old for change in outcome.changes] == [0]
    assert sysctls.read_sysctl("net.ipv4.conf.lo.accept_local") == 1
    assert outcome.findings == (
        SysctlFinding(
            name="net.ipv4.conf.lo.rp_filter",
            value=sysctls.read_sysctl("net.ipv4.conf.lo.rp_filter"),
            required=1 << 40,
            why="so",
            fix=f"sysctl -w net.ipv4.conf.lo.rp_filter={1 << 40}",
            error="invalid argument",
        ),
    )


def advertise(prefix: str) -> None:
    """What a router at w0 sends: itself as default router for an hour, and the prefix."""
    header = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 3600, 0, 0)
    option = struct.pack("!BBBBIII", 3, 4, 64, 0xC0, 7200, 3600, 0)
    packed = option + IPv6Address(prefix).packed
    with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as router:
        router.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        router.sendto(header + packed, ("ff02::1", 0, 0, socket.if_nametoindex("w0")))


def default_route() -> str:
    return sh("ip -6 route show default")


@pytest.mark.parametrize("set_before", [True, False])
@in_own_network
def test_the_default_route_by_router_advertisement_stays(
    tmp_path: Path, *, set_before: bool
) -> None:
    sh("""
    ip link add v0 type veth peer name w0
    sysctl -qw net.ipv6.conf.v0.accept_ra_from_local=1
    sysctl -qw net.ipv6.conf.w0.accept_ra=0
    sysctl -qw net.ipv6.conf.v0.accept_dad=0
    sysctl -qw net.ipv6.conf.w0.accept_dad=0
    ip link set lo up
    ip link set v0 up
    ip link set w0 up
    """)
    for _ in range(100):
        with suppress(OSError):  # until w0 has its own address
            advertise("2001:db8::")
        if "proto ra" in default_route():
            break
        time.sleep(0.1)
    assert "dev v0 proto ra" in default_route()
    assert sysctls.router_advertisement_interfaces() == {"v0"}
    needs = required_sysctls(
        settings(Forwarding.MASQUERADE, v6=True),
        NEW,
        advertised_interfaces=sysctls.router_advertisement_interfaces(),
    )
    net = tuple(need for need in needs if need.scope is Scope.NET)
    if not set_before:  # as it was: this is what the fault looks like
        sh("sysctl -qw net.ipv6.conf.all.forwarding=1")
        assert default_route() == ""
        return
    outcome = apply(net, SysctlPolicy.APPLY, file=tmp_path / "90-xenlb.conf")
    assert outcome.findings == ()
    assert [change.required.name for change in outcome.changes] == [
        "net.ipv6.conf.v0.accept_ra",
        "net.ipv6.conf.all.forwarding",
    ]
    assert "dev v0 proto ra" in default_route()
    assert sysctls.router_advertisement_interfaces() == {"v0"}, "it is persisted the next time, too"


def test_an_unmet_first_requirement_leaves_the_sysctl(tmp_path: Path) -> None:
    conf = tmp_path / "net/ipv6/conf"
    for name in ("all", "v0"):
        (conf / name).mkdir(parents=True)
    (conf / "all/forwarding").write_text("0\n")
    (conf / "v0/accept_ra").mkdir()  # cannot be read or set
    needs = required_sysctls(
        settings(Forwarding.MASQUERADE, v6=True), NEW, advertised_interfaces={"v0"}
    )
    net = tuple(need for need in needs if need.scope is Scope.NET)
    outcome = apply(net, SysctlPolicy.APPLY, root=tmp_path, file=tmp_path / "conf")
    assert outcome.changes == ()
    assert (conf / "all/forwarding").read_text() == "0\n"
    assert "net.ipv6.conf.v0.accept_ra is not 2 yet" in str(outcome.findings[-1])
