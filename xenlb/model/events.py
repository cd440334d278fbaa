"""The events of the agent, as a closed union of frozen values.

The reducer folds them into the state. `at` is in seconds of CLOCK_BOOTTIME, which counts on while
the agent is stopped and never jumps.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from xenlb.ipvs.table import Counters, ServerKey, ServiceKey
from xenlb.model.addresses import AddressCandidate, RejectedAddress
from xenlb.model.domain import (
    DomainDescription,
    GuestId,
    MetadataService,
    RequestKind,
    StopReason,
)
from xenlb.model.problem import Problem
from xenlb.model.reserved_addresses import HostNetworkChanged
from xenlb.model.settings import ServiceSettings, Settings
from xenlb.model.target import Target

# --- from libvirt, xenstore and QMP --------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestsListed:
    """Every domain of one libvirt, after (re)connecting or at a resync.

    The listing began at `requested_at`; it says nothing of what happened later.
    """

    at: float
    uri: str
    requested_at: float
    guests: tuple[DomainDescription, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Disconnected:
    """A libvirt cannot be reached; what is known of its guests stays."""

    at: float
    uri: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """A domain runs (STARTED, any detail) — seconds before its service does."""

    at: float
    guest: GuestId
    name: str
    incarnation: int
    paused: bool = False
    metadata: tuple[MetadataService, ...] = ()
    metadata_problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ShutdownRequested:
    """A guest was asked to go. It may refuse, and on QEMU it may be too early in its boot."""

    at: float
    guest: GuestId
    incarnation: int | None
    kind: RequestKind


@dataclass(frozen=True, slots=True, kw_only=True)
class ShutdownCancelled:
    """A guest that said it goes says that it stays (its hold was started again)."""

    at: float
    guest: GuestId
    incarnation: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Died:
    """A domain is gone from the hypervisor (xenstore @releaseDomain, QMP SHUTDOWN)."""

    at: float
    guest: GuestId
    incarnation: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopped:
    """libvirt's STOPPED. `incarnation` None: libvirt did not say which one."""

    at: float
    guest: GuestId
    incarnation: int | None
    reason: StopReason


@dataclass(frozen=True, slots=True, kw_only=True)
class Crashed:
    """The guest panicked and its domain is kept (on_crash=preserve, pvpanic)."""

    at: float
    guest: GuestId
    incarnation: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Paused:
    at: float
    guest: GuestId
    incarnation: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumed:
    at: float
    guest: GuestId
    incarnation: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebooted:
    """The guest starts again inside the same domain (QEMU's RESET, LXC): same domain id."""

    at: float
    guest: GuestId
    incarnation: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Undefined:
    """The definition is gone; a transient guest that runs has none to begin with."""

    at: float
    guest: GuestId


@dataclass(frozen=True, slots=True, kw_only=True)
class MetadataChanged:
    at: float
    guest: GuestId
    services: tuple[MetadataService, ...]
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressesFound:
    """What the sources give for a running guest, in the order of `Source`, whenever it changes. It
    replaces what they gave before, in each family of which there is anything."""

    at: float
    guest: GuestId
    incarnation: int | None
    candidates: tuple[AddressCandidate, ...]
    rejected: tuple[RejectedAddress, ...] = ()


# --- from the health room ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeFinished:
    """A probe's result; `detail` is one line (expected, got). `started`: when the probe began.
    `share`: of the configured weight, if the answer says one; `declines`: the server wants none."""

    at: float
    target: Target
    started: float
    up: bool
    detail: str
    share: float | None = None
    declines: bool = False


# --- from the inside of guests -------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Has a guest all that a service needs of it? `problem`: one sentence of what is missing."""

    service: ServiceSettings
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestInspected:
    """The inside of a running guest was looked at, for each of its services that asks for it; all
    that was known of it before is replaced."""

    at: float
    guest: GuestId
    incarnation: int | None
    verdicts: tuple[Verdict, ...]


# --- from the director ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionsCounted:
    """What the kernel counts for the servers of guests that are drained."""

    at: float
    counters: Mapping[ServiceKey, Mapping[ServerKey, Counters]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SysctlsChecked:
    """`wrong`: names of those that differ from what the services need, after setting."""

    at: float
    wrong: frozenset[str]


# --- from configuration and operators ------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Configured:
    """`counters` of the table as it is, for what is said of it; None: not known."""

    at: float
    settings: Settings
    counters: Mapping[ServiceKey, Mapping[ServerKey, Counters]] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigurationRefused:
    """The file is wrong; the last good configuration goes on."""

    at: float
    problems: tuple[Problem, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainRequested:
    """`timeout` None: the policy of each service. `then`: what is asked of the guest after it."""

    at: float
    guest: GuestId
    by: str
    timeout: float | None = None
    then: RequestKind | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainAllRequested:
    """The host goes down: as many of its guests as keep-in-service allows now; with `rest`, also
    those that it keeps, because nothing more will take over."""

    at: float
    by: str
    timeout: float | None = None
    rest: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestSent:
    """libvirt was asked for what comes after a drain; `failure`: why it could not do it."""

    at: float
    guest: GuestId
    kind: RequestKind
    failure: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class UndrainRequested:
    at: float
    guest: GuestId
    by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """A deadline has come; nothing was heard."""

    at: float


HypervisorEvent = (
    GuestsListed
    | Disconnected
    | Started
    | ShutdownRequested
    | ShutdownCancelled
    | Died
    | Stopped
    | Crashed
    | Paused
    | Resumed
    | Rebooted
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
