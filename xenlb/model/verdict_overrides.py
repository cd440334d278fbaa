"""Verdicts that a server has for itself, in place of the shared verdict on a target.

One target may be probed for several servers, which share its verdict. A server in service that a
reload gives a check needs a verdict of its own. The check is unknown for it, and takes it out only
after `fall` failures since then, whatever another service knew of the target before. So the server
is `assumed` to pass. Its own verdict lasts until it fails, or until the target is up. A pass counts
at once, failures count from the reload on. Servers that are not in service have no overrides: no
server is added by an assumption.

A server that is added although its target is held back also has its own verdict.

Overrides are in `Admission.overrides`; `Health.overridden` of the target says that there is one.
"""

from collections.abc import Container, Mapping
from dataclasses import replace

from xenlb.model import health as verdicts
from xenlb.model.events import ProbeFinished
from xenlb.model.health import Health, share_bounds
from xenlb.model.state import Admission, Candidate, RealServer, State
from xenlb.model.target import Target


def begin(before: State, state: State, known: Container[Target], at: float) -> State:
    """Give servers in service their own verdicts on the checks that a configuration has added.

    After a start of the agent `before` has the servers in the table, but not their checks; then a
    check is new unless its target is among the `known` ones.
    """
    former = {
        candidate.server: (candidate, before.verdict(candidate, service))
        for service in before.settings.services
        for candidate in before.derived.candidates[service.name]
        if candidate.server is not None and candidate.server in before.remembered.admitted
    }
    health, admitted = dict(state.remembered.health), dict(state.remembered.admitted)
    for candidates in state.derived.candidates.values():
        for candidate in candidates:
            server = candidate.server
            entry = None if server is None else admitted.get(server)
            if server is None or entry is None:
                continue
            own = {t: v for t, v in entry.overrides.items() if t in candidate.targets}
            previous, verdict = former.get(server, (None, Health(valid_from=at, up=True, since=at)))
            old = known if previous is None else previous.targets
            if not entry.quiesced and (verdict is None or verdict.up is not None):
                own |= {
                    t: _initial(t, health[t], verdict, at)
                    for t in candidate.targets
                    if t not in old and t in health
                }
            own = {t: v for t, v in own.items() if t in health and not _is_plainly_up(health[t])}
            for target in own:
                health[target] = replace(health[target], overridden=True)
            if own != entry.overrides:
                admitted[server] = replace(entry, overrides=own)
    remembered = replace(state.remembered, health=health, admitted=admitted)
    return replace(state, remembered=remembered)


def _is_plainly_up(health: Health) -> bool:
    return bool(health.up) and health.streak == 0


def _initial(target: Target, known: Health, verdict: Health | None, at: float) -> Health:
    """Return a server's own verdict on a new check: it passes, until it has a result.

    `verdict`: the server's before. If that failed and the server was kept, an unprobed check must
    not let it go. The share stays, so that no weight jumps twice, if this check reports shares: no
    other check could change it.
    """
    if known.up:
        return replace(known, valid_from=at, streak=0, overridden=False)
    since = verdict.since if verdict is not None and verdict.up else at
    share = None if verdict is None or share_bounds(target.check) is None else verdict.share
    return Health(valid_from=at, up=True, since=since, assumed=True, share=share)


def apply_result(state: State, result: ProbeFinished) -> tuple[State, bool]:
    """Apply a result to the servers' own verdicts, after the target's.

    Also return whether anything may change for a server.
    """
    target = result.target
    known = state.remembered.health[target]
    changed: dict[RealServer, Admission] = {}
    news = remain = False
    for server, entry in _with_override(state, target):
        own = entry.overrides[target]
        after = verdicts.apply_result(own, result, target.check)
        news = news or (own.up, own.assumed, own.share) != (after.up, after.assumed, after.share)
        if after.up and not _is_plainly_up(known):
            remain = True
            if after != own:
                changed[server] = replace(entry, overrides={**entry.overrides, target: after})
            continue
        others = {t: verdict for t, verdict in entry.overrides.items() if t != target}
        changed[server] = replace(entry, overrides=others)
        if not after.up and known.up is None:  # a server that was in service fails
            known = replace(after, valid_from=known.valid_from)
    known = replace(known, overridden=remain)
    if known != state.remembered.health[target]:
        state = state.with_verdict(target, known)
    if changed:
        admitted = {**state.remembered.admitted, **changed}
        state = replace(state, remembered=replace(state.remembered, admitted=admitted))
    return state, news


def _with_override(state: State, target: Target) -> list[tuple[RealServer, Admission]]:
    """Return the servers with their own verdict on the target."""
    by_service = state.derived.targets[target].values()
    servers = [candidate.server for candidates in by_service for candidate in candidates]
    admitted: Mapping[RealServer, Admission] = state.remembered.admitted
    entries = ((server, admitted.get(server)) for server in servers if server is not None)
    return [(server, entry) for server, entry in entries if entry and target in entry.overrides]


def prune(entry: Admission, candidate: Candidate, state: State) -> Admission:
    """Return the admission without overrides that are obsolete."""
    health = state.remembered.health
    own = {
        target: verdict
        for target, verdict in entry.overrides.items()
        if target in candidate.targets and target in health and health[target].overridden
    }
    return entry if len(own) == len(entry.overrides) else replace(entry, overrides=own)
