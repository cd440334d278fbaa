"""How drains and requests to go change what is known: operators, counts, deadlines, a host's end.

What a drain is and how it ends: drain.py. What becomes of the guest itself: guest.py.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import inf

from xenlb.ipvs.table import ServerKey, ServiceKey
from xenlb.model import drain as drains
from xenlb.model.address_claims import over
from xenlb.model.desired import timed_slots
from xenlb.model.domain import GuestId, RequestKind
from xenlb.model.drain import Drain, Outcome, connections, hindrances
from xenlb.model.events import (
    ConnectionsCounted,
    DrainAllRequested,
    DrainRequested,
    RequestSent,
    UndrainRequested,
)
from xenlb.model.guest import Guest, LifecycleEvent, Phase, Request, transition, undrained
from xenlb.model.host_drain import free_to_go
from xenlb.model.membership import names_of, services_of
from xenlb.model.note import Note, NoteKind
from xenlb.model.settings import ServiceSettings
from xenlb.model.state import Change, State, nothing_follows

# Seconds, for a guest that belongs to no service.
DEFAULT_GRACE = 300.0
DEFAULT_TIMEOUT = 60.0
HOLD_MARGIN = 60.0  # on top of drain.timeout: to tell the host, and to stop what was held

VERBS = {RequestKind.POWEROFF: "shutdown", RequestKind.REBOOT: "reboot"}


def requested(state: State, guest: Guest, ask: RequestKind, at: float) -> Guest:
    """The guest after it was asked to go, if it goes because of that: not if it does not run, or is
    told to suspend after it was told to shut down. What its hold says of a request that is known
    gives it the time of the hold, and is no other news."""
    if guest.phase is not (Phase.SUSPENDING if ask is RequestKind.SUSPEND else Phase.LEAVING):
        return guest
    services = services_of(state, guest)
    grace = max((service.drain.shutdown_grace for service in services), default=DEFAULT_GRACE)
    if ask is RequestKind.INSIDE:  # it has a hold, which may take as long as a drain
        held = max((service.drain.timeout for service in services), default=0.0) + HOLD_MARGIN
        grace = max(grace, held)
        if guest.request is not None:
            late = max(guest.request.deadline, at + held)
            return replace(guest, request=replace(guest.request, deadline=late))
    request = Request(kind=ask, at=at, deadline=at + grace)
    drain = guest.drain or Drain(
        reason=request.text(),
        by="",
        since=at,
        requested=True,
        warnings=hindrances(services, state.observed.wrong_sysctls),
    )
    return replace(guest, request=request, drain=drain)


def goes_by_itself(guest: Guest) -> bool:
    """Is it going because it said so, and nobody else? Only then its own word is enough to stay."""
    return guest.request is not None and guest.request.kind is RequestKind.INSIDE


def endings(before: Guest, after: Guest, at: float) -> Iterator[Note]:
    """What is to be told of a drain that ended between the two."""
    if after.last_drain is None or after.last_drain is before.last_drain:
        return
    drain = after.last_drain
    if before.drain is None or not before.drain.lasts:
        return  # it was told when it was over
    yield _ending(after, drain, at)


def _ending(guest: Guest, drain: Drain, at: float) -> Note:
    lasted = at - drain.since
    left = drain.left or 0
    cut = drain.outcome in {Outcome.DEADLINE, Outcome.GONE} and left > 0
    with_left = f" with {connections(left)} left" if left else ""
    if drain.outcome is Outcome.DEADLINE:
        text = f"drain timed out after {lasted:.1f} s{with_left}"
    else:
        text = f"drain ended after {lasted:.1f} s: {drain.outcome}{with_left}"
    return Note(at=at, kind=NoteKind.DRAIN_ENDED, guest=guest.id, text=text, warning=cut)


# --- operators -----------------------------------------------------------------------------------


def drain(state: State, event: DrainRequested) -> Change:
    guest = state.guests.get(event.guest)
    if guest is None or guest.phase is Phase.ABSENT:
        return nothing_follows(state)
    changed, notes = _drained(state, guest, event)
    return Change(state=changed, services=names_of(state, guest), notes=tuple(notes))


def _drained(state: State, guest: Guest, event: DrainRequested) -> tuple[State, tuple[Note, ...]]:
    services = services_of(state, guest)
    policies = [service.drain.timeout for service in services]
    longest = max(policies, default=DEFAULT_TIMEOUT) if event.timeout is None else event.timeout
    warnings = hindrances(services, state.observed.wrong_sysctls)
    reason = "drained" if event.then is None else f"drained for {VERBS[event.then]}"
    begun = Drain(
        reason=reason,
        by=event.by,
        since=event.at,
        deadline=event.at + longest,
        then=event.then,
        warnings=warnings,
    )
    if guest.drain is not None and guest.drain.left is not None:
        begun = replace(begun, left=guest.drain.left)
    notes = [Note(at=event.at, kind=NoteKind.DRAIN_BEGUN, guest=guest.id, text=begun.text())]
    notes += [
        Note(at=event.at, kind=NoteKind.DRAIN_HINDERED, guest=guest.id, text=each, warning=True)
        for each in warnings
    ]
    return state.with_guests(replace(guest, drain=begun)), tuple(notes)


def is_out(guest: Guest) -> bool:
    """Is it drained, or about to go, so that it can be put back into service?"""
    going = guest.phase in {Phase.LEAVING, Phase.SUSPENDING}
    return guest.phase is not Phase.ABSENT and (guest.drain is not None or going)


def undrain(state: State, event: UndrainRequested) -> Change:
    """Also takes back that it was asked to go: who says so knows that it stays."""
    guest = state.guests.get(event.guest)
    if guest is None or not is_out(guest):
        return nothing_follows(state)
    after = undrained(guest, Outcome.UNDRAINED, at=event.at)
    if guest.request is not None:
        after = transition(after, LifecycleEvent.STAYS, at=event.at, incarnation=guest.incarnation)
    changed = state.with_guests(after)
    notes = [
        Note(
            at=event.at,
            kind=NoteKind.UNDRAINED,
            guest=guest.id,
            text=f"undrained by {event.by}",
        ),
        *endings(guest, after, event.at),
    ]
    return Change(state=changed, services=names_of(state, guest), notes=tuple(notes))


def drain_all(state: State, event: DrainAllRequested) -> Change:
    """As many guests of this host as may go now; see host_drain.py. May be asked again at will."""
    changed, notes, names = state, list[Note](), frozenset[str]()
    for guest_id in free_to_go(state, rest=event.rest):
        guest = state.guests[guest_id]
        asked = DrainRequested(at=event.at, guest=guest_id, by=event.by, timeout=event.timeout)
        changed, said = _drained(changed, guest, asked)
        notes += said
        names |= names_of(state, guest)
    return Change(state=changed, services=names, notes=tuple(notes))


# --- what comes of it ----------------------------------------------------------------------------


def sent(state: State, event: RequestSent) -> Change:
    """libvirt was asked for what comes after the drain of a guest that still runs."""
    guest = state.guests.get(event.guest)
    if guest is None or guest.drain is None or guest.drain.then is not event.kind:
        return nothing_follows(state)  # it has gone, or boots already, or was undrained
    verb = VERBS[event.kind]
    after = replace(guest, drain=replace(guest.drain, asked=True, failure=event.failure))
    if event.failure:
        text = f"libvirt refuses the {verb}: {event.failure}; it stays out of service"
    else:
        text = f"{verb} asked of libvirt"
        after = transition(
            after, LifecycleEvent.ASKED_TO_GO, at=event.at, incarnation=guest.incarnation
        )
        if after.request is None:  # not every hypervisor tells of a request
            after = requested(state, after, event.kind, event.at)
    changed = state.with_guests(after)
    note = Note(
        at=event.at,
        kind=NoteKind.REQUEST_SENT,
        guest=guest.id,
        text=text,
        warning=bool(event.failure),
    )
    return Change(state=changed, services=names_of(state, guest), notes=(note,))


def counted(state: State, event: ConnectionsCounted) -> Change:
    """What is left of the connections of each guest that is drained."""
    changed: list[Guest] = []
    notes: list[Note] = []
    for guest in state.guests.values():
        if guest.drain is None or not guest.drain.lasts or guest.drain.since > event.at:
            continue
        mine = tuple(places(state, guest))
        left = sum(
            drains.left_of(service, key, event.counters.get(key, {}).get(server))
            for service, key, server in mine
        )
        udp = max((s.drain.udp for s, key, _ in mine if drains.is_udp(key)), default=0.0)
        earliest = guest.drain.since + udp
        after = drains.counted(guest.drain, left, event.at, earliest=earliest)
        if after is not guest.drain:
            changed.append(replace(guest, drain=after))
        if not after.lasts:
            notes.append(_ending(guest, after, event.at))
    return nothing_follows(state.with_guests(*changed), *notes)


def places(state: State, guest: Guest) -> Iterator[tuple[ServiceSettings, ServiceKey, ServerKey]]:
    """Where the guest is in the table."""
    for service in services_of(state, guest):
        for candidate in state.derived.candidates.get(service.name, ()):
            slot = candidate.slot
            if (
                candidate.owner == guest.id
                and slot is not None
                and slot in state.remembered.admitted
            ):
                yield service, slot.service, slot.server


def to_count(state: State) -> frozenset[ServiceKey]:
    """The services whose servers' counters a drain waits for; empty where no drain lasts."""
    return frozenset(
        key
        for guest in state.guests.values()
        if guest.drain is not None and guest.drain.lasts
        for _, key, _ in places(state, guest)
    )


def lasting(state: State) -> bool:
    """Does any drain wait for connections to end?"""
    return any(guest.drain is not None and guest.drain.lasts for guest in state.guests.values())


def due(state: State, at: float) -> Mapping[GuestId, RequestKind]:
    """What is to be asked of libvirt now: the guests whose drain is over, and for what."""
    return {
        key: guest.drain.then
        for key, guest in state.guests.items()
        if guest.drain is not None
        and guest.drain.due
        and guest.drain.then is not None
        and at < (guest.drain.expires or 0.0)
    }


def tick(state: State, at: float) -> Change:
    """Deadlines that have come: of requests, drains, slow starts, UDP, reserved addresses."""
    changed: list[Guest] = []
    notes: list[Note] = []
    timed = {slot.service for slot in timed_slots(state)}
    names = {
        service.name
        for service in state.settings.services
        if not timed.isdisjoint(service.kernel_keys())
    }
    for guest in state.guests.values():
        after = guest
        if guest.request is not None and guest.request.deadline <= at:
            stays = transition(guest, LifecycleEvent.STAYS, at=at, incarnation=guest.incarnation)
            after = replace(stays, request=None)
            names |= names_of(state, guest)
            notes.append(_ignored(guest.request, after, at))
        drain = after.drain
        if drain is not None and drain.lasts and (drain.deadline or inf) <= at:
            after = replace(after, drain=drains.ended(drain, Outcome.DEADLINE, at))
            notes.append(_ending(after, after.drain or drain, at))
        drain = after.drain
        if drain is not None and drain.due and (drain.expires or inf) <= at:
            after = undrained(after, Outcome.UNASKED, at=at)
            names |= names_of(state, guest)
            notes.append(_unasked(after, drain))
        after = over(after, at)
        if after is not guest:
            changed.append(after)
    return Change(state=state.with_guests(*changed), services=frozenset(names), notes=tuple(notes))


def _unasked(guest: Guest, drain: Drain) -> Note:
    assert drain.then is not None
    assert drain.expires is not None
    text = (
        f"libvirt could not be asked for the {VERBS[drain.then]} in time: back into service,"
        " and it is not asked any more"
    )
    return Note(
        at=drain.expires,
        kind=NoteKind.REQUEST_SENT,
        guest=guest.id,
        text=text,
        warning=True,
    )


def _ignored(request: Request, after: Guest, at: float) -> Note:
    inside = request.kind is RequestKind.INSIDE
    since = "said that it shuts down" if inside else f"was {request.text()}"
    becomes = "still drained" if after.drain else "back into service"
    text = f"still runs {at - request.at:.0f} s after it {since}: {becomes}"
    return Note(at=at, kind=NoteKind.GUEST_STAYS, guest=after.id, text=text, warning=True)
