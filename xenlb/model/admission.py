"""Admission to the table: which candidates become servers, and which servers leave.

An admitted server stays while its guest is drained, shutting down or paused: its weight is 0 then,
and its connections go on. It leaves when its guest is gone or boots again, and when its address or
its service is removed. It also leaves when it fails its check while its guest is up.

A damped server does not wait if no other server of the service serves: an outage is worse than a
server that flaps. If its checks pass it is admitted at once, to that kernel service only, with its
own verdict (an override).
"""

from collections.abc import Iterable
from dataclasses import replace

from xenlb.ipvs import text
from xenlb.model import verdict_overrides
from xenlb.model.domain import GuestId
from xenlb.model.guest import Guest, Phase
from xenlb.model.health import FailingServer, Health, removable_servers
from xenlb.model.note import Note, NoteKind
from xenlb.model.readiness import not_ready_reason
from xenlb.model.settings import OnFailure, ServiceSettings
from xenlb.model.state import Admission, Candidate, RealServer, State


def admissions(
    service: ServiceSettings, candidates: Iterable[Candidate], state: State, at: float
) -> dict[RealServer, Admission]:
    """Return the servers of one kernel service that are in the table now."""
    fresh = Admission(at=at, ramp=service.slow_start > 0)
    admitted: dict[RealServer, Admission] = {}
    failing: list[tuple[RealServer, FailingServer]] = []  # in the table, with their weight
    serving = False  # a server that was admitted before passes and has weight
    total = remaining = 0  # weight of the servers that serve or have served in this boot; left now
    for candidate in candidates:
        server, guest = candidate.server, state.guest_of(candidate)
        if server is None or (guest is not None and guest.phase is Phase.ABSENT):
            continue
        before = _admission_before(server, guest, state)
        if guest is not None and (guest.phase is not Phase.UP or guest.drain is not None):
            if before is not None:
                admitted[server] = _at_zero(verdict_overrides.prune(before, candidate, state), at)
            continue
        verdict = state.verdict(candidate, service)
        up = True if verdict is None else verdict.up
        if verdict is not None and verdict.assumed and before is not None and before.quiesced:
            up = None  # a quiesced server returns by its own check only
        # A server that asks for no share of its weight is not missed.
        weight = 0 if verdict is not None and verdict.share == 0 else candidate.weight
        if up is not None:
            total += candidate.weight
        if before is None:
            if up and (guest is None or not not_ready_reason(service, guest)):
                admitted[server] = fresh if weight else replace(fresh, zero_since=0.0)
                remaining += weight
            continue
        admitted[server] = verdict_overrides.prune(before, candidate, state)
        if up is None or weight == 0 or before.quiesced:
            admitted[server] = _at_zero(admitted[server], at)
        elif before.zero_since is not None:
            admitted[server] = replace(admitted[server], zero_since=None)
        if up:
            remaining += weight
            if before.quiesced:
                admitted[server] = fresh if weight else replace(fresh, zero_since=0.0)
            else:
                serving = serving or weight > 0
        elif up is False and verdict is not None and not before.quiesced:
            remaining += weight
            failing.append((server, FailingServer(since=verdict.since, weight=weight)))
    leaving = removable_servers(
        [failure for _, failure in failing],
        total=total,
        remaining=remaining,
        share=service.keep_in_service,
    )
    for index in leaving:
        server = failing[index][0]
        match service.on_failure:
            case OnFailure.REMOVE:
                del admitted[server]
            case OnFailure.QUIESCE:
                entry = replace(admitted[server], ramp=False, quiesced=True)
                admitted[server] = _at_zero(entry, at)
    if fresh.ramp and not serving:  # the first servers need all their weight now
        for server, entry in admitted.items():
            if entry is fresh:
                admitted[server] = replace(entry, ramp=False)
    return admitted


def _at_zero(entry: Admission, at: float) -> Admission:
    return entry if entry.zero_since is not None else replace(entry, zero_since=at)


def admit_damped(
    service: ServiceSettings, candidates: Iterable[Candidate], state: State, at: float
) -> tuple[State, list[Note]]:
    """Admit damped servers whose checks pass, if no other server of the kernel service serves."""
    returning: dict[RealServer, Admission] = {}
    for candidate in candidates:
        server, guest = candidate.server, state.guest_of(candidate)
        if server is None or candidate.weight == 0:
            continue
        if guest is not None and (guest.phase is not Phase.UP or guest.drain is not None):
            continue
        before = _admission_before(server, guest, state)
        if before is None and guest is not None and not_ready_reason(service, guest):
            continue
        if before is not None and before.quiesced:
            before = None
        verdict = state.verdict(candidate, service)
        if verdict is None or _serves(verdict, before):
            return state, []
        own = {
            target: replace(known, up=True, streak=0, since=at, overridden=False)
            for target in candidate.targets
            if (known := state.check_verdict(target, candidate)).has_risen(target.check)
        }
        decided = state.deciding_verdict(candidate, service, own) if own else None
        if decided is not None and _serves(decided[1], before):
            before = before or Admission(at=at)
            returning[server] = replace(before, overrides={**before.overrides, **own})
    if not returning:
        return state, []
    health = dict(state.remembered.health)
    for entry in returning.values():
        health |= {target: replace(health[target], overridden=True) for target in entry.overrides}
    why = f"returns to {service.name} without damping: no other server is up"
    notes = [
        Note(at, NoteKind.CHECK, f"{text.endpoint(s.key.address, s.key.port)} {why}", s.owner)
        for s in returning
    ]
    admitted = {**state.remembered.admitted, **returning}
    remembered = replace(state.remembered, admitted=admitted, health=health)
    return replace(state, remembered=remembered), notes


def _serves(health: Health, before: Admission | None) -> bool:
    """Return whether a server with this verdict has weight now, or will have."""
    return bool(health.up) and health.share != 0 and not (health.assumed and before is None)


def _admission_before(server: RealServer, guest: Guest | None, state: State) -> Admission | None:
    """Return the former admission of a server, if it is of the present boot of its guest."""
    before = state.remembered.admitted.get(server) or _migrated(server, guest, state)
    if before is not None and guest is not None and before.at < guest.booted:
        return None
    return before


def _migrated(server: RealServer, guest: Guest | None, state: State) -> Admission | None:
    """Return the admission of a guest that was a server at the libvirt it migrated from.

    The server stays, with its connections, and gets weight as soon as its check passes.
    """
    if guest is None:
        return None
    for uri in state.observed.links:
        other = GuestId(uri=uri, uuid=guest.id.uuid)
        if other != guest.id and replace(server, owner=other) in state.remembered.admitted:
            source = state.guests.get(other)
            gone = source is None or source.phase is Phase.ABSENT
            return Admission(at=guest.booted) if gone else None
    return None
