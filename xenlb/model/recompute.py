"""What follows from a change of the state: candidates, targets, admissions and alarms."""

from collections.abc import Iterable
from dataclasses import replace

from xenlb.model import alarm, verdict_overrides
from xenlb.model.admission import admissions, admit_damped
from xenlb.model.candidates import recompute_candidates, verdicts_of_targets
from xenlb.model.note import Note
from xenlb.model.settings import ServiceSettings
from xenlb.model.state import Admission, Change, RealServer, State, Transition


def recompute(before: State, change: Change, at: float) -> Transition:
    """Complete a change. `before` is the complete state that it was made from."""
    reconfigured = change.state.settings is not before.settings
    state, names = recompute_candidates(before, change.state, change.services, at)
    services = [s for s in state.settings.services if names is None or s.name in names]
    known = state.remembered.health
    health = verdicts_of_targets(before, state, services, at)
    state = replace(state, remembered=replace(state.remembered, health=health))
    if reconfigured:
        state = verdict_overrides.begin(before, state, known, at)
    groups = [
        (service, key, candidates)
        for service in services
        for key, candidates in state.candidates_by_key(service).items()
    ]
    admitted = {} if reconfigured else _without_candidates(before, services)
    alarms = {} if reconfigured else dict(state.remembered.alarms)
    notes: list[Note] = []
    for service, _, candidates in groups:
        state, damped = admit_damped(service, candidates, state, at)
        notes += damped
        admitted |= admissions(service, candidates, state, at)
    state = replace(state, remembered=replace(state.remembered, admitted=admitted))
    for service, key, candidates in groups:
        alarms.pop(key, None)
        current = alarm.current_alarm(service, key, candidates, state, at)
        if current is not None:
            alarms[key] = current
    state = replace(state, remembered=replace(state.remembered, alarms=alarms))
    return Transition(
        state=state,
        services=names,
        notes=(*change.notes, *notes, *alarm.alarm_notes(before, state, at)),
    )


def _without_candidates(
    state: State, services: Iterable[ServiceSettings]
) -> dict[RealServer, Admission]:
    """The admissions without those of these services, which are decided again."""
    admitted = dict(state.remembered.admitted)
    for service in services:
        for candidate in state.derived.candidates[service.name]:
            if candidate.server is not None:
                admitted.pop(candidate.server, None)
    return admitted
