"""state = step(state, event): how everything that is heard changes what is known.

The rules of a guest's life are in guest.py, those of drains in draining.py, what the result of a
check changes in check_results.py; here events are given to them, and admission.py draws the
conclusion: who is let in, who has left.
"""

from dataclasses import replace
from typing import assert_never

from xenlb.model import (
    address_choice,
    address_claims,
    check_results,
    draining,
    inconsistencies,
    lifecycle,
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
    Crashed,
    Died,
    Disconnected,
    DrainAllRequested,
    DrainRequested,
    Event,
    GuestInspected,
    GuestsListed,
    MetadataChanged,
    Paused,
    ProbeFinished,
    Rebooted,
    RequestSent,
    Resumed,
    ShutdownCancelled,
    ShutdownRequested,
    Started,
    Stopped,
    SysctlsChecked,
    Tick,
    Undefined,
    UndrainRequested,
)
from xenlb.model.guest import Guest, LifecycleEvent, Phase, transition
from xenlb.model.membership import names_of
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
            result = address_claims.noted(state.guests[event.guest], event, result)
        case ProbeFinished():
            if (guest := address_choice.given_up(result.state, event)) is not None:
                given_up = _given_up(result.state, guest, event)
                result = result.then(recompute(result.state, given_up, event.at))
    if isinstance(event, _NAMING):
        result = inconsistencies.noted(state, result, event.at)
    return result


def _change(state: State, event: Event) -> Change:
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
            return draining.counted(state, event)
        case SysctlsChecked(wrong=wrong):
            return nothing_follows(
                replace(state, observed=replace(state.observed, wrong_sysctls=wrong))
            )
        case Tick(at=at):
            return draining.tick(state, at)
        case DrainRequested():
            return draining.drain(state, event)
        case DrainAllRequested():
            return draining.drain_all(state, event)
        case RequestSent():
            return draining.sent(state, event)
        case UndrainRequested():
            return draining.undrain(state, event)
        case AddressesFound():
            return _addresses(state, event)
        case HostNetworkChanged(host=host):
            return Change(
                state=replace(state, observed=replace(state.observed, host=host)), services=None
            )
        case MetadataChanged():
            return _metadata(state, event)
        case Undefined():
            return _undefined(state, event)
        case (
            Started()
            | ShutdownRequested()
            | ShutdownCancelled()
            | Died()
            | Stopped()
            | Crashed()
            | Paused()
            | Resumed()
            | Rebooted()
        ):
            return lifecycle.happened(state, event)
        case _:
            assert_never(event)


def _given_up(state: State, guest: Guest, event: ProbeFinished) -> Change:
    text = f"address {event.target.address} is given up: another one of the guest passes"
    changed = state.with_guests(guest)
    note = Note(at=event.at, kind=NoteKind.ADDRESS, guest=guest.id, text=text)
    return Change(state=changed, services=names_of(changed, guest), notes=(note,))


def _disconnected(state: State, event: Disconnected) -> Change:
    link = state.observed.links.get(event.uri)
    if link is None:
        return nothing_follows(state)
    lost = replace(link, connected=False, since=event.at, reason=event.reason)
    links = {**state.observed.links, event.uri: lost}
    text = (
        f"libvirt {event.uri} is not connected: {event.reason}; its guests stay as they are"
        " (systemctl status libvirtd)"
    )
    observed = replace(state.observed, links=links)
    return nothing_follows(
        replace(state, observed=observed),
        Note(at=event.at, kind=NoteKind.LIBVIRT_LOST, text=text, warning=True),
    )


def _undefined(state: State, event: Undefined) -> Change:
    guest = state.guests.get(event.guest)
    if guest is None or guest.phase is not Phase.ABSENT:
        return nothing_follows(state)
    guests = {key: other for key, other in state.guests.items() if key != event.guest}
    remembered = replace(state.remembered, guests=guests)
    return Change(state=replace(state, remembered=remembered), services=names_of(state, guest))


def _listed(state: State, event: GuestsListed) -> Change:
    """All guests of one libvirt. What was heard of a guest since the listing began is newer."""
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
    listed = {described.guest for described in event.guests}
    for described in event.guests:
        before = state.guests.get(described.guest)
        after = _described(before, described, event)
        guests[described.guest] = after
        if before is None or before.phase is not after.phase:
            notes.append(
                Note(
                    at=event.at,
                    kind=NoteKind.GUEST_LISTED,
                    guest=after.id,
                    text=f"listed by libvirt: {after.phase}",
                )
            )
    for key, guest in state.guests.items():
        if key.uri != event.uri or key in listed:
            continue
        if guest.last_event > event.requested_at:  # it came to be while the listing was under way
            guests[key] = guest
        else:
            notes.append(
                Note(
                    at=event.at,
                    kind=NoteKind.GUEST_LISTED,
                    guest=key,
                    text="no longer known to libvirt",
                )
            )
    wanted = state.settings.uris
    if all(links[uri].listed for uri in wanted):  # what is not wanted any more is replaced now
        links = {uri: link for uri, link in links.items() if uri in wanted}
        guests = {key: guest for key, guest in guests.items() if key.uri in links}
    changed = replace(
        state,
        observed=replace(state.observed, links=links),
        remembered=replace(state.remembered, guests=guests),
    )
    return Change(state=changed, services=None, notes=tuple(notes))


def _described(guest: Guest | None, described: DomainDescription, event: GuestsListed) -> Guest:
    if guest is None:
        guest = Guest(id=described.guest, name=described.name, since=event.at)
    guest = replace(guest, name=described.name)
    if guest.metadata_at <= event.requested_at:
        guest = replace(
            guest,
            metadata=described.metadata,
            metadata_problems=described.metadata_problems,
        )
    other = guest.phase is Phase.ABSENT and described.incarnation != guest.incarnation
    if guest.last_event > event.requested_at and not other:
        return guest
    happening = {
        DomainState.OFF: LifecycleEvent.GONE,
        DomainState.CRASHED: LifecycleEvent.GONE,
        DomainState.RUNNING: LifecycleEvent.RUNNING,
        DomainState.PAUSED: LifecycleEvent.PAUSED,
    }[described.domain_state]
    if happening is LifecycleEvent.GONE:
        if guest.phase is Phase.ABSENT:
            return guest
        return transition(guest, happening, at=event.at, incarnation=guest.incarnation)
    return transition(guest, happening, at=event.at, incarnation=described.incarnation)


def _addresses(state: State, event: AddressesFound) -> Change:
    guest = state.guests.get(event.guest)
    if guest is None or guest.phase is Phase.ABSENT or guest.incarnation != event.incarnation:
        return nothing_follows(state)
    refused = {item.text for item in event.rejected}
    before = tuple(item for item in guest.candidates if str(item.address) not in refused)
    found = _kept(before, event.candidates)
    after = replace(guest, candidates=found, rejected=event.rejected)
    if after == guest:
        return nothing_follows(state)
    changed = state.with_guests(after)
    return Change(state=changed, services=names_of(changed, after))


def _kept(
    before: tuple[AddressCandidate, ...], found: tuple[AddressCandidate, ...]
) -> tuple[AddressCandidate, ...]:
    """What was found now; of a family that nothing was found of, what was found before.

    Neighbour entries and reports come and go, and those of IPv4 and IPv6 apart from each other.
    Among equal sources the order is that of the source; a server does not move for it
    (address_choice.py).
    """
    families = {item.address.version for item in found}
    kept = [item for item in before if item.address.version not in families]
    return tuple(sorted([*found, *kept], key=lambda item: RANKS[item.source]))


def _inspected(state: State, event: GuestInspected) -> Change:
    guest = state.guests.get(event.guest)
    if guest is None or guest.phase is Phase.ABSENT or guest.incarnation != event.incarnation:
        return nothing_follows(state)
    after = replace(guest, readiness=event.verdicts)
    changed = state.with_guests(after)
    notes = [
        Note(
            at=event.at,
            kind=NoteKind.GUEST_INSPECTED,
            guest=guest.id,
            text=text,
            warning=warning,
        )
        for text, warning in readiness.news(guest.readiness, after.readiness)
    ]
    return Change(state=changed, services=names_of(changed, after), notes=tuple(notes))


def _metadata(state: State, event: MetadataChanged) -> Change:
    guest = state.guests.get(event.guest)
    if guest is None:
        return nothing_follows(state)
    after = replace(
        guest,
        metadata=event.services,
        metadata_problems=event.problems,
        metadata_at=event.at,
    )
    changed = state.with_guests(after)
    notes = [
        Note(
            at=event.at,
            kind=NoteKind.GUEST_METADATA,
            guest=guest.id,
            text=f"metadata: {problem}",
            warning=True,
        )
        for problem in event.problems
        if problem not in guest.metadata_problems
    ]
    if after.metadata != guest.metadata:
        notes.append(
            Note(
                at=event.at,
                kind=NoteKind.GUEST_METADATA,
                guest=guest.id,
                text="metadata changed",
            )
        )
    names = names_of(state, guest) | names_of(changed, after)
    return Change(state=changed, services=names, notes=tuple(notes))
