"""Servers that have a verdict of their own on a check, apart from what is known of its target.

One target may be asked for several servers, and what is known of it is known for all of them. Not
so for a server in service that a new configuration gives a check: that begins as unknown there, and
takes the server out when it has failed as often as it has to since it is the server's, whatever
another service knew of the target before. So the server is taken for passing (`assumed`), counts by
itself, and has that verdict until it fails, or until the target is seen up, when nothing is apart
any more. That a target is up is used at once, but not that it has failed since. Who is not in
service has nothing of his own: nobody is let in by an assumption.

So has a server that is let in though its target is held back (admission.py).

Kept in Admission.overrides; Health.overridden of the target says that a server has such a verdict.
"""

from collections.abc import Container, Mapping
from dataclasses import replace

from xenlb.model.events import ProbeFinished
from xenlb.model.health import Health, judge, share_bounds
from xenlb.model.state import Admission, Candidate, Slot, State
from xenlb.model.target import Target


def begun(before: State, state: State, known: Container[Target], at: float) -> State:
    """After a configuration was read in the state `before`: the checks that are new for a server.

    An agent that has just started does not know who was asked what, only who was in the table, and
    which targets were `known`: a check that is none of these is a new one.
    """
    was = {
        candidate.slot: (candidate, before.verdict(candidate, service))
        for service in before.settings.services
        for candidate in before.derived.candidates[service.name]
        if candidate.slot is not None and candidate.slot in before.remembered.admitted
    }
    health, admitted = dict(state.remembered.health), dict(state.remembered.admitted)
    for found in state.derived.candidates.values():
        for candidate in found:
            slot = candidate.slot
            entry = None if slot is None else admitted.get(slot)
            if slot is None or entry is None:
                continue
            own = {t: v for t, v in entry.overrides.items() if t in candidate.targets}
            had, verdict = was.get(slot, (None, Health(valid_from=at, up=True, since=at)))
            old = known if had is None else had.targets
            if not entry.quiesced and (verdict is None or verdict.up is not None):
                own |= {
                    t: _first(t, health[t], verdict, at)
                    for t in candidate.targets
                    if t not in old and t in health
                }
            own = {t: v for t, v in own.items() if t in health and not _sound(health[t])}
            for target in own:
                health[target] = replace(health[target], overridden=True)
            if own != entry.overrides:
                admitted[slot] = replace(entry, overrides=own)
    remembered = replace(state.remembered, health=health, admitted=admitted)
    return replace(state, remembered=remembered)


def _sound(known: Health) -> bool:
    return bool(known.up) and known.streak == 0


def _first(target: Target, known: Health, verdict: Health | None, at: float) -> Health:
    """A server's own verdict to begin with, where so far it had `verdict`: that the check passes,
    until it has said something. Also where one before failed: who was kept is not let go by a check
    that was not asked. The share is what it was, so that no weight jumps twice, if the check's
    answers say one: no other could change it."""
    if known.up:
        return replace(known, valid_from=at, streak=0, overridden=False)
    since = verdict.since if verdict is not None and verdict.up else at
    share = None if verdict is None or share_bounds(target.check) is None else verdict.share
    return Health(valid_from=at, up=True, since=since, assumed=True, share=share)


def judged(state: State, result: ProbeFinished) -> tuple[State, bool]:
    """The servers' own verdicts after one more result, which the target's has heard already; and
    whether anything can follow for a server."""
    target = result.target
    known = state.remembered.health[target]
    changed: dict[Slot, Admission] = {}
    news = others = False
    for slot, entry in _having(state, target):
        own = entry.overrides[target]
        after = judge(own, result, target.check)
        news = news or (own.up, own.assumed, own.share) != (after.up, after.assumed, after.share)
        if after.up and not _sound(known):
            others = True
            if after != own:
                changed[slot] = replace(entry, overrides={**entry.overrides, target: after})
            continue
        changed[slot] = replace(entry, overrides=_without(entry.overrides, target))
        if not after.up and known.up is None:  # it was in service, and fails
            known = replace(after, valid_from=known.valid_from)
    known = replace(known, overridden=others)
    if known != state.remembered.health[target]:
        state = state.with_verdict(target, known)
    if changed:
        admitted = {**state.remembered.admitted, **changed}
        state = replace(state, remembered=replace(state.remembered, admitted=admitted))
    return state, news


def _having(state: State, target: Target) -> list[tuple[Slot, Admission]]:
    """The servers with a verdict of their own on the target."""
    slots = (each.slot for found in state.derived.targets[target].values() for each in found)
    entries = ((slot, state.remembered.admitted.get(slot)) for slot in slots if slot is not None)
    return [(slot, entry) for slot, entry in entries if entry and target in entry.overrides]


def _without(own: Mapping[Target, Health], target: Target) -> Mapping[Target, Health]:
    return {each: verdict for each, verdict in own.items() if each != target}


def ended(entry: Admission, candidate: Candidate, state: State) -> Admission:
    """The admission without the verdicts that are apart from nothing any more."""
    own = {
        target: verdict
        for target, verdict in entry.overrides.items()
        if target in candidate.targets
        and target in state.remembered.health
        and state.remembered.health[target].overridden
    }
    return entry if len(own) == len(entry.overrides) else replace(entry, overrides=own)
