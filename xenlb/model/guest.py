"""The life cycle of a guest, as one table.

Theory of operation
-------------------
A guest is in one of five phases:

ABSENT      no domain runs (off, saved, migrated away, crashed). Its servers are not in the table.
UP          a domain runs. Its servers join when their check passes and leave when it fails.
LEAVING     a domain runs and was asked to shut down or reboot. Its servers get weight 0 at once and
            stay in the table until the domain is gone, so that connections in progress go on.
SUSPENDING  a domain is about to be saved or migrated away: as LEAVING, but a resume ends it.
PAUSED      the domain exists and its vCPUs are paused. Weight 0, not removed: connections in
            progress survive a short pause, new ones would hang.

Life-cycle events change the phase. Each belongs to one incarnation of the guest (libvirt's domain
id): START has the first phase of a new incarnation, TABLE the transitions of the present one.
Events of older incarnations, which died or were followed by another, change nothing. Facts that
shape it, all seen on Xen 4.17 and libvirt 9.0:

* libvirt has no event for a shutdown request. The request is seen in xenstore (Xen) or QMP (QEMU);
  on LXC not at all, there the first sign is STOPPED.
* On Xen a reboot shows STARTED of the new domain id before STOPPED of the old one. STOPPED may come
  seconds after a new start.
* libvirt's STARTED comes seconds after the domain exists. A request or a death may be seen before
  it, so both are remembered with their incarnation, and a late STARTED undoes neither.
* QEMU starts with RESUMED, then STARTED; it reboots inside its domain, with the same domain id,
  and even then sends SHUTDOWN first. LXC's REBOOT brings a new id and no STARTED.
* A request may be ignored, or come too early in a boot. A guest that still runs when the grace is
  over is UP again; so is a guest that cancels its shutdown, or that an operator undrains.
"""

from dataclasses import dataclass, replace
from enum import StrEnum

from xenlb.ipvs.table import IPAddress
from xenlb.model.addresses import AddressCandidate, RejectedAddress
from xenlb.model.domain import GuestId, MetadataService, RequestKind
from xenlb.model.drain import Drain, Outcome, ended
from xenlb.model.events import Verdict

DEATH_REMEMBERED = 60.0  # seconds; STOPPED was seen up to 11 s after a death, under load


class Phase(StrEnum):
    """The phase of a guest; LEAVING and SUSPENDING last from the request until it is gone."""

    ABSENT = "absent"
    UP = "up"
    LEAVING = "leaving"
    SUSPENDING = "suspending"
    PAUSED = "paused"


class LifecycleEvent(StrEnum):
    """What can happen to a guest."""

    RUNNING = "runs"  # libvirt lists it, or sends STARTED
    RESUMED = "resumed"
    PAUSED = "paused"
    SHUTDOWN_REQUESTED = "asked to shut down or reboot"
    SUSPEND_REQUESTED = "asked to suspend"
    REBOOTED = "rebooted inside its domain"
    STAYS = "does not go after all"
    GONE = "gone"


_A, _U, _L, _S, _P = Phase.ABSENT, Phase.UP, Phase.LEAVING, Phase.SUSPENDING, Phase.PAUSED

# The first phase of a new incarnation, by its first event. Other events do not begin one.
START: dict[LifecycleEvent, Phase] = {
    LifecycleEvent.RUNNING: Phase.UP,
    LifecycleEvent.RESUMED: Phase.UP,
    LifecycleEvent.REBOOTED: Phase.UP,
    LifecycleEvent.PAUSED: Phase.PAUSED,
    LifecycleEvent.SHUTDOWN_REQUESTED: Phase.LEAVING,
    LifecycleEvent.SUSPEND_REQUESTED: Phase.SUSPENDING,
}

# fmt: off
# The next phase of the present incarnation, by event and present phase.
TABLE: dict[LifecycleEvent, dict[Phase, Phase]] = {
    LifecycleEvent.RUNNING:            {_A: _A, _U: _U, _L: _L, _S: _S, _P: _U},
    LifecycleEvent.RESUMED:            {_A: _A, _U: _U, _L: _L, _S: _U, _P: _U},
    LifecycleEvent.PAUSED:             {_A: _A, _U: _P, _L: _L, _S: _S, _P: _P},
    LifecycleEvent.SHUTDOWN_REQUESTED: {_A: _A, _U: _L, _L: _L, _S: _L, _P: _L},
    LifecycleEvent.SUSPEND_REQUESTED:  {_A: _A, _U: _S, _L: _L, _S: _S, _P: _S},
    LifecycleEvent.REBOOTED:           {_A: _U, _U: _U, _L: _U, _S: _U, _P: _U},
    LifecycleEvent.STAYS:              {_A: _A, _U: _U, _L: _U, _S: _U, _P: _P},
    LifecycleEvent.GONE:               {_A: _A, _U: _A, _L: _A, _S: _A, _P: _A},
}
# fmt: on


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A guest was asked to shut down, reboot or suspend; after `deadline` it ignored that."""

    kind: RequestKind
    at: float
    deadline: float

    def text(self) -> str:
        """Return the request in words, such as `asked for poweroff`."""
        return (
            "shuts down from inside"
            if self.kind is RequestKind.INSIDE
            else f"asked for {self.kind}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Death:
    """The end of an incarnation (libvirt's domain id); `at` on the events' clock, in seconds."""

    incarnation: int
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """The state of one guest.

    `incarnation`: libvirt's domain id of the present or last domain. `since`: when the phase
    began. `booted`: when this boot began; servers admitted before are gone. `recheck`: results of
    checks begun before do not count. `last_event`, `metadata_at`: time of the last life-cycle event
    and of the last metadata; a listing begun before is older. `deaths`: of the last minute, of any
    incarnation. `drain`: why it is out of service, if it is; `last_drain`: the last that ended.
    `given_up`: its addresses that failed in this boot while another one passed. `reserved`:
    addresses that it served with before it stopped or booted; they wait for it until
    `reserved_until`. `address_notes`: texts noted about its addresses in this boot. `readiness`:
    the verdicts of the inspection in this boot.
    """

    id: GuestId
    name: str
    phase: Phase = Phase.ABSENT
    incarnation: int | None = None
    since: float = 0.0
    booted: float = 0.0
    recheck: float = 0.0
    last_event: float = 0.0
    metadata_at: float = 0.0
    request: Request | None = None
    deaths: tuple[Death, ...] = ()
    drain: Drain | None = None
    last_drain: Drain | None = None
    candidates: tuple[AddressCandidate, ...] = ()
    rejected: tuple[RejectedAddress, ...] = ()
    given_up: frozenset[IPAddress] = frozenset()
    reserved: frozenset[IPAddress] = frozenset()
    reserved_until: float | None = None
    address_notes: frozenset[str] = frozenset()
    metadata: tuple[MetadataService, ...] = ()
    metadata_problems: tuple[str, ...] = ()
    readiness: tuple[Verdict, ...] = ()

    @property
    def active_drain(self) -> Drain | None:
        """The drain if it waits for connections to end."""
        return self.drain if self.drain is not None and self.drain.active else None

    def is_dead(self, incarnation: int, at: float) -> bool:
        """Return whether this incarnation died so recently that late events of it may come.

        Not for ever: LXC's domain ids are process ids, which are used again.
        """
        return any(
            death.incarnation == incarnation and at - death.at < DEATH_REMEMBERED
            for death in self.deaths
        )


def transition(guest: Guest, event: LifecycleEvent, *, at: float, incarnation: int | None) -> Guest:
    """Return the guest after an event of one of its incarnations.

    `incarnation` None: the source does not report it; the event is one of the present incarnation
    and begins no other. Total: an event that does not apply returns the guest unchanged.
    """
    runs = guest.phase is not Phase.ABSENT
    if incarnation is None:
        incarnation = guest.incarnation
        if incarnation is None or not (runs or event is LifecycleEvent.REBOOTED):
            return guest
    present = incarnation == guest.incarnation
    if event is LifecycleEvent.GONE:
        return _gone(guest, at=at, incarnation=incarnation)
    # QEMU has sent SHUTDOWN before.
    if event is LifecycleEvent.REBOOTED and present:
        return _boot(guest, TABLE[event][guest.phase], at=at, incarnation=incarnation)
    if guest.is_dead(incarnation, at):
        return guest
    if runs and present:
        phase = TABLE[event][guest.phase]
        if phase is guest.phase:
            return guest
        if phase is Phase.UP:  # it serves again when a check passes
            was_leaving = guest.phase in {Phase.LEAVING, Phase.SUSPENDING}
            if (
                was_leaving
                and guest.drain is not None
                and (guest.drain.requested or guest.drain.asked)
            ):
                guest = undrained(guest, Outcome.STAYED, at=at)
            return replace(guest, phase=phase, since=at, recheck=at, request=None)
        return replace(guest, phase=phase, since=at)
    if event not in START or (
        # Only a start replaces a domain that runs. A request for another incarnation than the one
        # that runs is late.
        runs and START[event] not in {Phase.UP, Phase.PAUSED}
    ):
        return guest
    return _boot(guest, START[event], at=at, incarnation=incarnation)


def _boot(guest: Guest, phase: Phase, *, at: float, incarnation: int) -> Guest:
    """Begin a boot: requests, drains and findings of the one before are over."""
    same = incarnation == guest.incarnation
    if guest.phase is not Phase.ABSENT and not same and guest.incarnation is not None:
        guest = _with_death(guest, at=at, incarnation=guest.incarnation)
    return replace(
        undrained(guest, Outcome.GONE, at=at),
        phase=phase,
        incarnation=incarnation,
        since=at,
        booted=at,
        recheck=at,
        request=None,
        deaths=tuple(death for death in guest.deaths if death.incarnation != incarnation),
        candidates=guest.candidates if same else (),
        rejected=guest.rejected if same else (),
        given_up=frozenset(),
        address_notes=frozenset(),
        readiness=(),
    )


def _gone(guest: Guest, *, at: float, incarnation: int) -> Guest:
    guest = _with_death(guest, at=at, incarnation=incarnation)
    if guest.phase is Phase.ABSENT or guest.incarnation != incarnation:
        return guest  # already gone, or another incarnation runs
    guest = undrained(guest, Outcome.GONE, at=at)
    return replace(guest, phase=Phase.ABSENT, since=at, request=None)


def undrained(guest: Guest, outcome: Outcome, *, at: float) -> Guest:
    """Return the guest without its drain, which becomes its last one."""
    if guest.drain is None:
        return guest
    drained = replace(ended(guest.drain, outcome, at), end=outcome)
    return replace(guest, drain=None, last_drain=drained)


def _with_death(guest: Guest, *, at: float, incarnation: int) -> Guest:
    """Return the guest with one more death; deaths too old for late events are dropped."""
    if guest.is_dead(incarnation, at):
        return guest
    recent = (death for death in guest.deaths if at - death.at < DEATH_REMEMBERED)
    return replace(guest, deaths=(*recent, Death(incarnation=incarnation, at=at)))
