"""The sysctls that the services of a configuration need: which and why, and setting them.

`needed` is pure. `apply` follows `director.sysctls`: what it sets is logged, one line each, and
what it leaves is a finding for `status` and `doctor`. Nothing is set back when a service goes or
the agent stops: a sysctl may have become somebody else's need meanwhile, and the old value is in
the log and in what `apply` returns.

Names are those of sysctl(8): in the name of an interface, a dot is written as a slash.
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
HEED_ALWAYS = 2  # of accept_ra: also on a host that forwards
PERSISTED = Path("/etc/sysctl.d/90-xenlb.conf")
VS = "net.ipv4.vs"


class Scope(StrEnum):
    """Whose a sysctl is: of IPVS alone, or of everything this host does with packets."""

    IPVS = "ipvs"
    NET = "net"


@dataclass(frozen=True, slots=True, kw_only=True)
class SysctlRequirement:
    """A sysctl, the value that the services need, and why. Values in `also` do as well. `first`:
    what must be so before, or setting it does harm."""

    name: str
    value: int
    why: str
    scope: Scope
    also: tuple[int, ...] = ()
    first: "tuple[SysctlRequirement, ...]" = ()

    @property
    def command(self) -> str:
        every = (*self.first, self)
        return f"sysctl -w {' '.join(f'{need.name}={need.value}' for need in every)}"

    def met_by(self, value: int | None) -> bool:
        return value == self.value or value in self.also


@dataclass(frozen=True, slots=True, kw_only=True)
class SysctlChange:
    """A sysctl that was set; `old` is what it was before."""

    need: SysctlRequirement
    old: int

    def __str__(self) -> str:
        return f"{self.need.name}: {self.old} → {self.need.value} ({self.need.why})"


@dataclass(frozen=True, slots=True, kw_only=True)
class SysctlFinding:
    """Something that is not as needed, why that matters, and what cures it.

    `have` is None where there is no such sysctl; `trouble` is what was in the way of setting it.
    """

    name: str
    have: int | None
    want: int | None
    why: str
    fix: str
    trouble: str = ""

    def __str__(self) -> str:
        state = "missing" if self.have is None else f"{self.have}, should be {self.want}"
        trouble = f" and cannot be set: {self.trouble}" if self.trouble else ""
        return f"{self.name} is {state}{trouble}; {self.why} ({self.fix})"


@dataclass(frozen=True, slots=True, kw_only=True)
class SysctlOutcome:
    """What `apply` set, and what it left."""

    changes: tuple[SysctlChange, ...] = ()
    findings: tuple[SysctlFinding, ...] = ()


def needed(
    settings: Settings,
    kernel: tuple[int, int],
    *,
    forwards: bool = False,
    towards: Collection[str] = (),
    advertised: Collection[str] = (),
) -> tuple[SysctlRequirement, ...]:
    """What the services need on a kernel of that version (major, minor).

    `forwards`: does this host forward IPv4 packets already? It may then be the guests' gateway,
    which makes a difference for gatewaying and tunnels. `towards`: the interfaces by which the
    servers are reached (interface.towards); by default the director's. `advertised`: the interfaces
    on which this host has routes or addresses by router advertisement.
    """
    services = settings.services
    if not services:
        return ()
    needs = list(_of_ipvs(services, kernel))
    masqueraded = {s.family for s in services if s.forwarding is Forwarding.MASQUERADE}
    answers = "with masquerading, the servers' answers are forwarded by this host"
    if Family.INET in masqueraded:
        needs.append(
            SysctlRequirement(name="net.ipv4.ip_forward", value=1, why=answers, scope=Scope.NET)
        )
        forwards = True
    if Family.INET6 in masqueraded:
        heeded = tuple(_of_advertised(advertised))
        needs.extend(heeded)
        needs.append(
            SysctlRequirement(
                name="net.ipv6.conf.all.forwarding",
                value=1,
                why=answers,
                scope=Scope.NET,
                first=heeded,
            )
        )
    direct = any(
        s.family is Family.INET and s.forwarding in {Forwarding.GATEWAYING, Forwarding.TUNNEL}
        for s in services
    )
    if direct and forwards:
        interfaces = set(towards) or {settings.director.interface} - {None}
        needs.extend(_of_a_gateway(sorted(str(name) for name in interfaces)))
    return tuple(needs)


def _of_ipvs(
    services: Sequence[ServiceSettings], kernel: tuple[int, int]
) -> Iterator[SysctlRequirement]:
    yield SysctlRequirement(
        name=f"{VS}.expire_nodest_conn",
        value=1,
        why="so that connections to a removed server are reset, not left hanging",
        scope=Scope.IPVS,
    )
    if any(service.persistence is not None for service in services):
        yield SysctlRequirement(
            name=f"{VS}.expire_quiescent_template",
            value=1,
            why="a server that is drained gets no new connections of its persistent clients",
            scope=Scope.IPVS,
        )
    direct = any(service.forwarding is not Forwarding.MASQUERADE for service in services)
    if kernel >= (5, 9):
        # Bit 0: the entry of a connection that has ended; bit 1: also one in FIN_WAIT, which is all
        # that is seen of an end where the answers pass the director by (is_new_conn_expected() in
        # ip_vs_core.c). Without it a busy client's reused port goes on to the drained server.
        yield SysctlRequirement(
            name=f"{VS}.conn_reuse_mode",
            value=3 if direct else 1,
            also=(3,),
            why=("needed for draining with gatewaying or tunnels: " if direct else "so that ")
            + "a reused client port gets a new server",
            scope=Scope.IPVS,
        )
    else:
        yield SysctlRequirement(
            name=f"{VS}.conn_reuse_mode",
            value=0,
            why="kernels before 5.9 drop the first packet from a client's port that is used again,"
            " which costs a second",
            scope=Scope.IPVS,
        )


def _of_advertised(interfaces: Collection[str]) -> Iterator[SysctlRequirement]:
    """A host that forwards heeds router advertisements only with accept_ra=2, and the kernel drops
    the default routes of the others at once (rt6_purge_dflt_routers())."""
    for interface in sorted(interfaces):
        yield SysctlRequirement(
            name=f"net.ipv6.conf.{interface.replace('.', '/')}.accept_ra",
            value=2,
            why="a host that forwards IPv6 loses its own default route by router advertisement"
            " otherwise",
            scope=Scope.NET,
        )


def _of_a_gateway(interfaces: Sequence[str]) -> Iterator[SysctlRequirement]:
    """Where the guests' default gateway is this host, their answers come from a service address,
    an address of this host itself: martians. The kernel takes the maximum of `all` and the
    interface for rp_filter, and either for accept_local."""
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
        yield SysctlRequirement(name=key, value=value, why=why, scope=Scope.NET)


def kernel_version(release: str | None = None) -> tuple[int, int]:
    """Major and minor of `uname -r`, by default of the kernel that runs."""
    match = re.match(r"(\d+)\.(\d+)", release or os.uname().release)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def read(name: str, *, root: Path = PROC_SYS) -> int | None:
    """A sysctl's value; None if this kernel has none of that name (now)."""
    try:
        return int(_path(name, root).read_text())
    except (OSError, ValueError):
        return None


def advertised(*, routes: Path = ROUTES, root: Path = PROC_SYS) -> frozenset[str]:
    """The interfaces with an IPv6 route that the kernel has by router advertisement, and those that
    are made to heed them in any case."""
    found = set()
    with contextlib.suppress(OSError):
        for line in routes.read_text().splitlines():
            *_, flags, interface = line.split()
            if int(flags, 16) & RTF_ADDRCONF:
                found.add(interface)
    with contextlib.suppress(OSError):
        for folder in (root / "net/ipv6/conf").iterdir():
            if folder.name not in {"all", "default"}:
                with contextlib.suppress(OSError, ValueError):
                    if int((folder / "accept_ra").read_text()) == HEED_ALWAYS:
                        found.add(folder.name)
    return frozenset(found)


def apply(
    needs: Sequence[SysctlRequirement],
    policy: SysctlPolicy,
    *,
    root: Path = PROC_SYS,
    persisted: Path = PERSISTED,
) -> SysctlOutcome:
    """Sets what the policy says is to be set, and reports the rest. May be called again at will.

    The ip_vs module must be loaded by now: without it there is no net.ipv4.vs, and a finding says
    so.
    """
    changes: list[SysctlChange] = []
    findings: list[SysctlFinding] = []
    loaded = _path(VS, root).is_dir()
    if not loaded and any(need.scope is Scope.IPVS for need in needs):
        findings.append(
            SysctlFinding(
                name=VS,
                have=None,
                want=None,
                why="this kernel has no IPVS, or its module is not loaded",
                fix="modprobe ip_vs",
            )
        )
    for need in needs:
        if need.scope is Scope.IPVS and not loaded:
            continue
        have = read(need.name, root=root)
        if need.met_by(have):
            continue
        trouble = ""
        to_set = policy is SysctlPolicy.APPLY or (
            policy is SysctlPolicy.IPVS and need.scope is Scope.IPVS
        )
        unmet = [each for each in need.first if not each.met_by(read(each.name, root=root))]
        if to_set and unmet:
            trouble = f"{unmet[0].name} is not {unmet[0].value} yet"
        elif to_set and have is not None:
            try:
                _path(need.name, root).write_text(f"{need.value}\n")
            except OSError as error:
                trouble = (error.strerror or str(error)).lower()
            else:
                changes.append(SysctlChange(need=need, old=have))
                log.info("%s", changes[-1])
                continue
        findings.append(
            SysctlFinding(
                name=need.name,
                have=have,
                want=need.value,
                why=need.why,
                fix=need.command,
                trouble=trouble,
            )
        )
    if policy is SysctlPolicy.APPLY and (problem := _persist(needs, persisted)) is not None:
        findings.append(problem)
    return SysctlOutcome(changes=tuple(changes), findings=tuple(findings))


def _path(name: str, root: Path) -> Path:
    return root / name.translate(str.maketrans("./", "/."))


def persisted(needs: Iterable[SysctlRequirement], *, by: str) -> str:
    """A file of sysctl.d for the next boot; `by`: what in the configuration makes it."""
    lines = [f"# Written by xenlb ({by}); changes here are overwritten.\n"]
    # The minus: at boot, neither the module nor the interface may be there yet. udev sets those of
    # an interface when it comes, and the agent those of IPVS.
    lines.extend(f"# {need.why}\n-{need.name} = {need.value}\n" for need in needs)
    return "\n".join(lines)


def _persist(needs: Iterable[SysctlRequirement], file: Path) -> SysctlFinding | None:
    """Writes the file, if it differs; in one step, so that it is never half."""
    content = persisted(needs, by="director: {sysctls: apply}")
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
            name=str(file),
            have=None,
            want=None,
            why="the sysctls that were set do not outlast a reboot",
            fix="make it writable for the agent, or set them elsewhere and use sysctls: ipvs",
            trouble=(error.strerror or str(error)).lower(),
        )
    log.info("wrote %s", file)
    return None
