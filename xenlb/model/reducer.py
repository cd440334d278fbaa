"""The reducer: folds an event into the state.

Handlers return what an event changes by itself; `recompute` completes the state once after each.
"""

from dataclasses import replace
from typing import assert_never

from xenlb.model import (
    address_choice,
    address_claims,
    check_results,
    draining,
    inconsistencies,
    readiness,
    reconfigure,
)
from xenlb.model.addresses import RANKS, AddressCandidate
from xenlb.model.domain import DomainDescription, DomainState
from xenlb.model.events import (
    AddressesFound,
    ConfigurationRefused,
    Configured,
    ConnectionsCounted,
    Disconnected,
    DrainAllRequested,
    DrainRequested,
    Event,
    GuestInspected,
    GuestsListed,
    LifeEvent,
    MetadataChanged,
    ProbeFinished,
    RequestSent,
    Started,
    SysctlsChecked,
    Tick,
    Undefined,
    UndrainRequested,
)
from xenlb.model.guest import Guest, LifecycleEvent, Phase, transition
from xenlb.model.lifecycle import apply_life_event
from xenlb.model.membership import service_names
from xenlb.model.note import Note, NoteKind
from xenlb.model.recompute import recompute
from xenlb.model.reserved_addresses import HostNetworkChanged
from xenlb.model.state import Change, State, Transition, nothing_follows

# Events after which configuration, metadata and guests may no longer fit together.
_NAMING = Configured | GuestsListed | Started | MetadataChanged | Undefined | HostNetworkChanged


def reduce(state: State, event: Event) -> Transition:
    """Fold an event into the state. Total: every event is taken in every state."""
    change = _change(state, event)
    result = Transition(state=change.state, notes=change.notes)
    if change.follows:
        result = recompute(state, change, event.at)
    match event:
        case Configured():
            result = reconfigure.summarized(state, event, result)
        case AddressesFound() if change.follows:
            result = address_claims.with_address_notes(state.guests[event.guest], event, result)
        case ProbeFinished():
            guest = address_choice.without_failing_address(result.state, event)
            if guest is not None:
                given_up = _given_up(result.state, guest, event)
                result = result.then(recompute(result.state, given_up, event.at))
    if isinstance(event, _NAMING):
        result = inconsistencies.with_inconsistencies(state, result, event.at)
    return result


def _change(state: State, event: Event) -> Change:
    if isinstance(event, LifeEvent):
        return apply_life_event(state, event)
    match event:
        case Configured():
            return reconfigure.configured(state, event)
        case ConfigurationRefused():
            return reconfigure.refused(state, event)
        case GuestsListed():
            return _listed(state, event)
        case Disconnected():
            return _disconnected(state, event)
        case ProbeFinished():
            return check_results.apply_check_result(state, event)
        case GuestInspected():
            return _inspected(state, event)
        case ConnectionsCounted():
            return draining.connections_counted(state, event)
        case SysctlsChecked(wrong=wrong):
            observed = replace(state.observed, wrong_sysctls=wrong)
            return nothing_follows(replace(state, observed=observed))
        case Tick(at=at):
            return draining.tick(state, at)
        case DrainRequested():
            return draining.drain(state, event)
        case DrainAllRequested():
            return draining.drain_all(state, event)
        case RequestSent():
            return draining.request_sent(state, event)
        case UndrainRequested():
            return draining.undrain(state, event)
        case AddressesFound():
            return _addresses_found(state, event)
        case HostNetworkChanged(host=host):
            observed = replace(state.observed, host=host)
            return Change(state=replace(state, observed=observed), services=None)
        case MetadataChanged():
            return _metadata_changed(state, event)
        case Undefined():
            return _undefined(state, event)
        case _:
            assert_never(event)


def _given_up(state: State, guest: Guest, event: ProbeFinished) -> Change:
    text = f"address {event.target.address} is given up: another address of the guest passes"
    changed = state.with_guests(guest)
    note = Note(event.at, NoteKind.ADDRESS, text, guest.id)
    return Change(state=changed, services=service_names(changed, guest), notes=(note,))


def _disconnected(state: State, event: Disconnected) -> Change:
    link = state.observed.links.get(event.uri)
    if link is None:
        return nothing_follows(state)
    lost = replace(link, connected=False, since=event.at, reason=event.reason)
    links = {**state.observed.links, event.uri: lost}
    text = (
        f"libvirt {event.uri} is not connected: {event.reason}; its guests keep their state"
        " (systemctl status libvirtd)"
    )
    return nothing_follows(
        replace(state, observed=replace(state.observed, links=links)),
        Note(event.at, NoteKind.LIBVIRT_LOST, text, warning=True),
    )


def _undefined(state: State, event: Undefined) -> Change:
    guest = state.guests.get(event.guest)
    if guest is None or guest.phase is not Phase.ABSENT:
        return nothing_follows(state)
    guests = {key: other for key, other in state.guests.items() if key != event.guest}
    remembered = replace(state.remembered, guests=guests)
    return Change(state=replace(state, remembered=remembered), services=service_names(state, guest))


def _listed(state: State, event: GuestsListed) -> Change:
    """Take over the list of one libvirt; events since the listing began are newer."""
    link = state.observed.links.get(event.uri)
    if link is None:
        return nothing_follows(state)
    links = dict(state.observed.links)
    links[event.uri] = replace(
        link,
        connected=True,
        listed=True,
        reason="",
        since=link.since if link.connected else event.at,
    )
    guests = {key: guest for key, guest in state.guests.items() if key.uri != event.uri}
    notes = []
    listed = {description.guest for description in event.guests}
    for description in event.guests:
        before = state.guests.get(description.guest)
        guests[description.guest] = after = _described(before, description, event)
        if before is None or before.phase is not after.phase:
            text = f"listed by libvirt: {after.phase}"
            notes.append(Note(event.at, NoteKind.GUEST_LISTED, text, after.id))
    for key, guest in state.guests.items():
        if key.uri != event.uri or key in listed:
            continue
        if guest.last_event > event.requested_at:  # it started during the listing
            guests[key] = guest
        else:
            notes.append(Note(event.at, NoteKind.GUEST_LISTED, "no longer known to libvirt", key))
    wanted = state.settings.uris
    if all(links[uri].listed for uri in wanted):  # removed URIs are replaced by now
        links = {uri: link for uri, link in links.items() if uri in wanted}
        guests = {key: guest for key, guest in guests.items() if key.uri in links}
    changed = replace(
        state,
        observed=replace(state.observed, links=links),
        remembered=replace(state.remembered, guests=guests),
    )
    return Change(state=changed, services=None, notes=tuple(notes))


_LISTED_AS = {
    DomainState.OFF: LifecycleEvent.GONE,
    DomainState.CRASHED: LifecycleEvent.GONE,
    DomainState.RUNNING: LifecycleEvent.RUNNING,
    DomainState.PAUSED: LifecycleEvent.PAUSED,
}


def _described(guest: Guest | None, description: DomainDescription, event: GuestsListed) -> Guest:
    if guest is None:
        guest = Guest(id=description.guest, name=description.name, since=event.at)
    guest = replace(guest, name=description.name)
    if guest.metadata_at <= event.requested_at:
        guest = replace(
            guest, metadata=description.metadata, metadata_problems=description.metadata_problems
        )
    new_domain = guest.phase is Phase.ABSENT and description.incarnation != guest.incarnation
    if guest.last_event > event.requested_at and not new_domain:
        return guest
    life_event = _LISTED_AS[description.domain_state]
    if life_event is not LifecycleEvent.GONE:
        return transition(guest, life_event, at=event.at, incarnation=description.incarnation)
    if guest.phase is Phase.ABSENT:
        return guest
    return transition(guest, life_event, at=event.at, incarnation=guest.incarnation)


def _present_guest(state: State, event: AddressesFound | GuestInspected) -> Guest | None:
    """Return the guest if it runs as the domain of the event."""
    guest = state.guests.get(event.guest)
    if guest is None or guest.phase is Phase.ABSENT or guest.incarnation != event.incarnation:
        return None
    return guest


def _addresses_found(state: State, event: AddressesFound) -> Change:
    guest = _present_guest(state, event)
    if guest is None:
        return nothing_follows(state)
    rejected = {address.text for address in event.rejected}
    before = tuple(item for item in guest.candidates if str(item.address) not in rejected)
    candidates = _merged(before, event.candidates)
    after = replace(guest, candidates=candidates, rejected=event.rejected)
    if after == guest:
        return nothing_follows(state)
    changed = state.with_guests(after)
    return Change(state=changed, services=service_names(changed, after))


def _merged(
    before: tuple[AddressCandidate, ...], after: tuple[AddressCandidate, ...]
) -> tuple[AddressCandidate, ...]:
    """Return the addresses found now, and the former ones of a family without any now.

    Neighbour entries and reports come and go, for IPv4 and IPv6 independently. Among equal sources
    the order is that of the source; a server does not move for it.
    """
    families = {item.address.version for item in after}
    kept = [item for item in before if item.address.version not in families]
    return tuple(sorted([*after, *kept], key=lambda item: RANKS[item.source]))


def _inspected(state: State, event: GuestInspected) -> Change:
    guest = _present_guest(state, event)
    if guest is None:
        return nothing_follows(state)
    after = replace(guest, readiness=event.verdicts)
    changed = state.with_guests(after)
    notes = tuple(
        Note(event.at, NoteKind.GUEST_INSPECTED, text, guest.id, warning=warning)
        for text, warning in readiness.changed_verdicts(guest.readiness, after.readiness)
    )
    return Change(state=changed, services=service_names(changed, after), notes=notes)


def _metadata_changed(state: State, event: MetadataChanged) -> Change:
    guest = state.guests.get(event.guest)
    if guest is None:
        return nothing_follows(state)
    after = replace(
        guest, metadata=event.services, metadata_problems=event.problems, metadata_at=event.at
    )
    changed = state.with_guests(after)
    kind = NoteKind.GUEST_METADATA
    notes = [
        Note(event.at, kind, f"metadata: {problem}", guest.id, warning=True)
        for problem in event.problems
        if problem not in guest.metadata_problems
    ]
    if after.metadata != guest.metadata:
        notes.append(Note(event.at, kind, "metadata changed", guest.id))
    names = service_names(state, guest) | service_names(changed, after)
    return Change(state=changed, services=names, notes=tuple(notes))
