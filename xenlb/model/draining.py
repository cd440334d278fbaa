"""Drains and requests to shut down: operators, connection counts, deadlines, a host's shutdown."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import inf

from xenlb.ipvs.table import ServerKey, ServiceKey
from xenlb.model.address_claims import without_expired_reservation
from xenlb.model.desired import timed_servers
from xenlb.model.domain import GuestId, RequestKind
from xenlb.model.drain import (
    Drain,
    Outcome,
    connections,
    connections_left,
    ended,
    hindrances,
    is_udp,
    with_count,
)
from xenlb.model.events import (
    ConnectionsCounted,
    DrainAllRequested,
    DrainRequested,
    RequestSent,
    UndrainRequested,
)
from xenlb.model.guest import Guest, LifecycleEvent, Phase, Request, transition, undrained
from xenlb.model.host_drain import drainable
from xenlb.model.membership import service_names, services_of
from xenlb.model.note import Note, NoteKind
from xenlb.model.settings import ServiceSettings
from xenlb.model.state import Change, State, nothing_follows

# Seconds, for a guest that belongs to no service.
DEFAULT_GRACE = 300.0
DEFAULT_TIMEOUT = 60.0
HOLD_MARGIN = 60.0  # on top of drain.timeout: for the report to the host, and for the held services

VERBS = {RequestKind.POWEROFF: "shutdown", RequestKind.REBOOT: "reboot"}


def with_request(state: State, guest: Guest, kind: RequestKind, at: float) -> Guest:
    """Return the guest with a request, if it follows it.

    It does not if it does not run, or if it is asked to suspend while it shuts down. A hold's
    report of a request that is known only moves the deadline.
    """
    if guest.phase is not (Phase.SUSPENDING if kind is RequestKind.SUSPEND else Phase.LEAVING):
        return guest
    services = services_of(state, guest)
    grace = max((service.drain.shutdown_grace for service in services), default=DEFAULT_GRACE)
    if kind is RequestKind.INSIDE:  # it has a hold, which may take as long as a drain
        hold = max((service.drain.timeout for service in services), default=0.0) + HOLD_MARGIN
        grace = max(grace, hold)
        if guest.request is not None:
            deadline = max(guest.request.deadline, at + hold)
            return replace(guest, request=replace(guest.request, deadline=deadline))
    request = Request(kind=kind, at=at, deadline=at + grace)
    drain = guest.drain or Drain(
        reason=request.text(),
        by="",
        since=at,
        requested=True,
        warnings=hindrances(services, state.observed.wrong_sysctls),
    )
    return replace(guest, request=request, drain=drain)


def announced_by_guest(guest: Guest) -> bool:
    """Return whether the guest itself began its shutdown; only then can it cancel it."""
    return guest.request is not None and guest.request.kind is RequestKind.INSIDE


def ending_notes(before: Guest, after: Guest, at: float) -> Iterator[Note]:
    """Yield a note if a drain ended between the two."""
    if after.last_drain is None or after.last_drain is before.last_drain:
        return
    if before.active_drain is not None:  # else it was noted when it was over
        yield _ending(after, after.last_drain, at)


def _ending(guest: Guest, drain: Drain, at: float) -> Note:
    left = drain.left or 0
    cut = drain.outcome in {Outcome.DEADLINE, Outcome.GONE} and left > 0
    with_left = f" with {connections(left)} left" if left else ""
    after = f"after {at - drain.since:.1f} s"
    if drain.outcome is Outcome.DEADLINE:
        text = f"drain timed out {after}{with_left}"
    else:
        text = f"drain ended {after}: {drain.outcome}{with_left}"
    return Note(at, NoteKind.DRAIN_ENDED, text, guest.id, warning=cut)


# --- operators -----------------------------------------------------------------------------------


def drain(state: State, event: DrainRequested) -> Change:
    """Begin a drain; no effect if the guest is absent or unknown."""
    guest = state.guests.get(event.guest)
    if guest is None or guest.phase is Phase.ABSENT:
        return nothing_follows(state)
    changed, notes = _drained(state, guest, event)
    return Change(state=changed, services=service_names(state, guest), notes=notes)


def _drained(state: State, guest: Guest, event: DrainRequested) -> tuple[State, tuple[Note, ...]]:
    services = services_of(state, guest)
    timeout = event.timeout
    if timeout is None:
        timeout = max((service.drain.timeout for service in services), default=DEFAULT_TIMEOUT)
    warnings = hindrances(services, state.observed.wrong_sysctls)
    begun = Drain(
        reason="drained" if event.then is None else f"drained for {VERBS[event.then]}",
        by=event.by,
        since=event.at,
        deadline=event.at + timeout,
        then=event.then,
        left=None if guest.drain is None else guest.drain.left,
        warnings=warnings,
    )
    notes = (
        Note(event.at, NoteKind.DRAIN_BEGUN, begun.text(), guest.id),
        *(Note(event.at, NoteKind.DRAIN_HINDERED, w, guest.id, warning=True) for w in warnings),
    )
    return state.with_guests(replace(guest, drain=begun)), notes


def can_undrain(guest: Guest) -> bool:
    """Return whether the guest is drained or shutting down."""
    leaving = guest.phase in {Phase.LEAVING, Phase.SUSPENDING}
    return guest.phase is not Phase.ABSENT and (guest.drain is not None or leaving)


def undrain(state: State, event: UndrainRequested) -> Change:
    """Put a guest back into service; also cancel its request: the operator knows that it stays."""
    guest = state.guests.get(event.guest)
    if guest is None or not can_undrain(guest):
        return nothing_follows(state)
    after = undrained(guest, Outcome.UNDRAINED, at=event.at)
    if guest.request is not None:
        after = transition(after, LifecycleEvent.STAYS, at=event.at, incarnation=guest.incarnation)
    notes = (
        Note(event.at, NoteKind.UNDRAINED, f"undrained by {event.by}", guest.id),
        *ending_notes(guest, after, event.at),
    )
    names = service_names(state, guest)
    return Change(state=state.with_guests(after), services=names, notes=notes)


def drain_all(state: State, event: DrainAllRequested) -> Change:
    """Drain as many guests of this host as may be drained now; may be repeated."""
    changed, notes, names = state, list[Note](), frozenset[str]()
    for guest_id in drainable(state, rest=event.rest):
        guest = state.guests[guest_id]
        request = DrainRequested(at=event.at, guest=guest_id, by=event.by, timeout=event.timeout)
        changed, begun = _drained(changed, guest, request)
        notes += begun
        names |= service_names(state, guest)
    return Change(state=changed, services=names, notes=tuple(notes))


# --- progress and ends ---------------------------------------------------------------------------


def request_sent(state: State, event: RequestSent) -> Change:
    """Take libvirt's reply to the request after a drain."""
    guest = state.guests.get(event.guest)
    if guest is None or guest.drain is None or guest.drain.then is not event.kind:
        return nothing_follows(state)  # it is gone, boots again, or was undrained
    verb = VERBS[event.kind]
    after = replace(guest, drain=replace(guest.drain, asked=True, failure=event.failure))
    if event.failure:
        text = f"libvirt refuses the {verb}: {event.failure}; the guest stays out of service"
    else:
        text = f"{verb} requested from libvirt"
        after = transition(
            after, LifecycleEvent.SHUTDOWN_REQUESTED, at=event.at, incarnation=guest.incarnation
        )
        if after.request is None:  # not every hypervisor has an event for a request
            after = with_request(state, after, event.kind, event.at)
    note = Note(event.at, NoteKind.REQUEST_SENT, text, guest.id, warning=bool(event.failure))
    names = service_names(state, guest)
    return Change(state=state.with_guests(after), services=names, notes=(note,))


def connections_counted(state: State, event: ConnectionsCounted) -> Change:
    """Update active drains from a count of connections, and end those that are empty."""
    changed: list[Guest] = []
    notes: list[Note] = []
    for guest in state.guests.values():
        drain = guest.active_drain
        if drain is None or drain.since > event.at:
            continue
        entries = tuple(table_entries(state, guest))
        left = sum(
            connections_left(service, key, event.counters.get(key, {}).get(server))
            for service, key, server in entries
        )
        udp = max((s.drain.udp for s, key, _ in entries if is_udp(key)), default=0.0)
        after = with_count(drain, left, event.at, earliest=drain.since + udp)
        if after is not drain:
            changed.append(replace(guest, drain=after))
        if not after.active:
            notes.append(_ending(guest, after, event.at))
    return nothing_follows(state.with_guests(*changed), *notes)


def table_entries(
    state: State, guest: Guest
) -> Iterator[tuple[ServiceSettings, ServiceKey, ServerKey]]:
    """Yield the guest's servers in the table."""
    for service in services_of(state, guest):
        for candidate in state.derived.candidates.get(service.name, ()):
            server, own = candidate.server, candidate.owner == guest.id
            if own and server is not None and server in state.remembered.admitted:
                yield service, server.service, server.key


def services_to_count(state: State) -> frozenset[ServiceKey]:
    """Return the services whose counters an active drain needs."""
    return frozenset(
        key
        for guest in state.guests.values()
        if guest.active_drain is not None
        for _, key, _ in table_entries(state, guest)
    )


def any_active(state: State) -> bool:
    """Return whether any drain waits for connections to end."""
    return any(guest.active_drain is not None for guest in state.guests.values())


def requests_due(state: State, at: float) -> Mapping[GuestId, RequestKind]:
    """Return the requests to send to libvirt now: of guests whose drain is over."""
    return {
        key: guest.drain.then
        for key, guest in state.guests.items()
        if guest.drain is not None
        and guest.drain.request_due
        and guest.drain.then is not None
        and at < (guest.drain.request_expires or 0.0)
    }


def tick(state: State, at: float) -> Change:
    """Apply the deadlines of requests, drains, slow starts, UDP servers and reserved addresses."""
    changed: list[Guest] = []
    notes: list[Note] = []
    timed = {server.service for server in timed_servers(state)}
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
            names |= service_names(state, guest)
            notes.append(_ignored(guest.request, after, at))
        drain = after.drain
        if drain is not None and drain.active and (drain.deadline or inf) <= at:
            drain = ended(drain, Outcome.DEADLINE, at)
            after = replace(after, drain=drain)
            notes.append(_ending(after, drain, at))
        expires = None if drain is None or not drain.request_due else drain.request_expires
        if drain is not None and drain.then is not None and expires is not None and expires <= at:
            after = undrained(after, Outcome.UNASKED, at=at)
            names |= service_names(state, guest)
            subject = f"libvirt could not be reached in time for the {VERBS[drain.then]}"
            text = f"{subject}: back into service, the request is dropped"
            notes.append(Note(expires, NoteKind.REQUEST_SENT, text, guest.id, warning=True))
        after = without_expired_reservation(after, at)
        if after is not guest:
            changed.append(after)
    return Change(state=state.with_guests(*changed), services=frozenset(names), notes=tuple(notes))


def _ignored(request: Request, after: Guest, at: float) -> Note:
    inside = request.kind is RequestKind.INSIDE
    cause = "reported its shutdown" if inside else f"was {request.text()}"
    consequence = "still drained" if after.drain else "back into service"
    text = f"still runs {at - request.at:.0f} s after it {cause}: {consequence}"
    return Note(at, NoteKind.GUEST_STAYS, text, after.id, warning=True)
