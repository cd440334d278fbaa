"""Candidates of the services and the targets that are probed for them.

They are computed anew for those services only whose guests or addresses an event has changed.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from xenlb.ipvs.table import IPAddress
from xenlb.model.address_claims import claimed, claims, reserved
from xenlb.model.domain import GuestId
from xenlb.model.guest import Guest, Phase
from xenlb.model.health import Health
from xenlb.model.membership import candidates, membership, sorry_target
from xenlb.model.settings import ServiceSettings
from xenlb.model.state import Candidate, State
from xenlb.model.target import Target


def recompute_candidates(
    before: State, state: State, names: frozenset[str] | None, at: float
) -> tuple[State, frozenset[str] | None]:
    """Return the state with owners, candidates and targets that are true, and for which services.

    `names`: the services where something changed, None means all. Addresses that change hands may
    add to them. `before` is the complete state that `state` was made from.
    """
    if state.settings is not before.settings or state.observed.host is not before.observed.host:
        if state.settings is not before.settings:
            state = replace(state, derived=replace(state.derived, targets={}))
        return _drawn(state, state.settings.services, claims(state)), None
    state = reserved(before, state, at)
    changed = _changed_guests(before, state)
    owners = claims(state) if changed else state.derived.owners
    redrawn = _contested(before, state, changed, owners) if changed else frozenset()
    names = None if names is None else names | redrawn
    several = {
        name
        for name, found in state.derived.candidates.items()
        if (names is None or name in names) and any(each.alternatives for each in found)
    }
    if redrawn or several:
        named = (s for s in state.settings.services if s.name in redrawn | several)
        state = _drawn(state, named, owners)
    return state, names


def _drawn(
    state: State,
    services: Iterable[ServiceSettings],
    owners: Mapping[IPAddress, GuestId | None],
) -> State:
    """The state with the candidates of these services drawn anew, and what is targets of them."""
    names = {service.name for service in state.settings.services}
    kept = {name: found for name, found in state.derived.candidates.items() if name in names}
    services = tuple(services)
    fresh = {service.name: tuple(candidates(service, state, owners)) for service in services}
    targets = dict(state.derived.targets)
    for name in fresh.keys() | (state.derived.candidates.keys() - names):
        for candidate in state.derived.candidates.get(name, ()):
            for each in (candidate, *candidate.alternatives):
                for target in each.targets:
                    if name in targets.get(target, ()):
                        targets[target] = {
                            n: who for n, who in targets[target].items() if n != name
                        }
    for service in services:
        for candidate in fresh[service.name]:
            for each in _probed(candidate, service, state):
                for target in each.targets:
                    by = targets.get(target, {})
                    targets[target] = {**by, service.name: (*by.get(service.name, ()), each)}
        for sorry in _sorry_targets(service):
            by = targets.get(sorry, {})
            targets[sorry] = {**by, service.name: by.get(service.name, ())}
    targets = {target: by for target, by in targets.items() if by}
    derived = replace(state.derived, owners=owners, candidates=kept | fresh, targets=targets)
    return replace(state, derived=derived)


def _probed(candidate: Candidate, service: ServiceSettings, state: State) -> tuple[Candidate, ...]:
    """The candidate and, as long as it does not pass, those at the other addresses of its guest."""
    guest = state.guest_of(candidate)
    if guest is not None and guest.phase is Phase.ABSENT:
        return ()
    verdict = state.verdict(candidate, service) if candidate.alternatives else None
    if verdict is None or verdict.up:
        return (candidate,)
    return candidate, *candidate.alternatives


def _sorry_targets(service: ServiceSettings) -> list[Target]:
    """They do not change without the settings, and nothing but what is said depends on them."""
    found = (sorry_target(service, key) for key in service.kernel_keys())
    return [target for target in found if target is not None]


def _changed_guests(before: State, state: State) -> tuple[Guest, ...]:
    """The guests, as they were and as they are, whose change may be one of candidates."""
    changed: list[Guest] = []
    for key in before.guests.keys() | state.guests.keys():
        was, now = before.guests.get(key), state.guests.get(key)
        if was is not now and (was is None or now is None or _draws(was) != _draws(now)):
            changed += (guest for guest in (was, now) if guest is not None)
    return tuple(changed)


def _draws(guest: Guest) -> tuple[object, ...]:
    """What of a guest goes into `candidates` and `claims`."""
    running = guest.phase is not Phase.ABSENT
    return (
        *(guest.name, running, guest.booted, guest.candidates, guest.rejected, guest.metadata),
        *(guest.given_up, guest.reserved),
    )


def _contested(
    before: State,
    state: State,
    changed: tuple[Guest, ...],
    owners: Mapping[IPAddress, GuestId | None],
) -> frozenset[str]:
    """The services of the changed guests, and of all who are given an address that changed hands
    with them (and some more, where that is cheaper than to look closer)."""
    addresses = {found.address for guest in changed for found in claimed(state, guest)}
    moved = {
        each for each in addresses if before.derived.owners.get(each, "") != owners.get(each, "")
    }
    affected = list(changed)
    for guest in state.guests.values() if moved else ():
        given = (*(f.address for f in guest.candidates), *(m.address for m in guest.metadata))
        if not moved.isdisjoint(given):
            affected.append(guest)
    return frozenset(
        service.name
        for service in state.settings.services
        if any(membership(service, guest) is not None for guest in affected)
        or any(member.address in moved for member in service.servers)
    )


def verdicts_of_targets(
    before: State,
    state: State,
    services: Iterable[ServiceSettings],
    at: float,
) -> Mapping[Target, Health]:
    """The verdicts, with one for each target that these services have; others go."""
    health = dict(state.remembered.health)
    for service in services:
        for candidate in state.derived.candidates[service.name]:
            guest = state.guest_of(candidate)
            recheck = 0.0 if guest is None else guest.recheck
            for target in (t for each in _probed(candidate, service, state) for t in each.targets):
                have = health.get(target)
                if have is None or _moved(before, state, target):
                    health[target] = Health(valid_from=max(at, recheck))
                elif have.valid_from < recheck:
                    # What is known of it is void, its failures too; what happened has happened.
                    health[target] = Health(valid_from=max(at, recheck), changes=have.changes)
        for sorry in _sorry_targets(service):
            health.setdefault(sorry, Health(valid_from=at))
    targets = state.derived.targets
    if targets is not before.derived.targets:
        health = {target: verdict for target, verdict in health.items() if target in targets}
    return health


def _moved(before: State, state: State, target: Target) -> bool:
    """Is the address another's now? What was found out of the one before says nothing of this."""
    return (
        before.derived.owners is not state.derived.owners
        and target.address in before.derived.owners
        and before.derived.owners[target.address] != state.derived.owners[target.address]
    )
