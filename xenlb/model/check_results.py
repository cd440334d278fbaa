"""The effect of a check result on the state.

The rules of verdicts are in health.py, those of addresses in address_choice.py.
"""

from xenlb.model import alarm, verdict_overrides
from xenlb.model.desired import shared
from xenlb.model.events import ProbeFinished
from xenlb.model.health import judge
from xenlb.model.note import Note, NoteKind
from xenlb.model.state import Change, State, nothing_follows
from xenlb.model.target import Target


def apply_check_result(state: State, event: ProbeFinished) -> Change:
    target = event.target
    health = state.remembered.health.get(target)
    if health is None:
        return nothing_follows(state)
    after = judge(health, event, target.check)
    changed = state
    if after != health:  # else it flaps, and is held back: nothing of that is new
        changed = state.with_verdict(target, after)
    news = False
    if health.overridden:
        changed, news = verdict_overrides.judged(changed, event)
        after = changed.remembered.health[target]
    # Back where nobody else serves, though it is held back.
    news = news or (health.streak < after.streak and after.passes(target.check))
    names = frozenset(state.derived.targets[target])
    if (health.up, health.share) == (after.up, after.share) and not news:
        # With its first answer a check that fails may begin an alarm.
        if after.up is not None or health.detail:
            return nothing_follows(changed)
        notes = tuple(alarm.sorry_news(changed, event))
        return Change(state=changed, services=names, notes=notes)
    owner = state.derived.owners.get(target.address)
    if after.up is health.up and (event.up or not news):
        if not _reweighs(state, changed, target):
            return Change(state=changed, services=names, follows=news)
        share = "the whole" if after.share is None else f"{after.share * 100:.3g}% of the"
        text = f"check {target} gives {share} weight: {event.detail}"
        note = Note(at=event.at, kind=NoteKind.CHECK, text=text, guest=owner)
        return Change(state=changed, services=names, notes=(note,))
    text = f"check {target} {'passes' if after.up else 'fails'}: {event.detail}"
    if after.damped(event.at):
        text += (
            f"; that is {after.failures} times in a row,"
            f" it is held back for {after.held_until - event.at:g} s at least"
        )
    note = Note(at=event.at, kind=NoteKind.CHECK, text=text, warning=not after.up, guest=owner)
    return Change(state=changed, services=names, notes=(note,))


def _reweighs(before: State, state: State, target: Target) -> bool:
    """Does what the target says of its share change the weight of a server?"""
    asked = state.derived.targets[target]
    for service in state.settings.services:
        for candidate in asked.get(service.name, ()):
            was, now = (each.verdict(candidate, service) for each in (before, state))
            if shared(candidate.weight, was) != shared(candidate.weight, now):
                return True
    return False
