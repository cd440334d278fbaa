"""After every step: which servers are let into the table, which have left it, what is probed.

A server, once let in, stays for as long as its guest is drained, leaving or paused (its weight is
0 then, see desired.py): its connections go on. It leaves when its guest is gone or boots anew, when
its address or its service is, or when it fails its check while nothing else is going on.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from xenlb.model.events import Target
from xenlb.model.guest import Guest, Phase
from xenlb.model.health import Health, may_leave
from xenlb.model.members import Candidate, candidates, claims
from xenlb.model.settings import OnFailure, ServiceSettings
from xenlb.model.state import Admission, Slot, State


def settle(state: State, names: frozenset[str] | None, at: float) -> State:
    """The state with admissions and probes drawn anew for the named services; None means all."""
    services = [s for s in state.settings.services if names is None or s.name in names]
    owners = claims(state)
    found = {service.name: tuple(candidates(service, state, owners)) for service in services}
    state = _with_targets(state, services, found, at)
    if names is None:
        admitted: dict[Slot, Admission] = {}
    else:
        keys = {key for service in services for key in service.kernel_keys()}
        admitted = {slot: e for slot, e in state.admitted.items() if slot.service not in keys}
    for service in services:
        admitted |= _admitted(service, found[service.name], state, at)
    return replace(state, admitted=admitted)


def _with_targets(
    state: State,
    services: Iterable[ServiceSettings],
    found: Mapping[str, Iterable[Candidate]],
    at: float,
) -> State:
    known = {service.name for service in state.settings.services}
    probed = {name: targets for name, targets in state.probed.items() if name in known}
    health = dict(state.health)
    for service in services:
        targets = set()
        for candidate in found[service.name]:
            guest = _guest(candidate, state)
            if candidate.target is None or (guest is not None and guest.phase is Phase.ABSENT):
                continue
            targets.add(candidate.target)
            have = health.get(candidate.target)
            recheck = 0.0 if guest is None else guest.recheck
            if have is None or have.valid_from < recheck:
                health[candidate.target] = Health(valid_from=max(at, recheck))
        probed[service.name] = frozenset(targets)
    used: set[Target] = set().union(*probed.values())
    return replace(
        state,
        probed=probed,
        health={target: verdict for target, verdict in health.items() if target in used},
    )


def _admitted(
    service: ServiceSettings, found: Iterable[Candidate], state: State, at: float
) -> dict[Slot, Admission]:
    """The servers of one service that are in the table now."""
    admitted: dict[Slot, Admission] = {}
    free: list[tuple[float, Slot]] = []  # fail their check and may be taken out for it
    able = out = 0  # servers that serve or have served in this boot; of them, those that left
    for candidate in found:
        slot, guest = candidate.slot, _guest(candidate, state)
        if slot is None or (guest is not None and guest.phase is Phase.ABSENT):
            continue
        before = state.admitted.get(slot)
        if before is not None and guest is not None and before.at < guest.booted:
            before = None
        in_service = guest is None or (guest.phase is Phase.UP and guest.drain is None)
        if before is not None and not in_service:
            admitted[slot] = before
        if not in_service:
            continue
        verdict = state.health[candidate.target] if candidate.target is not None else None
        up = True if verdict is None else verdict.up
        able += up is not None
        if before is None and up:
            admitted[slot] = Admission(at=at, ramp=service.slow_start > 0)
        elif before is not None:
            admitted[slot] = before
            if up is False and verdict is not None:
                free.append((verdict.since, slot))
        else:
            out += up is False
    if service.on_failure is OnFailure.REMOVE:
        free.sort(key=lambda failed: failed[0])  # the longest failed leave first
        for _, slot in free[: may_leave(of=able, out=out, share=service.keep_in_service)]:
            del admitted[slot]
    if not any(slot in state.admitted for slot in admitted):  # the first needs all its weight now
        admitted = {slot: replace(entry, ramp=False) for slot, entry in admitted.items()}
    return admitted


def _guest(candidate: Candidate, state: State) -> Guest | None:
    return None if candidate.owner is None else state.guests[candidate.owner]
