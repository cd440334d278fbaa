"""state = step(state, event): how everything that is heard changes what is known.

The rules of a guest's life are in guest.py, those of health in health.py; here events are given
to them, and settle.py draws the conclusion: who is let in, who has left.
"""

from dataclasses import dataclass, replace
from typing import assert_never

from xenlb.model.events import (
    AddressesFound,
    Ask,
    Asked,
    ConfigurationRefused,
    Configured,
    Crashed,
    Described,
    Died,
    Disconnected,
    DrainAsked,
    Event,
    Found,
    Listed,
    MetadataChanged,
    Paused,
    Power,
    Probed,
    Rebooted,
    Resumed,
    Started,
    Stopped,
    Tick,
    Undefined,
    UndrainAsked,
)
from xenlb.model.guest import Drain, Guest, Happening, Phase, Request, hear
from xenlb.model.health import judge
from xenlb.model.members import RANKS, services_of
from xenlb.model.settle import settle
from xenlb.model.state import Link, Note, State

DEFAULT_GRACE = 300.0  # seconds, for a guest that belongs to no service


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """The new state, the services whose servers may have changed, and what to write down.

    `services` None means all.
    """

    state: State
    services: frozenset[str] | None = frozenset()
    notes: tuple[Note, ...] = ()


def step(state: State, event: Event) -> Step:
    """Total: every event is taken in every state."""
    match event:
        case Configured(settings=settings, at=at):
            links = {uri: state.links.get(uri, Link(since=at)) for uri in settings.uris}
            guests = {key: guest for key, guest in state.guests.items() if key.uri in links}
            known = replace(
                state,
                settings=settings,
                problems=(),
                configured_at=at,
                links=links,
                guests=guests,
            )
            return _settled(state, known, None, at, Note(at=at, text="configuration loaded"))
        case ConfigurationRefused(at=at, problems=problems):
            text = f"configuration refused, the last good one goes on: {problems[0]}"
            if len(problems) > 1:
                text += f" (and {len(problems) - 1} more)"
            note = Note(at=at, text=text, warning=True)
            return Step(state=replace(state, problems=problems), notes=(note,))
        case Listed():
            return _listed(state, event)
        case Disconnected(at=at, uri=uri, reason=reason):
            link = state.links.get(uri)
            if link is None:
                return Step(state=state)
            links = {
                **state.links,
                uri: replace(link, connected=False, since=at, reason=reason),
            }
            note = Note(at=at, text=f"libvirt {uri} is not connected: {reason}", warning=True)
            return Step(state=replace(state, links=links), notes=(note,))
        case Probed():
            return _probed(state, event)
        case Tick(at=at):
            return _tick(state, at)
        case DrainAsked() | UndrainAsked():
            return _operator(state, event)
        case AddressesFound():
            return _addresses(state, event)
        case MetadataChanged():
            return _metadata(state, event)
        case Undefined(guest=guest_id):
            guest = state.guests.get(guest_id)
            if guest is None or guest.phase is not Phase.ABSENT:
                return Step(state=state)
            names = _names(state, guest)
            guests = {key: value for key, value in state.guests.items() if key != guest_id}
            return _settled(state, replace(state, guests=guests), names, event.at)
        case Started() | Asked() | Died() | Stopped() | Crashed() | Paused() | Resumed():
            return _lived(state, event)
        case Rebooted():
            return _lived(state, event)
        case _:
            assert_never(event)


LifeEvent = Started | Asked | Died | Stopped | Crashed | Paused | Resumed | Rebooted


def _lived(state: State, event: LifeEvent) -> Step:
    """Something happened in the life of a guest."""
    if event.guest.uri not in state.links:
        return Step(state=state)
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
            metadata_heard=event.at,
        )
    happening, text = _happening(event)
    heard = hear(guest, happening, at=event.at, incarnation=event.incarnation)
    present = event.incarnation in {None, heard.incarnation}
    if isinstance(event, Asked) and present and _goes(heard, event.ask):
        heard = replace(
            heard,
            request=Request(ask=event.ask, at=event.at, deadline=event.at + _grace(state, heard)),
        )
    took = _took(guest, heard)
    if took or present:  # news of a former incarnation says nothing of this one's life
        heard = replace(heard, heard=event.at)
    changed = replace(state, guests={**state.guests, event.guest: heard})
    late = "" if took or isinstance(event, Started) else ", which changes nothing"
    note = Note(at=event.at, guest=event.guest, text=f"{text}{late}")
    return _settled(state, changed, _names(state, guest) | _names(changed, heard), event.at, note)


def _goes(guest: Guest, ask: Ask) -> bool:
    """Does the guest go because of this request? Not if it was told to shut down before."""
    return guest.phase is (Phase.SUSPENDING if ask is Ask.SUSPEND else Phase.LEAVING)


def _took(before: Guest, after: Guest) -> bool:
    return replace(before, deaths=()) != replace(after, deaths=())


def _happening(event: LifeEvent) -> tuple[Happening, str]:
    domain = "" if event.incarnation is None else f" (domain {event.incarnation})"
    match event:
        case Started(paused=True):
            return Happening.PAUSED, f"started, paused{domain}"
        case Started():
            return Happening.RUNNING, f"started{domain}"
        case Asked(ask=Ask.SUSPEND):
            return Happening.ASKED_TO_SUSPEND, f"asked to suspend{domain}"
        case Asked(ask=ask):
            return Happening.ASKED_TO_GO, f"asked for {ask}{domain}"
        case Died():
            return Happening.GONE, f"gone{domain}"
        case Stopped(why=why):
            return Happening.GONE, f"stopped: {why}{domain}"
        case Crashed():
            return Happening.GONE, f"crashed{domain}"
        case Paused():
            return Happening.PAUSED, f"paused{domain}"
        case Resumed():
            return Happening.RESUMED, f"resumed{domain}"
        case Rebooted():
            return Happening.REBOOTED, f"rebooted{domain}"
        case _:
            assert_never(event)


def _grace(state: State, guest: Guest) -> float:
    graces = [service.drain.shutdown_grace for service in services_of(state, guest)]
    return max(graces, default=DEFAULT_GRACE)


def _names(state: State, guest: Guest) -> frozenset[str]:
    return frozenset(service.name for service in services_of(state, guest))


def _listed(state: State, event: Listed) -> Step:
    """All guests of one libvirt. What was heard of a guest since the listing began is newer."""
    link = state.links.get(event.uri)
    if link is None:
        return Step(state=state)
    links = dict(state.links)
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
                Note(at=event.at, guest=after.id, text=f"listed by libvirt: {after.phase}")
            )
    for key, guest in state.guests.items():
        if key.uri != event.uri or key in listed:
            continue
        if guest.heard > event.asked:  # it came to be while the listing was under way
            guests[key] = guest
        else:
            notes.append(Note(at=event.at, guest=key, text="no longer known to libvirt"))
    changed = replace(state, links=links, guests=guests)
    return _settled(state, changed, None, event.at, *notes)


def _described(guest: Guest | None, described: Described, event: Listed) -> Guest:
    if guest is None:
        guest = Guest(id=described.guest, name=described.name, since=event.at)
    guest = replace(guest, name=described.name)
    if guest.metadata_heard <= event.asked:
        guest = replace(
            guest,
            metadata=described.metadata,
            metadata_problems=described.metadata_problems,
        )
    other = guest.phase is Phase.ABSENT and described.incarnation != guest.incarnation
    if guest.heard > event.asked and not other:
        return guest
    happening = {
        Power.OFF: Happening.GONE,
        Power.CRASHED: Happening.GONE,
        Power.RUNNING: Happening.RUNNING,
        Power.PAUSED: Happening.PAUSED,
    }[described.power]
    if happening is Happening.GONE:
        if guest.phase is Phase.ABSENT:
            return guest
        return hear(guest, happening, at=event.at, incarnation=guest.incarnation)
    return hear(guest, happening, at=event.at, incarnation=described.incarnation)


def _probed(state: State, event: Probed) -> Step:
    health = state.health.get(event.target)
    if health is None:
        return Step(state=state)
    after = judge(health, event, event.target.check)
    changed = replace(state, health={**state.health, event.target: after})
    if after.up is health.up:
        return Step(state=changed)
    names = frozenset(name for name, targets in state.probed.items() if event.target in targets)
    word = "passes" if after.up else "fails"
    note = Note(
        at=event.at,
        text=f"check {event.target} {word}: {event.detail}",
        warning=not after.up,
        guest=state.owners.get(event.target.address),
    )
    return _settled(state, changed, names, event.at, note)


def _tick(state: State, at: float) -> Step:
    guests = dict(state.guests)
    notes: list[Note] = []
    ramped = {slot.service for slot, entry in state.admitted.items() if entry.ramp}
    names = {
        service.name
        for service in state.settings.services
        if not ramped.isdisjoint(service.kernel_keys())
    }
    for key, guest in state.guests.items():
        if guest.request is not None and guest.request.deadline <= at:
            after = hear(guest, Happening.GRACE_OVER, at=at, incarnation=guest.incarnation)
            guests[key] = replace(after, request=None)
            names |= _names(state, guest)
            text = (
                f"still runs {at - guest.request.at:.0f} s after it was asked for"
                f" {guest.request.ask}: {'still drained' if guest.drain else 'back into service'}"
            )
            notes.append(Note(at=at, guest=key, text=text, warning=True))
    return _settled(state, replace(state, guests=guests), frozenset(names), at, *notes)


def _operator(state: State, event: DrainAsked | UndrainAsked) -> Step:
    guest = state.guests.get(event.guest)
    if guest is None or guest.phase is Phase.ABSENT:
        return Step(state=state)
    if isinstance(event, DrainAsked):
        policies = [service.drain.timeout for service in services_of(state, guest)]
        timeout = max(policies, default=60.0) if event.timeout is None else event.timeout
        drain = Drain(reason="drained", by=event.by, since=event.at, deadline=event.at + timeout)
        text = f"drained by {event.by}"
    else:
        drain, text = None, f"undrained by {event.by}"
    changed = replace(state, guests={**state.guests, event.guest: replace(guest, drain=drain)})
    note = Note(at=event.at, guest=event.guest, text=text)
    return _settled(state, changed, _names(state, guest), event.at, note)


def _addresses(state: State, event: AddressesFound) -> Step:
    guest = state.guests.get(event.guest)
    if guest is None or guest.phase is Phase.ABSENT or guest.incarnation != event.incarnation:
        return Step(state=state)
    found = _kept(guest.found, event.found)
    after = replace(guest, found=found, refused=event.refused)
    if after == guest:
        return Step(state=state)
    notes = [
        Note(at=event.at, guest=guest.id, text=f"address {item.address} ({item.source})")
        for item in found
        if item not in guest.found
    ] + [
        Note(
            at=event.at,
            guest=guest.id,
            text=f"address {item.text} ({item.source}) refused: {item.reason}",
            warning=True,
        )
        for item in event.refused
        if item not in guest.refused
    ]
    changed = replace(state, guests={**state.guests, guest.id: after})
    return _settled(state, changed, _names(changed, after), event.at, *notes)


def _kept(before: tuple[Found, ...], found: tuple[Found, ...]) -> tuple[Found, ...]:
    """What was found now; of a family that nothing was found of, what was found before.

    Neighbour entries and reports come and go, and those of IPv4 and IPv6 apart from each other.
    Among equal sources the order stays, so that a server does not move without need.
    """
    families = {item.address.version for item in found}
    kept = [item for item in before if item in found or item.address.version not in families]
    new = [item for item in found if item not in before]
    return tuple(sorted(kept + new, key=lambda item: RANKS[item.source]))


def _metadata(state: State, event: MetadataChanged) -> Step:
    guest = state.guests.get(event.guest)
    if guest is None:
        return Step(state=state)
    after = replace(
        guest,
        metadata=event.services,
        metadata_problems=event.problems,
        metadata_heard=event.at,
    )
    changed = replace(state, guests={**state.guests, guest.id: after})
    notes = [
        Note(at=event.at, guest=guest.id, text=f"metadata: {problem}", warning=True)
        for problem in event.problems
        if problem not in guest.metadata_problems
    ]
    if after.metadata != guest.metadata:
        notes.append(Note(at=event.at, guest=guest.id, text="metadata changed"))
    return _settled(state, changed, _names(state, guest) | _names(changed, after), event.at, *notes)


def _settled(
    before: State, state: State, names: frozenset[str] | None, at: float, *notes: Note
) -> Step:
    state, names = settle(before, state, names, at)
    return Step(state=state, services=names, notes=notes)
