"""From single check results to a verdict: rise, fall, flap damping, and the share that must stay.

A target that was never seen up is `unknown`, however often it fails: a guest that still boots is
not a failed one. No probes here (xenlb.health), no weights (desired.py).

Flap damping. A target that goes down again and again is held back: from the third time on (each
less than FORGOTTEN after the hold of the one before) it returns no sooner than a hold after it went
down: FIRST_HOLD, twice that, and so on, at most the check's `flap_damping`. Between two failures
lies at least the hold of the first, so in T seconds a target goes down at most
(3 + k)(1 + T / FORGOTTEN) + T / flap_damping times, where k is how often FIRST_HOLD is doubled to
get there. With 60 s: seven times in the first minute and a quarter, then once a minute. Where a
service would be left with no server by that, it gets them back at once, see admission.py.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import isnan

from xenlb.model.checks import Agent, Exec, Share
from xenlb.model.events import ProbeFinished
from xenlb.model.settings import Check
from xenlb.model.target import Target

FIRST_HOLD = 5.0  # seconds
FORGOTTEN = 600.0
FREE = 2  # failures that nobody is held back for
CHANGES = 5  # transitions that are remembered


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A verdict was reached; `detail` is what the check said."""

    at: float
    up: bool
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """The verdict on a target: `up` None is unknown.

    `streak` counts the results in a row that contradict the verdict. `since`: when the verdict
    was reached. Results of probes begun before `valid_from` do not count. `assumed`: it is up
    because its server was in service before it had this check, which has said nothing yet.
    `overridden`: some server has a verdict of its own on the target (verdict_overrides.py), for
    which every result counts. `share`: what the target takes of its weight, None where it does not
    say. `failures`: how often it went down in a row, and `held_until`: no return before then.
    `changes`: the last ones, newest last.
    """

    valid_from: float
    up: bool | None = None
    streak: int = 0
    since: float = 0.0
    detail: str = ""
    assumed: bool = False
    overridden: bool = False
    share: float | None = None
    failures: int = 0
    held_until: float = 0.0
    changes: tuple[Change, ...] = ()

    def damped(self, now: float) -> bool:
        """Is it down because it flaps, whatever its check says now?"""
        return self.up is False and self.failures > FREE and now < self.held_until

    def passes(self, check: Check) -> bool:
        """Has it passed as often as it has to? It is down all the same as long as it is held back,
        and until it is asked again then."""
        return self.up is False and self.streak >= check.rise


def judge(health: Health, result: ProbeFinished, check: Check) -> Health:
    """The verdict after one more result: `rise` good ones make it up, `fall` bad ones down."""
    if result.started < health.valid_from:
        return health
    # What a failing target says of its share is no news: who is kept in spite of it keeps its own.
    said = bounded(check, result.share, away=result.declines)
    share = said if result.up else health.share
    if result.up is bool(health.up):
        return replace(
            health,
            streak=0,
            detail=result.detail,
            share=share,
            assumed=False,
            overridden=health.overridden and not result.up,
        )
    needed = check.rise if result.up else check.fall
    streak = min(health.streak + 1, needed)
    if streak < needed or (result.up and health.damped(result.at)):
        return replace(health, streak=streak, detail=result.detail, share=share)
    after = health if result.up else _failed(health, result.at, check)
    change = Change(at=result.at, up=result.up, detail=result.detail)
    return replace(
        after,
        up=result.up,
        streak=0,
        since=result.at,
        detail=result.detail,
        assumed=False,
        overridden=health.overridden and not result.up,
        share=share,
        changes=(*health.changes, change)[-CHANGES:],
    )


def _failed(health: Health, at: float, check: Check) -> Health:
    """How long it is held back, now that it has gone down once more."""
    failures = 1 if at >= health.held_until + FORGOTTEN else health.failures + 1
    hold = 0.0
    if failures > FREE:
        doubled = min(failures - FREE - 1, 32)  # far beyond every flap_damping
        hold = min(FIRST_HOLD * 2**doubled, check.flap_damping)
    return replace(health, failures=failures, held_until=at + hold)


def bounded(check: Check, share: float | None, *, away: bool = False) -> float | None:
    """The share that an answer says, as far as it may; None: it says none, or the check asks for
    none. Answers are not trusted, here and nowhere else. But a server that wants to be away gets
    nothing, whatever is the least: it could as well say that it is down."""
    bounds = share_bounds(check)
    if away and isinstance(check.asks, Agent):
        return 0.0
    if bounds is None or share is None or isnan(share):
        return None
    return min(max(share, bounds.least), bounds.most)


def share_bounds(check: Check) -> Share | None:
    """The bounds of the shares that the check's answers say; None: they say none."""
    match check.asks:
        case Agent(share=bounds) | Exec(share=Share() as bounds):
            return bounds
    return None


Judged = tuple[Target, Health]


def combine(verdicts: Sequence[Judged], *, one_is_enough: bool) -> Judged:
    """The check on which a server of several hangs, and the verdict on the server: all have to
    pass, or one. Its share is the smallest of those that pass, or of all if it does not."""
    if len(verdicts) == 1:
        return verdicts[0]
    ups = [each for each in verdicts if each[1].up]
    unknown = [each for each in verdicts if each[1].up is None]
    downs = [each for each in verdicts if each[1].up is False]
    # One that was never seen up says nothing of a server that has been, by another.
    if one_is_enough and ups:
        return _shared(min(ups, key=lambda each: (each[1].assumed, each[1].since)), ups)
    if downs:
        which = max if one_is_enough else min
        return _shared(which(downs, key=lambda each: each[1].since), verdicts)
    if unknown:
        return unknown[0]
    return _shared(max(ups, key=lambda each: (each[1].assumed, each[1].since)), ups)


def _shared(judged: Judged, among: Iterable[Judged]) -> Judged:
    target, health = judged
    shares = [each.share for _, each in among if each.share is not None]
    return target, replace(health, share=min(shares)) if shares else health


@dataclass(frozen=True, slots=True, kw_only=True)
class Failing:
    """A server that fails and is in the table with its weight."""

    since: float
    weight: int


def may_leave(weight: int, *, able: int, staying: int, share: float) -> bool:
    """May a server of that weight leave a kernel service, of whose `able` weight a `share` must
    stay, while `staying` is there with it? The measure of keep-in-service, whoever takes it out."""
    needed = round(share * able, 6)  # 0.07 * 100 is a little more than 7
    return weight == 0 or staying - weight >= needed


def free_to_leave(
    failing: Sequence[Failing], *, able: int, staying: int, share: float
) -> tuple[int, ...]:
    """Which of the failing may leave, by their places: the longest failed first.

    `able` is the weight of all servers that serve or have served, `staying` that of those in the
    table, the failing among them; `share` of the former must stay of the latter.
    """
    leaving: list[int] = []
    for place in sorted(range(len(failing)), key=lambda each: failing[each].since):
        weight = failing[place].weight
        if may_leave(weight, able=able, staying=staying, share=share):
            staying -= weight
            leaving.append(place)
    return tuple(leaving)
