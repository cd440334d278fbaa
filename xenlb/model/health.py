"""From single check results to a verdict: rise, fall, and the share that must stay.

A target that was never seen up is `unknown`, however often it fails: a guest that still boots is
not a failed one. No probes here (xenlb.health), no weights (desired.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil

from xenlb.model.events import Probed
from xenlb.model.settings import Check


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """The verdict on a target: `up` None is unknown.

    `against` counts the results in a row that contradict the verdict. `since`: when the verdict
    was reached. Results of probes begun before `valid_from` do not count.
    """

    valid_from: float
    up: bool | None = None
    against: int = 0
    since: float = 0.0
    detail: str = ""


def judge(health: Health, result: Probed, check: Check) -> Health:
    """The verdict after one more result: `rise` good ones make it up, `fall` bad ones down."""
    if result.asked < health.valid_from:
        return health
    if result.up is bool(health.up):
        return replace(health, against=0, detail=result.detail)
    against = health.against + 1
    if against >= (check.rise if result.up else check.fall):
        return replace(health, up=result.up, against=0, since=result.at, detail=result.detail)
    return replace(health, against=against, detail=result.detail)


def together(verdicts: Sequence[Health], *, one_is_enough: bool) -> Health:
    """The verdict on a server of several checks: all have to pass, or one. The detail is that of
    the check on which it hangs."""
    ups = [each for each in verdicts if each.up]
    unknown = [each for each in verdicts if each.up is None]
    downs = [each for each in verdicts if each.up is False]
    if one_is_enough:
        if ups:
            return min(ups, key=lambda each: each.since)
        return unknown[0] if unknown else max(downs, key=lambda each: each.since)
    if downs:
        return min(downs, key=lambda each: each.since)
    return unknown[0] if unknown else max(ups, key=lambda each: each.since)


def may_leave(*, of: int, out: int, share: float) -> int:
    """How many more of `of` servers may leave for failing: `out` have, and `share` must stay."""
    return max(0, of - ceil(round(share * of, 6)) - out)
