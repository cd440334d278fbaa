"""Candidates of the services and the targets that are probed for them.

Only services whose guests or addresses an event has changed are recomputed.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from xenlb.ipvs.table import IPAddress
from xenlb.model.address_claims import address_owners, claims_of, with_reservations
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
    """Return the state with current owners, candidates and targets, and the services affected.

    `names`: the services where something changed, None means all. Addresses that change hands may
    add to them. `before` is the complete state that `state` was made from.
    """
    if state.settings is not before.settings or state.observed.host is not before.observed.host:
        if state.settings is not before.settings:
            state = replace(state, derived=replace(state.derived, targets={}))
        return _redrawn(state, state.settings.services, address_owners(state)), None
    state = with_reservations(before, state, at)
    changed = _changed_guests(before, state)
    owners = address_owners(state) if changed else state.derived.owners
    affected = _affected_services(before, state, changed, owners) if changed else frozenset()
    names = None if names is None else names | affected
    with_alternatives = {
        name
        for name, members in state.derived.candidates.items()
        if (names is None or name in names) and any(member.alternatives for member in members)
    }
    if affected or with_alternatives:
        redrawn = (s for s in state.settings.services if s.name in affected | with_alternatives)
        state = _redrawn(state, redrawn, owners)
    return state, names


def _redrawn(
    state: State, services: Iterable[ServiceSettings], owners: Mapping[IPAddress, GuestId | None]
) -> State:
    """Return the state with new candidates of these services, and with their targets."""
    names = {service.name for service in state.settings.services}
    kept = {name: old for name, old in state.derived.candidates.items() if name in names}
    services = tuple(services)
    fresh = {service.name: tuple(candidates(service, state, owners)) for service in services}
    targets = dict(state.derived.targets)
    for name in fresh.keys() | (state.derived.candidates.keys() - names):
        for candidate in state.derived.candidates.get(name, ()):
            for variant in (candidate, *candidate.alternatives):
                for target in variant.targets:
                    if name in targets.get(target, ()):
                        others = targets[target].items()
                        targets[target] = {n: old for n, old in others if n != name}
    for service in services:
        for candidate in fresh[service.name]:
            for variant in _probed(candidate, service, state):
                for target in variant.targets:
                    by_service = targets.get(target, {})
                    probed = (*by_service.get(service.name, ()), variant)
                    targets[target] = {**by_service, service.name: probed}
        for sorry in _sorry_targets(service):
            by_service = targets.get(sorry, {})
            targets[sorry] = {**by_service, service.name: by_service.get(service.name, ())}
    targets = {target: by_service for target, by_service in targets.items() if by_service}
    derived = replace(state.derived, owners=owners, candidates=kept | fresh, targets=targets)
    return replace(state, derived=derived)


def _probed(candidate: Candidate, service: ServiceSettings, state: State) -> tuple[Candidate, ...]:
    """Return the candidate and, while it does not pass, those at its guest's other addresses."""
    guest = state.guest_of(candidate)
    if guest is not None and guest.phase is Phase.ABSENT:
        return ()
    verdict = state.verdict(candidate, service) if candidate.alternatives else None
    if verdict is None or verdict.up:
        return (candidate,)
    return candidate, *candidate.alternatives


def _sorry_targets(service: ServiceSettings) -> list[Target]:
    targets = (sorry_target(service, key) for key in service.kernel_keys())
    return [target for target in targets if target is not None]


def _changed_guests(before: State, state: State) -> tuple[Guest, ...]:
    """Return the old and new values of the guests whose candidates may have changed."""
    changed: list[Guest] = []
    for key in before.guests.keys() | state.guests.keys():
        old, new = before.guests.get(key), state.guests.get(key)
        if old is not new and (old is None or new is None or _inputs(old) != _inputs(new)):
            changed += (guest for guest in (old, new) if guest is not None)
    return tuple(changed)


def _inputs(guest: Guest) -> tuple[object, ...]:
    """Return what `candidates` and `address_owners` depend on."""
    running = guest.phase is not Phase.ABSENT
    return (
        *(guest.name, running, guest.booted, guest.candidates, guest.rejected, guest.metadata),
        *(guest.given_up, guest.reserved),
    )


def _affected_services(
    before: State,
    state: State,
    changed: tuple[Guest, ...],
    owners: Mapping[IPAddress, GuestId | None],
) -> frozenset[str]:
    """Return the services of the changed guests, and of all that claim an address that moved.

    It may return more services, where that is cheaper than a closer look.
    """
    addresses = {claim.address for guest in changed for claim in claims_of(state, guest)}
    former = before.derived.owners
    moved = {address for address in addresses if former.get(address, "") != owners.get(address, "")}
    affected = list(changed)
    for guest in state.guests.values() if moved else ():
        given = (*(c.address for c in guest.candidates), *(m.address for m in guest.metadata))
        if not moved.isdisjoint(given):
            affected.append(guest)
    return frozenset(
        service.name
        for service in state.settings.services
        if any(membership(service, guest) is not None for guest in affected)
        or any(member.address in moved for member in service.servers)
    )


def verdicts_of_targets(
    before: State, state: State, services: Iterable[ServiceSettings], at: float
) -> Mapping[Target, Health]:
    """Return the verdicts with one for each target of these services, without obsolete ones."""
    health = dict(state.remembered.health)
    for service in services:
        for candidate in state.derived.candidates[service.name]:
            guest = state.guest_of(candidate)
            recheck = 0.0 if guest is None else guest.recheck
            for target in (
                t for probed in _probed(candidate, service, state) for t in probed.targets
            ):
                known = health.get(target)
                if known is None or _changed_hands(before, state, target):
                    health[target] = Health(valid_from=max(at, recheck))
                elif known.valid_from < recheck:
                    # The verdict and its failures are void; the history stays.
                    health[target] = Health(valid_from=max(at, recheck), changes=known.changes)
        for sorry in _sorry_targets(service):
            health.setdefault(sorry, Health(valid_from=at))
    targets = state.derived.targets
    if targets is not before.derived.targets:
        health = {target: verdict for target, verdict in health.items() if target in targets}
    return health


def _changed_hands(before: State, state: State, target: Target) -> bool:
    """Return whether the address has a new owner, for which the old verdict says nothing."""
    return (
        before.derived.owners is not state.derived.owners
        and target.address in before.derived.owners
        and before.derived.owners[target.address] != state.derived.owners[target.address]
    )
