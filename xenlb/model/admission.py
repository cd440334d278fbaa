"""After every step: who may serve, what is probed, who is let into the table and who has left it.

A server, once let in, stays for as long as its guest is drained, leaving or paused (its weight is
0 then, see desired.py): its connections go on. It leaves when its guest is gone or boots anew, when
its address or its service is, or when it fails its check while nothing else is going on.

A server that is held back because it flaps (health.py) does not wait where nobody else serves: an
outage is worse than a server that comes and goes. So whoever passes then is let in at once, into
that kernel service only, by a verdict of its own (verdict_overrides.py); what was heard of it is
not forgotten.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import groupby

from xenlb.ipvs import text
from xenlb.ipvs.table import IPAddress
from xenlb.model import alarm, verdict_overrides
from xenlb.model.address_claims import claimed, claims, reserved
from xenlb.model.domain import GuestId
from xenlb.model.guest import Guest, Phase
from xenlb.model.health import Failing, Health, Judged, free_to_leave
from xenlb.model.membership import candidates, membership, sorry_target
from xenlb.model.readiness import lacking
from xenlb.model.settings import OnFailure, ServiceSettings
from xenlb.model.state import Admission, Candidate, Note, Slot, State, Transition
from xenlb.model.target import Target


def settle(before: State, state: State, names: frozenset[str] | None, at: float) -> Transition:
    """The state with all that follows from the rest drawn anew, and for which services it was.

    `names`: the services where something changed; None means all. `before` is the settled state
    that `state` was made from.
    """
    afresh = state.settings is not before.settings
    if afresh:
        names = None
        state = _drawn(replace(state, targets={}), state.settings.services, claims(state))
    elif state.host is not before.host:
        names = None
        state = _drawn(state, state.settings.services, claims(state))
    else:
        state = reserved(before, state, at)
        changed = _changed(before, state)
        owners = claims(state) if changed else state.owners
        redrawn = _contested(before, state, changed, owners) if changed else frozenset()
        names = None if names is None else names | redrawn
        several = {
            name
            for name, found in state.candidates.items()
            if (names is None or name in names) and any(each.alternatives for each in found)
        }
        if redrawn or several:
            named = (s for s in state.settings.services if s.name in redrawn | several)
            state = _drawn(state, named, owners)
    services = [s for s in state.settings.services if names is None or s.name in names]
    known = state.health
    state = _with_targets(before, state, services, at)
    if afresh:
        state = verdict_overrides.begun(before, state, known, at)
    admitted = {} if afresh else dict(state.admitted)
    again = {key for service in services for key in service.kernel_keys()}
    alarms = {} if afresh else {k: it for k, it in state.alarms.items() if k not in again}
    for service in services if not afresh else ():
        for candidate in before.candidates[service.name]:
            if candidate.slot is not None:
                admitted.pop(candidate.slot, None)
    notes: list[Note] = []
    for service in services:
        for _, them in groupby(state.candidates[service.name], key=lambda each: each.service):
            found = tuple(them)
            state, back = _let_back(service, found, state, at)
            notes += back
            admitted |= _admitted(service, found, state, at)
    state = replace(state, admitted=admitted)
    for service in services:
        found_of = {key: list[Candidate]() for key in service.kernel_keys()}
        for candidate in state.candidates[service.name]:
            found_of[candidate.service].append(candidate)
        for key, mine in found_of.items():
            if (it := alarm.raised(service, key, tuple(mine), state, at)) is not None:
                alarms[key] = it
    return Transition(state=replace(state, alarms=alarms), services=names, notes=tuple(notes))


def recompute(
    before: State, state: State, names: frozenset[str] | None, at: float, *notes: Note
) -> Transition:
    """A step to the state with all that follows from it."""
    step = settle(before, state, names, at)
    said = (*notes, *step.notes, *alarm.alarm_notes(before, step.state, at))
    return replace(step, notes=said)


def _drawn(
    state: State,
    services: Iterable[ServiceSettings],
    owners: Mapping[IPAddress, GuestId | None],
) -> State:
    """The state with the candidates of these services drawn anew, and what is asked of them."""
    names = {service.name for service in state.settings.services}
    kept = {name: found for name, found in state.candidates.items() if name in names}
    services = tuple(services)
    fresh = {service.name: tuple(candidates(service, state, owners)) for service in services}
    asked = dict(state.targets)
    for name in fresh.keys() | (state.candidates.keys() - names):
        for candidate in state.candidates.get(name, ()):
            for each in (candidate, *candidate.alternatives):
                for target in each.targets:
                    if name in asked.get(target, ()):
                        asked[target] = {n: who for n, who in asked[target].items() if n != name}
    for service in services:
        for candidate in fresh[service.name]:
            for each in _probed(candidate, service, state):
                for target in each.targets:
                    by = asked.get(target, {})
                    asked[target] = {**by, service.name: (*by.get(service.name, ()), each)}
        for sorry in _sorry_targets(service):
            by = asked.get(sorry, {})
            asked[sorry] = {**by, service.name: by.get(service.name, ())}
    asked = {target: by for target, by in asked.items() if by}
    return replace(state, owners=owners, candidates=kept | fresh, targets=asked)


def _probed(candidate: Candidate, service: ServiceSettings, state: State) -> tuple[Candidate, ...]:
    """The candidate and, as long as it does not pass, those at the other addresses of its guest."""
    guest = _guest(candidate, state)
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


def _changed(before: State, state: State) -> tuple[Guest, ...]:
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
    moved = {each for each in addresses if before.owners.get(each, "") != owners.get(each, "")}
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


def _with_targets(
    before: State,
    state: State,
    services: Iterable[ServiceSettings],
    at: float,
) -> State:
    health = dict(state.health)
    for service in services:
        for candidate in state.candidates[service.name]:
            guest = _guest(candidate, state)
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
    if state.targets is not before.targets:
        health = {target: verdict for target, verdict in health.items() if target in state.targets}
    return replace(state, health=health)


def _moved(before: State, state: State, target: Target) -> bool:
    """Is the address another's now? What was found out of the one before says nothing of this."""
    return (
        before.owners is not state.owners
        and target.address in before.owners
        and before.owners[target.address] != state.owners[target.address]
    )


def _admitted(
    service: ServiceSettings, found: Iterable[Candidate], state: State, at: float
) -> dict[Slot, Admission]:
    """The servers that are in the table now, of one kernel service of this service."""
    fresh = Admission(at=at, ramp=service.slow_start > 0)
    admitted: dict[Slot, Admission] = {}
    failing: list[tuple[Slot, Failing]] = []  # in the table, with their weight
    serve = False  # does one that was let in before take connections, and pass?
    able = staying = 0  # weight of the servers that serve or have served in this boot; of them, now
    for candidate in found:
        slot, guest = candidate.slot, _guest(candidate, state)
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


def _let_back(
    service: ServiceSettings, found: Iterable[Candidate], state: State, at: float
) -> tuple[State, list[Note]]:
    """Lets in who is held back though all it is asked passes, if nobody serves this kernel service
    otherwise."""
    back: dict[Slot, Admission] = {}
    for candidate in found:
        slot, guest = candidate.slot, _guest(candidate, state)
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
    health = dict(state.health)
    for entry in back.values():
        health |= {target: replace(health[target], overridden=True) for target in entry.overrides}
    why = f"is not held back from {service.name} any longer, as no other server serves there"
    notes = [
        Note(
            at=at,
            text=f"{text.endpoint(slot.server.address, slot.server.port)} {why}",
            guest=slot.owner,
        )
        for slot in back
    ]
    return replace(state, admitted={**state.admitted, **back}, health=health), notes


def _takes(judged: Judged | None, before: Admission | None) -> bool:
    """Does a server take connections with this verdict, or will it now?"""
    if judged is None:
        return True
    health = judged[1]
    return bool(health.up) and health.share != 0 and not (health.assumed and before is None)


def _before(slot: Slot, guest: Guest | None, state: State) -> Admission | None:
    """The admission of a server so far, if it is one of this boot of its guest."""
    before = state.admitted.get(slot) or _migrated(slot, guest, state)
    if before is not None and guest is not None and before.at < guest.booted:
        return None
    return before


def _migrated(slot: Slot, guest: Guest | None, state: State) -> Admission | None:
    """The admission that a guest brings along from the libvirt it has migrated from: its server
    stays, with its connections, and has weight again as soon as its check passes."""
    if guest is None:
        return None
    for uri in state.links:
        other = GuestId(uri=uri, uuid=guest.id.uuid)
        if other != guest.id and replace(slot, owner=other) in state.admitted:
            source = state.guests.get(other)
            gone = source is None or source.phase is Phase.ABSENT
            return Admission(at=guest.booted) if gone else None
    return None


def _guest(candidate: Candidate, state: State) -> Guest | None:
    return None if candidate.owner is None else state.guests[candidate.owner]
