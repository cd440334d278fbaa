"""Admission to the table: which candidates become servers, and which servers leave.

An admitted server stays while its guest is drained, leaving or paused: its weight is 0 then, and
its connections go on. It leaves when its guest is gone or boots anew, when its address or its
service goes, or when it fails its check and none of these is under way.

A damped server (one that flaps) does not wait where no other server of the service serves: an
outage is worse than a server that comes and goes. If its checks pass it is admitted at once, to
that kernel service only, with a verdict of its own (an override).
"""

from collections.abc import Iterable
from dataclasses import replace

from xenlb.ipvs import text
from xenlb.model import verdict_overrides
from xenlb.model.domain import GuestId
from xenlb.model.guest import Guest, Phase
from xenlb.model.health import Failing, Judged, free_to_leave
from xenlb.model.note import Note, NoteKind
from xenlb.model.readiness import lacking
from xenlb.model.settings import OnFailure, ServiceSettings
from xenlb.model.state import Admission, Candidate, Slot, State


def admissions(
    service: ServiceSettings, found: Iterable[Candidate], state: State, at: float
) -> dict[Slot, Admission]:
    """The servers that are in the table now, of one kernel service of this service."""
    fresh = Admission(at=at, ramp=service.slow_start > 0)
    admitted: dict[Slot, Admission] = {}
    failing: list[tuple[Slot, Failing]] = []  # in the table, with their weight
    serve = False  # does one that was let in before take connections, and pass?
    able = staying = 0  # weight of the servers that serve or have served in this boot; of them, now
    for candidate in found:
        slot, guest = candidate.slot, state.guest_of(candidate)
        if slot is None or (guest is not None and guest.phase is Phase.ABSENT):
            continue
        before = _before(slot, guest, state)
        if guest is not None and (guest.phase is not Phase.UP or guest.drain is not None):
            if before is not None:
                admitted[slot] = _quieted(verdict_overrides.ended(before, candidate, state), at)
            continue
        verdict = state.verdict(candidate, service)
        up = True if verdict is None else verdict.up
        if verdict is not None and verdict.assumed and before is not None and before.quiesced:
            up = None  # nobody is put back because of what another check said
        # One that wants no share of its weight leaves nobody behind.
        weight = 0 if verdict is not None and verdict.share == 0 else candidate.weight
        if up is not None:
            able += candidate.weight
        if before is None:
            if up and (guest is None or not lacking(service, guest)):
                admitted[slot] = fresh if weight else replace(fresh, quiet=0.0)
                staying += weight
            continue
        admitted[slot] = verdict_overrides.ended(before, candidate, state)
        if up is None or weight == 0 or before.quiesced:
            admitted[slot] = _quieted(admitted[slot], at)
        elif before.quiet is not None:
            admitted[slot] = replace(admitted[slot], quiet=None)
        if up:
            staying += weight
            if before.quiesced:
                admitted[slot] = fresh if weight else replace(fresh, quiet=0.0)
            else:
                serve = serve or weight > 0
        elif up is False and verdict is not None and not before.quiesced:
            staying += weight
            failing.append((slot, Failing(since=verdict.since, weight=weight)))
    leaving = free_to_leave(
        [each for _, each in failing], able=able, staying=staying, share=service.keep_in_service
    )
    for place in leaving:
        slot = failing[place][0]
        match service.on_failure:
            case OnFailure.REMOVE:
                del admitted[slot]
            case OnFailure.QUIESCE:
                entry = replace(admitted[slot], ramp=False, quiesced=True)
                admitted[slot] = _quieted(entry, at)
    if fresh.ramp and not serve:  # the first needs all its weight now
        for slot, entry in admitted.items():
            if entry is fresh:
                admitted[slot] = replace(entry, ramp=False)
    return admitted


def _quieted(entry: Admission, at: float) -> Admission:
    return entry if entry.quiet is not None else replace(entry, quiet=at)


def admit_damped(
    service: ServiceSettings, found: Iterable[Candidate], state: State, at: float
) -> tuple[State, list[Note]]:
    """Lets in who is held back though all it is asked passes, if nobody serves this kernel service
    otherwise."""
    back: dict[Slot, Admission] = {}
    for candidate in found:
        slot, guest = candidate.slot, state.guest_of(candidate)
        if slot is None or candidate.weight == 0:
            continue
        if guest is not None and (guest.phase is not Phase.UP or guest.drain is not None):
            continue
        before = _before(slot, guest, state)
        if before is None and guest is not None and lacking(service, guest):
            continue
        if before is not None and before.quiesced:
            before = None
        if _takes(state.judged(candidate, service), before):
            return state, []
        own = {
            target: replace(known, up=True, streak=0, since=at, overridden=False)
            for target in candidate.targets
            if (known := state.seen(target, candidate)).passes(target.check)
        }
        if own and _takes(state.judged(candidate, service, own), before):
            before = before or Admission(at=at)
            back[slot] = replace(before, overrides={**before.overrides, **own})
    if not back:
        return state, []
    health = dict(state.remembered.health)
    for entry in back.values():
        health |= {target: replace(health[target], overridden=True) for target in entry.overrides}
    why = f"is not held back from {service.name} any longer, as no other server serves there"
    notes = [
        Note(
            at=at,
            kind=NoteKind.CHECK,
            text=f"{text.endpoint(slot.server.address, slot.server.port)} {why}",
            guest=slot.owner,
        )
        for slot in back
    ]
    admitted = {**state.remembered.admitted, **back}
    remembered = replace(state.remembered, admitted=admitted, health=health)
    return replace(state, remembered=remembered), notes


def _takes(judged: Judged | None, before: Admission | None) -> bool:
    """Does a server take connections with this verdict, or will it now?"""
    if judged is None:
        return True
    health = judged[1]
    return bool(health.up) and health.share != 0 and not (health.assumed and before is None)


def _before(slot: Slot, guest: Guest | None, state: State) -> Admission | None:
    """The admission of a server so far, if it is one of this boot of its guest."""
    before = state.remembered.admitted.get(slot) or _migrated(slot, guest, state)
    if before is not None and guest is not None and before.at < guest.booted:
        return None
    return before


def _migrated(slot: Slot, guest: Guest | None, state: State) -> Admission | None:
    """The admission that a guest brings along from the libvirt it has migrated from: its server
    stays, with its connections, and has weight again as soon as its check passes."""
    if guest is None:
        return None
    for uri in state.observed.links:
        other = GuestId(uri=uri, uuid=guest.id.uuid)
        if other != guest.id and replace(slot, owner=other) in state.remembered.admitted:
            source = state.guests.get(other)
            gone = source is None or source.phase is Phase.ABSENT
            return Admission(at=guest.booted) if gone else None
    return None
