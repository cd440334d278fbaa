"""The effect of a check result on the state."""

from xenlb.model import alarm, verdict_overrides
from xenlb.model.desired import weight_for_share
from xenlb.model.events import ProbeFinished
from xenlb.model.health import apply_result
from xenlb.model.note import Note, NoteKind
from xenlb.model.state import Change, State, nothing_follows
from xenlb.model.target import Target


def apply_check_result(state: State, event: ProbeFinished) -> Change:
    """Apply the result of a probe; no effect if its target is not checked any more."""
    target = event.target
    health = state.remembered.health.get(target)
    if health is None:
        return nothing_follows(state)
    after = apply_result(health, event, target.check)
    changed = state
    if after != health:  # else it is held back, and nothing is new
        changed = state.with_verdict(target, after)
    news = False
    if health.overridden:
        changed, news = verdict_overrides.apply_result(changed, event)
        after = changed.remembered.health[target]
    # A server that is held back may return if no other one is up.
    news = news or (health.streak < after.streak and after.has_risen(target.check))
    names = frozenset(state.derived.targets[target])
    if (health.up, health.share) == (after.up, after.share) and not news:
        # The first result of a failing check may begin an alarm.
        if after.up is not None or health.detail:
            return nothing_follows(changed)
        notes = tuple(alarm.sorry_server_notes(changed, event))
        return Change(state=changed, services=names, notes=notes)
    owner = state.derived.owners.get(target.address)
    if after.up is health.up and (event.up or not news):
        if not _reweighs(state, changed, target):
            return Change(state=changed, services=names, follows=news)
        percent = 100 if after.share is None else after.share * 100
        text = f"check {target} sets the weight to {percent:.3g}%: {event.detail}"
        note = Note(event.at, NoteKind.CHECK, text, owner)
        return Change(state=changed, services=names, notes=(note,))
    text = f"check {target} {'passes' if after.up else 'fails'}: {event.detail}"
    if after.damped(event.at):
        hold = after.held_until - event.at
        text += f"; {after.failures} failures in a row, held back for at least {hold:g} s"
    note = Note(event.at, NoteKind.CHECK, text, owner, warning=not after.up)
    return Change(state=changed, services=names, notes=(note,))


def _reweighs(before: State, state: State, target: Target) -> bool:
    """Return whether the share of the target changes the weight of a server."""
    by_service = state.derived.targets[target]
    for service in state.settings.services:
        for candidate in by_service.get(service.name, ()):
            old, new = (s.verdict(candidate, service) for s in (before, state))
            if weight_for_share(candidate.weight, old) != weight_for_share(candidate.weight, new):
                return True
    return False
