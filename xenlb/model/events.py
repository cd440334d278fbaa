"""The events of the agent, as a closed union of frozen values.

The reducer folds them into the state. `at` is in seconds of CLOCK_BOOTTIME, which counts on while
the agent is stopped and never jumps. `incarnation` is libvirt's domain id, None where the source
does not report it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from xenlb.ipvs.table import Counters, ServerKey, ServiceKey
from xenlb.model.addresses import AddressCandidate, RejectedAddress
from xenlb.model.domain import DomainDescription, GuestId, MetadataService, RequestKind, StopReason
from xenlb.model.problem import Problem
from xenlb.model.reserved_addresses import HostNetworkChanged
from xenlb.model.settings import ServiceSettings, Settings
from xenlb.model.target import Target


@dataclass(frozen=True, slots=True, kw_only=True)
class _Event:
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _GuestEvent(_Event):
    guest: GuestId


@dataclass(frozen=True, slots=True, kw_only=True)
class _DomainEvent(_GuestEvent):
    incarnation: int | None


# --- from libvirt, xenstore and QMP --------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestsListed(_Event):
    """Every domain of one libvirt, after (re)connecting or at a resync.

    The listing began at `requested_at`; it says nothing about later events.
    """

    uri: str
    requested_at: float
    guests: tuple[DomainDescription, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Disconnected(_Event):
    """A libvirt cannot be reached; its guests keep their state."""

    uri: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Started(_DomainEvent):
    """A domain runs (libvirt's STARTED), seconds before its services do."""

    incarnation: int
    name: str
    paused: bool = False
    metadata: tuple[MetadataService, ...] = ()
    metadata_problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ShutdownRequested(_DomainEvent):
    """A guest was asked to shut down, reboot or suspend. It may ignore the request."""

    kind: RequestKind


@dataclass(frozen=True, slots=True, kw_only=True)
class ShutdownCancelled(_DomainEvent):
    """A guest that reported its shutdown cancels it: its hold was started again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Died(_DomainEvent):
    """A domain is gone from the hypervisor (xenstore @releaseDomain, QMP SHUTDOWN)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopped(_DomainEvent):
    """libvirt reports STOPPED."""

    reason: StopReason


@dataclass(frozen=True, slots=True, kw_only=True)
class Crashed(_DomainEvent):
    """The guest panicked and its domain is kept (on_crash=preserve, pvpanic)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Paused(_DomainEvent):
    """The vCPUs of the domain are paused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumed(_DomainEvent):
    """The vCPUs of the domain run again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebooted(_DomainEvent):
    """The guest starts again inside the same domain (QEMU's RESET, LXC): same domain id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Undefined(_GuestEvent):
    """The definition is gone; a transient guest that runs never had one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MetadataChanged(_GuestEvent):
    """The domain's <metadata> changed; `problems`: entries that cannot be read."""

    services: tuple[MetadataService, ...]
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressesFound(_DomainEvent):
    """The addresses of a running guest, best source first, whenever they change.

    They replace the former ones, in each family of which there is any.
    """

    candidates: tuple[AddressCandidate, ...]
    rejected: tuple[RejectedAddress, ...] = ()


# --- from the health room ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeFinished(_Event):
    """The result of a probe that began at `started`; `detail` is one line (expected, got).

    `share`: the fraction of the configured weight that the reply asks for. `declines`: the server
    asks for no new connections.
    """

    target: Target
    started: float
    up: bool
    detail: str
    share: float | None = None
    declines: bool = False


# --- from the inside of guests -------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether a guest has what a service needs in it; `problem`: what is missing, in a sentence."""

    service: ServiceSettings
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestInspected(_DomainEvent):
    """A running guest was inspected for its services; the verdicts replace all former ones."""

    verdicts: tuple[Verdict, ...]


# --- from the director ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionsCounted(_Event):
    """The kernel's counters of the servers of drained guests."""

    counters: Mapping[ServiceKey, Mapping[ServerKey, Counters]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SysctlsChecked(_Event):
    """`wrong`: names of the sysctls that still differ from what the services need."""

    wrong: frozenset[str]


# --- from configuration and operators ------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Configured(_Event):
    """A configuration was loaded. `counters` of the present table, for messages; None: unknown."""

    settings: Settings
    counters: Mapping[ServiceKey, Mapping[ServerKey, Counters]] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigurationRefused(_Event):
    """The file is wrong; the last good configuration stays in use."""

    problems: tuple[Problem, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainRequested(_GuestEvent):
    """`timeout` None: the policy of each service. `then`: the request to the guest after it."""

    by: str
    timeout: float | None = None
    then: RequestKind | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainAllRequested(_Event):
    """The host shuts down: drain as many of its guests as keep-in-service allows now.

    `rest`: drain the others too, because no other server will take over.
    """

    by: str
    timeout: float | None = None
    rest: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestSent(_GuestEvent):
    """The request after a drain was sent to libvirt; `failure`: why libvirt refused it."""

    kind: RequestKind
    failure: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class UndrainRequested(_GuestEvent):
    """An operator puts a guest back into service."""

    by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick(_Event):
    """A deadline has come."""


LifeEvent = (
    Started
    | ShutdownRequested
    | ShutdownCancelled
    | Died
    | Stopped
    | Crashed
    | Paused
    | Resumed
    | Rebooted
)
HypervisorEvent = (
    GuestsListed
    | Disconnected
    | LifeEvent
    | Undefined
    | MetadataChanged
    | AddressesFound
    | HostNetworkChanged
)
Event = (
    HypervisorEvent
    | ProbeFinished
    | GuestInspected
    | ConnectionsCounted
    | SysctlsChecked
    | Configured
    | ConfigurationRefused
    | DrainRequested
    | DrainAllRequested
    | RequestSent
    | UndrainRequested
    | Tick
)
