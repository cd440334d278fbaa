"""The life cycle of a guest: every rule of it, as one table.

Theory of operation
-------------------
A guest is, for the balancer, in one of five phases:

ABSENT      no domain runs (off, saved, migrated away, crashed). Its servers are not in the table.
UP          a domain runs. Its servers join when their check passes and leave when it fails.
LEAVING     a domain runs and was asked to go. Its servers get weight 0 at that moment and stay in
            the table, so that connections in progress go on, until the domain is gone.
SUSPENDING  a domain is about to be saved or migrated away: as LEAVING, but a resume ends it.
PAUSED      the domain exists and its CPUs stand still. Weight 0, not removed: connections in
            progress survive a short pause, new ones would hang.

Phases change by happenings. Each belongs to one incarnation of the guest (libvirt's domain id):
START says what a new incarnation begins as, TABLE what happens to the present one; those of older
incarnations, which died or were followed by another, change nothing. Facts that shape it, all seen
on Xen 4.17 and libvirt 9.0:

* libvirt says nothing when a shutdown is asked for. The request is seen in xenstore (Xen) or QMP
  (QEMU); on LXC not at all, there the first sign is STOPPED.
* On Xen a reboot shows STARTED of the new domain id before STOPPED of the old one, and STOPPED may
  come seconds after a new start.
* libvirt's STARTED comes seconds after the domain exists. A request or a death may be seen before
  it, so both are remembered with their incarnation, and a late STARTED undoes neither.
* QEMU starts with RESUMED, then STARTED; it reboots inside its domain, with the same domain id,
  and says SHUTDOWN first even then. LXC's REBOOT brings a new id and no STARTED.
* A request may be ignored, or come too early in a boot. A guest still there when the grace is over
  is UP again; so is one that says itself that it stays, or that an operator puts back.
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
    ABSENT = "absent"
    UP = "up"
    LEAVING = "leaving"
    SUSPENDING = "suspending"
    PAUSED = "paused"


class LifecycleEvent(StrEnum):
    """What can happen to a guest."""

    RUNNING = "runs"  # libvirt lists it, or says STARTED
    RESUMED = "resumed"
    PAUSED = "paused"
    ASKED_TO_GO = "asked to shut down or reboot"
    ASKED_TO_SUSPEND = "asked to suspend"
    REBOOTED = "rebooted inside its domain"
    STAYS = "does not go after all"
    GONE = "gone"


_A, _U, _L, _S, _P = Phase.ABSENT, Phase.UP, Phase.LEAVING, Phase.SUSPENDING, Phase.PAUSED

# What a new incarnation begins as; what is not here cannot be the first news of one.
START: dict[LifecycleEvent, Phase] = {
    LifecycleEvent.RUNNING: Phase.UP,
    LifecycleEvent.RESUMED: Phase.UP,
    LifecycleEvent.REBOOTED: Phase.UP,
    LifecycleEvent.PAUSED: Phase.PAUSED,
    LifecycleEvent.ASKED_TO_GO: Phase.LEAVING,
    LifecycleEvent.ASKED_TO_SUSPEND: Phase.SUSPENDING,
}

# fmt: off
# What becomes of the present incarnation, by the phase it is in.
TABLE: dict[LifecycleEvent, dict[Phase, Phase]] = {
    LifecycleEvent.RUNNING:          {_A: _A, _U: _U, _L: _L, _S: _S, _P: _U},
    LifecycleEvent.RESUMED:          {_A: _A, _U: _U, _L: _L, _S: _U, _P: _U},
    LifecycleEvent.PAUSED:           {_A: _A, _U: _P, _L: _L, _S: _S, _P: _P},
    LifecycleEvent.ASKED_TO_GO:      {_A: _A, _U: _L, _L: _L, _S: _L, _P: _L},
    LifecycleEvent.ASKED_TO_SUSPEND: {_A: _A, _U: _S, _L: _L, _S: _S, _P: _S},
    LifecycleEvent.REBOOTED:         {_A: _U, _U: _U, _L: _U, _S: _U, _P: _U},
    LifecycleEvent.STAYS:            {_A: _A, _U: _U, _L: _U, _S: _U, _P: _P},
    LifecycleEvent.GONE:             {_A: _A, _U: _A, _L: _A, _S: _A, _P: _A},
}
# fmt: on


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A guest was asked to go at `at`; at `deadline` it is taken for having ignored it."""

    kind: RequestKind
    at: float
    deadline: float

    def text(self) -> str:
        """As `status` shows it."""
        return (
            "shuts down from inside"
            if self.kind is RequestKind.INSIDE
            else f"asked for {self.kind}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Death:
    incarnation: int
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """What is known of one guest.

    `incarnation`: libvirt's domain id of the present or last domain. `since`: when the phase
    began. `booted`: when this boot of it began: what was admitted before is gone. `recheck`: checks
    begun before then say nothing of it now. `last_event`, `metadata_at`: when its life, its
    metadata was last heard of: a listing begun before that is older news. `deaths`: those of the
    last minute, of any of its incarnations. `drain`: why it is out of service, if it is;
    `last_drain`: the last one that ended, with how. `given_up`: its addresses that failed in this
    boot while another one passed. `reserved`: the addresses that it served with before it went or
    booted, for which it is waited until `reserved_until`. `told`: what was said of its addresses in
    this boot. `readiness`: what was found inside it in this boot.
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
    told: frozenset[str] = frozenset()
    metadata: tuple[MetadataService, ...] = ()
    metadata_problems: tuple[str, ...] = ()
    readiness: tuple[Verdict, ...] = ()

    def is_dead(self, incarnation: int, at: float) -> bool:
        """Is this incarnation over, since so short a time that late news of it may still come?

        Not for ever: LXC's domain ids are process ids, which are used again.
        """
        return any(
            death.incarnation == incarnation and at - death.at < DEATH_REMEMBERED
            for death in self.deaths
        )


def transition(
    guest: Guest, happening: LifecycleEvent, *, at: float, incarnation: int | None
) -> Guest:
    """The guest after a happening of one of its incarnations.

    `incarnation` None means that the source could not say which: then it is the present one, and
    nothing begins with it. Total: what does not apply returns the guest as it was.
    """
    runs = guest.phase is not Phase.ABSENT
    if incarnation is None:
        incarnation = guest.incarnation
        if incarnation is None or not (runs or happening is LifecycleEvent.REBOOTED):
            return guest
    present = incarnation == guest.incarnation
    if happening is LifecycleEvent.GONE:
        return _gone(guest, at=at, incarnation=incarnation)
    if (
        happening is LifecycleEvent.REBOOTED and present
    ):  # QEMU said SHUTDOWN before: back from the dead
        return _boot(guest, TABLE[happening][guest.phase], at=at, incarnation=incarnation)
    if guest.is_dead(incarnation, at):
        return guest
    if runs and present:
        phase = TABLE[happening][guest.phase]
        if phase is guest.phase:
            return guest
        if phase is Phase.UP:  # does it still serve? nobody knows before a check
            went = guest.phase in {Phase.LEAVING, Phase.SUSPENDING}
            if went and guest.drain is not None and (guest.drain.requested or guest.drain.asked):
                guest = undrained(guest, Outcome.STAYED, at=at)
            return replace(guest, phase=phase, since=at, recheck=at, request=None)
        return replace(guest, phase=phase, since=at)
    if happening not in START or (
        # Only a start replaces a domain that runs: a request for another incarnation than the one
        # that is known to run is late news.
        runs and START[happening] not in {Phase.UP, Phase.PAUSED}
    ):
        return guest
    return _boot(guest, START[happening], at=at, incarnation=incarnation)


def _boot(guest: Guest, phase: Phase, *, at: float, incarnation: int) -> Guest:
    """A boot begins: what was asked of the one before and found out about it is over."""
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
        told=frozenset(),
        readiness=(),
    )


def _gone(guest: Guest, *, at: float, incarnation: int) -> Guest:
    guest = _with_death(guest, at=at, incarnation=incarnation)
    if guest.phase is Phase.ABSENT or guest.incarnation != incarnation:
        return guest  # it had gone already, or another one runs
    guest = undrained(guest, Outcome.GONE, at=at)
    return replace(guest, phase=Phase.ABSENT, since=at, request=None)


def undrained(guest: Guest, outcome: Outcome, *, at: float) -> Guest:
    """The guest without its drain, which is remembered with how it ended."""
    if guest.drain is None:
        return guest
    drained = replace(ended(guest.drain, outcome, at), end=outcome)
    return replace(guest, drain=None, last_drain=drained)


def _with_death(guest: Guest, *, at: float, incarnation: int) -> Guest:
    """The guest with one more death to remember; those that nobody will speak of are dropped."""
    if guest.is_dead(incarnation, at):
        return guest
    recent = (death for death in guest.deaths if at - death.at < DEATH_REMEMBERED)
    return replace(guest, deaths=(*recent, Death(incarnation=incarnation, at=at)))
