"""From check results to a verdict: rise, fall, flap damping, and the share that must stay.

A target that was never up is unknown, however often it fails: a booting guest is never reported as
failed.

Flap damping. A target that goes down repeatedly is held back. From the third time on (each less
than FORGOTTEN after the hold before it) it returns no sooner than one hold after it went down:
FIRST_HOLD, then twice that, and so on, at most the check's `flap_damping`. Between two failures
lies at least the hold of the first. So in T seconds a target goes down at most
(3 + k)(1 + T / FORGOTTEN) + T / flap_damping times. Here k is how often FIRST_HOLD is doubled to
reach flap_damping. With 60 s: seven times in the first minute and a quarter, then once a minute. If
no other server of a service is up, its damped servers return at once.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import isnan

from xenlb.model.checks import Agent, Exec, Share
from xenlb.model.events import ProbeFinished
from xenlb.model.settings import Check
from xenlb.model.target import Target

FIRST_HOLD = 5.0  # seconds
FORGOTTEN = 600.0  # seconds
FREE = 2  # failures without a hold
CHANGES = 5  # transitions that are remembered


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A transition of a verdict; `detail` is that of the deciding check result."""

    at: float
    up: bool
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """The verdict on a target: `up` None is unknown.

    `streak` counts the results in a row that contradict the verdict. `since`: when the verdict
    was reached. Results of probes begun before `valid_from` do not count. `assumed`: up because
    the server was in service before it had this check, which has no result yet. `overridden`: at
    least one server has its own verdict on the target. `share`: the fraction of its weight that
    the target asks for, if any. `failures`: how often it went down in a row; `held_until`: it does
    not return before. `changes`: the last transitions, newest last.
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
        """Whether it is down because it flaps, even if its check passes."""
        return self.up is False and self.failures > FREE and now < self.held_until

    def has_risen(self, check: Check) -> bool:
        """Whether a target that is down passed `rise` times in a row.

        It stays down while it is held back, and then until its next result.
        """
        return self.up is False and self.streak >= check.rise


def apply_result(health: Health, result: ProbeFinished, check: Check) -> Health:
    """Return the verdict after a result: `rise` passes make it up, `fall` failures down."""
    if result.started < health.valid_from:
        return health
    # A server that fails and is kept keeps its share, whatever its failing check reports.
    share = health.share
    if result.up:
        share = bounded(check, result.share, declines=result.declines)
    overridden = health.overridden and not result.up
    if result.up is bool(health.up):
        return replace(
            health,
            streak=0,
            detail=result.detail,
            share=share,
            assumed=False,
            overridden=overridden,
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
        overridden=overridden,
        share=share,
        changes=(*health.changes, change)[-CHANGES:],
    )


def _failed(health: Health, at: float, check: Check) -> Health:
    """Count one more failure, and hold the target back if it is due."""
    failures = 1 if at >= health.held_until + FORGOTTEN else health.failures + 1
    hold = 0.0
    if failures > FREE:
        doubled = min(failures - FREE - 1, 32)  # far beyond every flap_damping
        hold = min(FIRST_HOLD * 2**doubled, check.flap_damping)
    return replace(health, failures=failures, held_until=at + hold)


def bounded(check: Check, share: float | None, *, declines: bool = False) -> float | None:
    """Return the share of a reply within the check's bounds; None: no share applies.

    Replies are not trusted; this is the one place that bounds them. A server that declines gets 0
    even below `least`: it could as well report itself down.
    """
    bounds = share_bounds(check)
    if declines and isinstance(check.asks, Agent):
        return 0.0
    if bounds is None or share is None or isnan(share):
        return None
    return min(max(share, bounds.least), bounds.most)


def share_bounds(check: Check) -> Share | None:
    """Return the bounds of the shares in the check's replies; None: they contain none."""
    match check.asks:
        case Agent(share=bounds) | Exec(share=Share() as bounds):
            return bounds
    return None


TargetVerdict = tuple[Target, Health]


def combine(verdicts: Sequence[TargetVerdict], *, one_is_enough: bool) -> TargetVerdict:
    """Combine the verdicts of a server's checks into its verdict, with the deciding target.

    All checks have to pass, or one. The share is the smallest of those that pass, or of all if the
    server does not.
    """
    if len(verdicts) == 1:
        return verdicts[0]
    ups = [verdict for verdict in verdicts if verdict[1].up]
    unknown = [verdict for verdict in verdicts if verdict[1].up is None]
    downs = [verdict for verdict in verdicts if verdict[1].up is False]
    # A check that was never up must not take out a server that passes another one.
    if one_is_enough and ups:
        return _with_share(min(ups, key=lambda item: (item[1].assumed, item[1].since)), ups)
    if downs:
        which = max if one_is_enough else min
        return _with_share(which(downs, key=lambda item: item[1].since), verdicts)
    if unknown:
        return unknown[0]
    return _with_share(max(ups, key=lambda item: (item[1].assumed, item[1].since)), ups)


def _with_share(verdict: TargetVerdict, verdicts: Iterable[TargetVerdict]) -> TargetVerdict:
    target, health = verdict
    shares = [other.share for _, other in verdicts if other.share is not None]
    return target, replace(health, share=min(shares)) if shares else health


@dataclass(frozen=True, slots=True, kw_only=True)
class FailingServer:
    """A server that fails and is in the table with its weight."""

    since: float
    weight: int


def can_spare(weight: int, *, total: int, remaining: int, share: float) -> bool:
    """Return whether a kernel service can spare a server of that weight (keep-in-service).

    `remaining`: the weight that is left, this server's included. `share` of `total` must stay.
    """
    needed = round(share * total, 6)  # 0.07 * 100 is a little more than 7
    return weight == 0 or remaining - weight >= needed


def removable_servers(
    failing: Sequence[FailingServer], *, total: int, remaining: int, share: float
) -> tuple[int, ...]:
    """Return the indexes of the failing servers that may leave, the longest failed first.

    `total`: the weight of all servers that serve or have served. `remaining`: of those in the
    table, the failing ones included.
    """
    leaving: list[int] = []
    for index in sorted(range(len(failing)), key=lambda index: failing[index].since):
        weight = failing[index].weight
        if can_spare(weight, total=total, remaining=remaining, share=share):
            remaining -= weight
            leaving.append(index)
    return tuple(leaving)
