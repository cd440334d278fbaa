"""The effect of a check result on the state.

The rules of verdicts are in health.py, those of addresses in address_choice.py.
"""

from dataclasses import replace

from xenlb.model import address_choice, alarm, verdict_overrides
from xenlb.model.admission import recompute
from xenlb.model.desired import shared
from xenlb.model.events import ProbeFinished
from xenlb.model.health import judge
from xenlb.model.membership import names_of
from xenlb.model.state import Note, State, Transition
from xenlb.model.target import Target


def apply_check_result(state: State, event: ProbeFinished) -> Transition:
    result = _judged(state, event)
    given_up = address_choice.given_up(result.state, event)
    if given_up is None:
        return result
    changed, guest = given_up
    text = f"address {event.target.address} is given up: another one of the guest passes"
    note = Note(at=event.at, guest=guest.id, text=text)
    after = recompute(result.state, changed, names_of(changed, guest), event.at, note)
    assert result.services is not None
    assert after.services is not None
    return Transition(
        state=after.state,
        services=result.services | after.services,
        notes=(*result.notes, *after.notes),
    )


def _judged(state: State, event: ProbeFinished) -> Transition:
    target = event.target
    health = state.health.get(target)
    if health is None:
        return Transition(state=state)
    after = judge(health, event, target.check)
    changed = state
    if after != health:  # else it flaps, and is held back: nothing of that is new
        changed = replace(state, health={**state.health, target: after})
    news = False
    if health.overridden:
        changed, news = verdict_overrides.judged(changed, event)
        after = changed.health[target]
    # Back where nobody else serves, though it is held back.
    news = news or (health.streak < after.streak and after.passes(target.check))
    names = frozenset(state.targets[target])
    if (health.up, health.share) == (after.up, after.share) and not news:
        # With its first answer a check that fails may begin an alarm.
        if after.up is not None or health.detail:
            return Transition(state=changed)
        return recompute(state, changed, names, event.at, *alarm.sorry_news(changed, event))
    owner = state.owners.get(target.address)
    if after.up is health.up and (event.up or not news):
        if not _reweighs(state, changed, target):
            return recompute(state, changed, names, event.at) if news else Transition(state=changed)
        share = "the whole" if after.share is None else f"{after.share * 100:.3g}% of the"
        text = f"check {target} gives {share} weight: {event.detail}"
        return recompute(state, changed, names, event.at, Note(at=event.at, text=text, guest=owner))
    text = f"check {target} {'passes' if after.up else 'fails'}: {event.detail}"
    if after.damped(event.at):
        text += (
            f"; that is {after.failures} times in a row,"
            f" it is held back for {after.held_until - event.at:g} s at least"
        )
    note = Note(at=event.at, text=text, warning=not after.up, guest=owner)
    return recompute(state, changed, names, event.at, note)


def _reweighs(before: State, state: State, target: Target) -> bool:
    """Does what the target says of its share change the weight of a server?"""
    asked = state.targets[target]
    for service in state.settings.services:
        for candidate in asked.get(service.name, ()):
            was, now = (each.verdict(candidate, service) for each in (before, state))
            if shared(candidate.weight, was) != shared(candidate.weight, now):
                return True
    return False
