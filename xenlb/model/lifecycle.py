"""Life cycle events of guests: starts, requests to shut down, pauses, reboots and ends."""

from dataclasses import replace
from typing import assert_never

from xenlb.model import draining
from xenlb.model.addresses import AddressCandidate
from xenlb.model.domain import RequestKind
from xenlb.model.events import (
    Crashed,
    Died,
    Paused,
    Rebooted,
    Resumed,
    ShutdownCancelled,
    ShutdownRequested,
    Started,
    Stopped,
)
from xenlb.model.guest import Guest, LifecycleEvent, Phase, transition
from xenlb.model.membership import names_of
from xenlb.model.note import Note, NoteKind
from xenlb.model.state import Change, State, nothing_follows

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


def happened(state: State, event: LifeEvent) -> Change:
    if event.guest.uri not in state.observed.links:
        return nothing_follows(state)
    guest = state.guests.get(event.guest)
    if guest is None:
        name = event.name if isinstance(event, Started) else ""
        guest = Guest(id=event.guest, name=name)
    if isinstance(event, Started):
        guest = replace(
            guest,
            name=event.name,
            metadata=event.metadata,
            metadata_problems=event.metadata_problems,
            metadata_at=event.at,
        )
    if isinstance(event, ShutdownCancelled) and not draining.goes_by_itself(guest):
        # It says so at each boot, and where others asked for the shutdown.
        return nothing_follows(state)
    happening, text = _happening(event)
    heard = transition(guest, happening, at=event.at, incarnation=event.incarnation)
    present = event.incarnation in {None, heard.incarnation}
    if isinstance(event, Started) and heard.booted == event.at:
        heard = replace(heard, candidates=_brought_along(state, heard))
    if isinstance(event, ShutdownRequested) and present:
        heard = draining.requested(state, heard, event.kind, event.at)
    took = _took(guest, heard)
    if took or present:  # news of a former incarnation says nothing of this one's life
        heard = replace(heard, last_event=event.at)
    changed = state.with_guests(heard)
    late = "" if took or isinstance(event, Started) else _no_news(happening)
    note = Note(
        at=event.at,
        kind=_kind(event, happening),
        guest=event.guest,
        text=f"{text}{late}",
        late=bool(late),
    )
    news = () if _stands(guest, event) else (note,)
    notes = (*news, *draining.endings(guest, heard, event.at))
    names = names_of(state, guest) | names_of(changed, heard)
    return Change(state=changed, services=names, notes=tuple(notes))


_KINDS = {
    LifecycleEvent.RUNNING: NoteKind.GUEST_STARTED,
    LifecycleEvent.RESUMED: NoteKind.GUEST_RESUMED,
    LifecycleEvent.PAUSED: NoteKind.GUEST_PAUSED,
    LifecycleEvent.ASKED_TO_GO: NoteKind.GUEST_REQUESTED,
    LifecycleEvent.ASKED_TO_SUSPEND: NoteKind.GUEST_REQUESTED,
    LifecycleEvent.REBOOTED: NoteKind.GUEST_REBOOTED,
    LifecycleEvent.STAYS: NoteKind.GUEST_STAYS,
    LifecycleEvent.GONE: NoteKind.GUEST_GONE,
}


def _kind(event: LifeEvent, happening: LifecycleEvent) -> NoteKind:
    if isinstance(event, Stopped | Crashed):
        return NoteKind.GUEST_STOPPED
    return _KINDS[happening]


def _stands(guest: Guest, event: LifeEvent) -> bool:
    """Is it what the guest was asked for already? Then it has the time for it anew, and that is no
    news: a guest may write its own request, as often as it likes."""
    if (
        not isinstance(event, ShutdownRequested)
        or guest.request is None
        or guest.phase is Phase.ABSENT
    ):
        return False
    present = event.incarnation in {None, guest.incarnation}
    return present and guest.request.kind is event.kind


def _no_news(happening: LifecycleEvent) -> str:
    """Of an event that comes late, or is of a domain that has gone."""
    return ", as was known" if happening is LifecycleEvent.GONE else ", without effect"


def _brought_along(state: State, guest: Guest) -> tuple[AddressCandidate, ...]:
    """The addresses of the same guest at the libvirt that it is leaving: it keeps them."""
    for other in state.guests.values():
        if other.id.uuid == guest.id.uuid and other.phase is Phase.SUSPENDING:
            return other.candidates
    return guest.candidates


def _took(before: Guest, after: Guest) -> bool:
    return replace(before, deaths=()) != replace(after, deaths=())


def _happening(event: LifeEvent) -> tuple[LifecycleEvent, str]:
    domain = "" if event.incarnation is None else f" (domain {event.incarnation})"
    match event:
        case Started(paused=True):
            return LifecycleEvent.PAUSED, f"started, paused{domain}"
        case Started():
            return LifecycleEvent.RUNNING, f"started{domain}"
        case ShutdownRequested(kind=RequestKind.SUSPEND):
            return LifecycleEvent.ASKED_TO_SUSPEND, f"asked to suspend{domain}"
        case ShutdownRequested(kind=RequestKind.INSIDE):
            return LifecycleEvent.ASKED_TO_GO, f"shuts down from inside{domain}"
        case ShutdownRequested(kind=ask):
            return LifecycleEvent.ASKED_TO_GO, f"asked for {ask}{domain}"
        case ShutdownCancelled():
            return LifecycleEvent.STAYS, f"says that it stays{domain}"
        case Died():
            return LifecycleEvent.GONE, f"gone{domain}"
        case Stopped(reason=why):
            return LifecycleEvent.GONE, f"stopped: {why}{domain}"
        case Crashed():
            return LifecycleEvent.GONE, f"crashed{domain}"
        case Paused():
            return LifecycleEvent.PAUSED, f"paused{domain}"
        case Resumed():
            return LifecycleEvent.RESUMED, f"resumed{domain}"
        case Rebooted():
            return LifecycleEvent.REBOOTED, f"rebooted{domain}"
        case _:
            assert_never(event)
