"""The sysctls that services require: find out which, and set them.

Each sysctl that is set is logged with its old value. Each one that is not set is a finding for
`status`. Nothing is reset when a service goes or the agent stops: another program may rely on the
value meanwhile.

Names are those of sysctl(8): a dot in the name of an interface is written as a slash.
"""

import contextlib
import logging
import os
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from xenlb.ipvs.table import Family, Forwarding
from xenlb.model.settings import ServiceSettings, Settings, SysctlPolicy

log = logging.getLogger(__name__)

PROC_SYS = Path("/proc/sys")
ROUTES = Path("/proc/net/ipv6_route")
RTF_ADDRCONF = 0x40000
ACCEPT_ALWAYS = 2  # of accept_ra: also on a host that forwards
SYSCTL_FILE = Path("/etc/sysctl.d/90-xenlb.conf")
VS = "net.ipv4.vs"


class Scope(StrEnum):
    """What a sysctl affects: IPVS only, or all packets of this host."""

    IPVS = "ipvs"
    NET = "net"


@dataclass(frozen=True, slots=True)
class SysctlRequirement:
    """A sysctl, the value that the services require, and the reason.

    Values in `also` are accepted too. `first`: requirements that must be met before, or setting
    this one does harm.
    """

    name: str
    value: int
    why: str
    also: tuple[int, ...] = ()
    first: "tuple[SysctlRequirement, ...]" = ()

    @property
    def scope(self) -> Scope:
        """IPVS for the sysctls of net.ipv4.vs, else NET."""
        return Scope.IPVS if self.name.startswith(f"{VS}.") else Scope.NET

    @property
    def command(self) -> str:
        """The command that sets the value; it sets those of `first` before."""
        settings = (f"{sysctl.name}={sysctl.value}" for sysctl in (*self.first, self))
        return f"sysctl -w {' '.join(settings)}"

    def met_by(self, value: int | None) -> bool:
        """Whether a value is acceptable; None (the kernel has no such sysctl) is not."""
        return value == self.value or value in self.also


@dataclass(frozen=True, slots=True, kw_only=True)
class SysctlChange:
    """A sysctl that was set; `old` is its previous value."""

    required: SysctlRequirement
    old: int

    def __str__(self) -> str:
        return f"{self.required.name}: {self.old} → {self.required.value} ({self.required.why})"


@dataclass(frozen=True, slots=True)
class SysctlFinding:
    """A requirement that is not met, the reason for it, and the remedy.

    `value` is None if there is no such sysctl; `error` is why it could not be set.
    """

    name: str
    value: int | None
    required: int | None
    why: str
    fix: str
    error: str = ""

    def __str__(self) -> str:
        state = "missing" if self.value is None else f"{self.value}, should be {self.required}"
        error = f" and cannot be set: {self.error}" if self.error else ""
        return f"{self.name} is {state}{error}; {self.why} ({self.fix})"


@dataclass(frozen=True, slots=True, kw_only=True)
class SysctlOutcome:
    """What apply() set, and what it did not."""

    changes: tuple[SysctlChange, ...] = ()
    findings: tuple[SysctlFinding, ...] = ()


def required_sysctls(
    settings: Settings,
    kernel: tuple[int, int],
    *,
    forwards: bool = False,
    server_interfaces: Collection[str] = (),
    advertised_interfaces: Collection[str] = (),
) -> tuple[SysctlRequirement, ...]:
    """The sysctls that the services require on a kernel of that version (major, minor). Pure.

    `forwards`: whether this host forwards IPv4 packets already, and so may be the guests' gateway,
    which matters for gatewaying and tunnels. `server_interfaces`: those through which servers are
    reached; the default is the director's. `advertised_interfaces`: those with routes from router
    advertisements.
    """
    services = settings.services
    if not services:
        return ()
    required = list(_for_ipvs(services, kernel))
    masqueraded = {s.family for s in services if s.forwarding is Forwarding.MASQUERADE}
    reason = "with masquerading, this host forwards the servers' replies"
    if Family.INET in masqueraded:
        required.append(SysctlRequirement("net.ipv4.ip_forward", 1, reason))
        forwards = True
    if Family.INET6 in masqueraded:
        router_advertisements = tuple(_for_forwarding_ipv6(advertised_interfaces))
        required.extend(router_advertisements)
        required.append(
            SysctlRequirement(
                "net.ipv6.conf.all.forwarding", 1, reason, first=router_advertisements
            )
        )
    direct = any(
        s.family is Family.INET and s.forwarding in {Forwarding.GATEWAYING, Forwarding.TUNNEL}
        for s in services
    )
    if direct and forwards:
        interfaces = set(server_interfaces) or {settings.director.interface} - {None}
        required.extend(_for_gateway(sorted(str(name) for name in interfaces)))
    return tuple(required)


def _for_ipvs(
    services: Sequence[ServiceSettings], kernel: tuple[int, int]
) -> Iterator[SysctlRequirement]:
    yield SysctlRequirement(
        f"{VS}.expire_nodest_conn",
        1,
        "so that connections to a removed server are reset, not left hanging",
    )
    if any(service.persistence is not None for service in services):
        yield SysctlRequirement(
            f"{VS}.expire_quiescent_template",
            1,
            "a drained server gets no new connections of its persistent clients",
        )
    direct = any(service.forwarding is not Forwarding.MASQUERADE for service in services)
    if kernel >= (5, 9):
        # Bit 0: a new connection may replace one that has ended; bit 1: also one in FIN_WAIT, the
        # last state that the director sees if replies bypass it (is_new_conn_expected() in
        # ip_vs_core.c). Without bit 1 a reused client port stays with the drained server.
        yield SysctlRequirement(
            f"{VS}.conn_reuse_mode",
            3 if direct else 1,
            ("needed for draining with gatewaying or tunnels: " if direct else "so that ")
            + "a reused client port gets a new server",
            also=(3,),
        )
    else:
        yield SysctlRequirement(
            f"{VS}.conn_reuse_mode",
            0,
            "kernels before 5.9 drop the first packet from a reused client port, which costs a"
            " second",
        )


def _for_forwarding_ipv6(interfaces: Collection[str]) -> Iterator[SysctlRequirement]:
    """What keeps the IPv6 default route of a host that forwards.

    Such a host accepts router advertisements only with accept_ra=2. Otherwise the kernel drops the
    default routes from them at once (rt6_purge_dflt_routers()).
    """
    for interface in sorted(interfaces):
        yield SysctlRequirement(
            f"net.ipv6.conf.{interface.replace('.', '/')}.accept_ra",
            ACCEPT_ALWAYS,
            "otherwise a host that forwards IPv6 loses its own default route from router"
            " advertisements",
        )


def _for_gateway(interfaces: Sequence[str]) -> Iterator[SysctlRequirement]:
    """What a host requires if it is the guests' default gateway.

    The guests' replies come from a service address, an address of this host itself: martians. For
    rp_filter the maximum of `all` and the interface counts, for accept_local either.
    """
    why = (
        "replies from guests that use this host as gateway would be dropped: their source is the"
        " service address"
    )
    values = {"net.ipv4.conf.all.rp_filter": 0} if interfaces else {}
    for interface in interfaces:
        name = interface.replace(".", "/")
        values[f"net.ipv4.conf.{name}.accept_local"] = 1
        values[f"net.ipv4.conf.{name}.rp_filter"] = 0
    for key, value in values.items():
        yield SysctlRequirement(key, value, why)


def kernel_version(release: str | None = None) -> tuple[int, int]:
    """Major and minor of `uname -r`, by default of the running kernel."""
    match = re.match(r"(\d+)\.(\d+)", release or os.uname().release)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def read_sysctl(name: str, *, root: Path = PROC_SYS) -> int | None:
    """A sysctl's value; None if the kernel has no such sysctl now."""
    try:
        return int(_path(name, root).read_text())
    except (OSError, ValueError):
        return None


def router_advertisement_interfaces(
    *, routes: Path = ROUTES, root: Path = PROC_SYS
) -> frozenset[str]:
    """The interfaces that have an IPv6 route from router advertisements or always accept them."""
    interfaces = set()
    with contextlib.suppress(OSError):
        for line in routes.read_text().splitlines():
            *_, flags, interface = line.split()
            if int(flags, 16) & RTF_ADDRCONF:
                interfaces.add(interface)
    with contextlib.suppress(OSError):
        for folder in (root / "net/ipv6/conf").iterdir():
            if folder.name not in {"all", "default"}:
                with contextlib.suppress(OSError, ValueError):
                    if int((folder / "accept_ra").read_text()) == ACCEPT_ALWAYS:
                        interfaces.add(folder.name)
    return frozenset(interfaces)


def apply(
    required: Sequence[SysctlRequirement],
    policy: SysctlPolicy,
    *,
    root: Path = PROC_SYS,
    file: Path = SYSCTL_FILE,
) -> SysctlOutcome:
    """Set what the policy permits, and report the rest. May be called again.

    Without the module ip_vs there is no net.ipv4.vs, which is a finding.
    """
    changes: list[SysctlChange] = []
    findings: list[SysctlFinding] = []
    loaded = _path(VS, root).is_dir()
    if not loaded and any(need.scope is Scope.IPVS for need in required):
        findings.append(
            SysctlFinding(
                VS,
                None,
                None,
                "this kernel has no IPVS, or its module is not loaded",
                fix="modprobe ip_vs",
            )
        )
    for need in required:
        if need.scope is Scope.IPVS and not loaded:
            continue
        value = read_sysctl(need.name, root=root)
        if need.met_by(value):
            continue
        failure = ""
        to_set = policy is SysctlPolicy.APPLY or (
            policy is SysctlPolicy.IPVS and need.scope is Scope.IPVS
        )
        unmet = [
            sysctl
            for sysctl in need.first
            if not sysctl.met_by(read_sysctl(sysctl.name, root=root))
        ]
        if to_set and unmet:
            failure = f"{unmet[0].name} is not {unmet[0].value} yet"
        elif to_set and value is not None:
            try:
                _path(need.name, root).write_text(f"{need.value}\n")
            except OSError as error:
                failure = (error.strerror or str(error)).lower()
            else:
                changes.append(SysctlChange(required=need, old=value))
                log.info("%s", changes[-1])
                continue
        findings.append(
            SysctlFinding(need.name, value, need.value, need.why, need.command, failure)
        )
    if policy is SysctlPolicy.APPLY and (finding := _persist(required, file)) is not None:
        findings.append(finding)
    return SysctlOutcome(changes=tuple(changes), findings=tuple(findings))


def _path(name: str, root: Path) -> Path:
    return root / name.translate(str.maketrans("./", "/."))


def sysctl_file_text(required: Iterable[SysctlRequirement], *, by: str) -> str:
    """A file of sysctl.d for the next boot; `by`: the setting that causes it to be written."""
    lines = [f"# Written by xenlb ({by}); changes here are overwritten.\n"]
    # The minus ignores errors: at boot the module and the interface may not exist yet. udev sets
    # the sysctls of an interface when it appears, and the agent those of IPVS.
    lines.extend(f"# {sysctl.why}\n-{sysctl.name} = {sysctl.value}\n" for sysctl in required)
    return "\n".join(lines)


def _persist(required: Iterable[SysctlRequirement], file: Path) -> SysctlFinding | None:
    """Replace the file in one step if it differs; return a finding if that fails."""
    content = sysctl_file_text(required, by="director: {sysctls: apply}")
    new = file.with_name(f".{file.name}.new")
    try:
        with contextlib.suppress(FileNotFoundError):
            if file.read_text() == content:
                return None
        with new.open("w") as writing:
            writing.write(content)
            writing.flush()
            os.fsync(writing.fileno())
        new.replace(file)
    except OSError as error:
        return SysctlFinding(
            str(file),
            None,
            None,
            "the sysctls that were set are lost at the next reboot",
            fix="make it writable for the agent, or set them elsewhere and use sysctls: ipvs",
            error=(error.strerror or str(error)).lower(),
        )
    log.info("wrote %s", file)
    return None
