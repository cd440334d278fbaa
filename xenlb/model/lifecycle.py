"""Life-cycle events of guests: starts, requests to shut down, pauses, reboots and ends."""

from dataclasses import replace
from typing import assert_never

from xenlb.model import draining
from xenlb.model.addresses import AddressCandidate
from xenlb.model.domain import RequestKind
from xenlb.model.events import (
    Crashed,
    Died,
    LifeEvent,
    Paused,
    Rebooted,
    Resumed,
    ShutdownCancelled,
    ShutdownRequested,
    Started,
    Stopped,
)
from xenlb.model.guest import Guest, LifecycleEvent, Phase, transition
from xenlb.model.membership import service_names
from xenlb.model.note import Note, NoteKind
from xenlb.model.state import Change, State, nothing_follows


def apply_life_event(state: State, event: LifeEvent) -> Change:
    """Apply an event of a guest; no effect if its libvirt is not among the links."""
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
    if isinstance(event, ShutdownCancelled) and not draining.announced_by_guest(guest):
        # A hold sends it at each boot, and also when an operator asked for the shutdown.
        return nothing_follows(state)
    kind, life_event, text = _classify(event)
    after = transition(guest, life_event, at=event.at, incarnation=event.incarnation)
    present = event.incarnation in {None, after.incarnation}
    if isinstance(event, Started) and after.booted == event.at:
        after = replace(after, candidates=_migrated_addresses(state, after))
    if isinstance(event, ShutdownRequested) and present:
        after = draining.with_request(state, after, event.kind, event.at)
    effective = replace(guest, deaths=()) != replace(after, deaths=())
    if effective or present:  # an event of a former incarnation says nothing of this one's life
        after = replace(after, last_event=event.at)
    changed = state.with_guests(after)
    notes = list(draining.ending_notes(guest, after, event.at))
    if not _is_repeated(guest, event):
        late = not effective and not isinstance(event, Started)
        if late:
            gone = life_event is LifecycleEvent.GONE
            text += ", already known" if gone else ", without effect"
        notes.insert(0, Note(event.at, kind, text, guest.id, late=late))
    names = service_names(state, guest) | service_names(changed, after)
    return Change(state=changed, services=names, notes=tuple(notes))


def _is_repeated(guest: Guest, event: LifeEvent) -> bool:
    """Return whether it repeats a pending request.

    Then only the request's deadline moves, without a note: a guest can write its own request, as
    often as it likes.
    """
    return (
        isinstance(event, ShutdownRequested)
        and guest.request is not None
        and guest.phase is not Phase.ABSENT
        and event.incarnation in {None, guest.incarnation}
        and guest.request.kind is event.kind
    )


def _migrated_addresses(state: State, guest: Guest) -> tuple[AddressCandidate, ...]:
    """Return the addresses of the same guest at the libvirt that it migrates from."""
    for other in state.guests.values():
        if other.id.uuid == guest.id.uuid and other.phase is Phase.SUSPENDING:
            return other.candidates
    return guest.candidates


def _classify(event: LifeEvent) -> tuple[NoteKind, LifecycleEvent, str]:
    domain = "" if event.incarnation is None else f" (domain {event.incarnation})"
    match event:
        case Started(paused=True):
            return NoteKind.GUEST_PAUSED, LifecycleEvent.PAUSED, f"started, paused{domain}"
        case Started():
            return NoteKind.GUEST_STARTED, LifecycleEvent.RUNNING, f"started{domain}"
        case ShutdownRequested(kind=kind):
            life_event, text = LifecycleEvent.SHUTDOWN_REQUESTED, f"asked for {kind}"
            if kind is RequestKind.SUSPEND:
                life_event, text = LifecycleEvent.SUSPEND_REQUESTED, "asked to suspend"
            elif kind is RequestKind.INSIDE:
                text = "shuts down from inside"
            return NoteKind.GUEST_REQUESTED, life_event, f"{text}{domain}"
        case ShutdownCancelled():
            return NoteKind.GUEST_STAYS, LifecycleEvent.STAYS, f"cancels its shutdown{domain}"
        case Died():
            return NoteKind.GUEST_GONE, LifecycleEvent.GONE, f"gone{domain}"
        case Stopped(reason=reason):
            return NoteKind.GUEST_STOPPED, LifecycleEvent.GONE, f"stopped: {reason}{domain}"
        case Crashed():
            return NoteKind.GUEST_STOPPED, LifecycleEvent.GONE, f"crashed{domain}"
        case Paused():
            return NoteKind.GUEST_PAUSED, LifecycleEvent.PAUSED, f"paused{domain}"
        case Resumed():
            return NoteKind.GUEST_RESUMED, LifecycleEvent.RESUMED, f"resumed{domain}"
        case Rebooted():
            return NoteKind.GUEST_REBOOTED, LifecycleEvent.REBOOTED, f"rebooted{domain}"
        case _:
            assert_never(event)
