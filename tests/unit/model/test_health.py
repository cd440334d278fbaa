"""Verdicts from results: rise, fall, flap damping, shares, and the weight that must stay."""

from dataclasses import replace
from ipaddress import ip_address
from math import ceil, inf, isnan, log2, nan

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from xenlb.model.checks import Agent, Exec, Share
from xenlb.model.events import ProbeFinished
from xenlb.model.health import (
    FIRST_HOLD,
    FORGOTTEN,
    FailingServer,
    Health,
    apply_result,
    bounded,
    combine,
    removable_servers,
)
from xenlb.model.settings import Check
from xenlb.model.target import Target


def judged(results: str, check: Check, health: Health) -> Health:
    """`+` passes, `-` fails, one a second."""
    target = Target(check=check, address=ip_address("10.0.0.11"), port=25)
    for at, sign in enumerate(results, start=1):
        result = ProbeFinished(at=at, target=target, started=at, up=sign == "+", detail=sign)
        health = apply_result(health, result, check)
    return health


@pytest.mark.parametrize(
    ("results", "up"),
    [
        ("", None),
        ("-----", None),
        ("+", None),
        ("+-+-+", None),
        ("++", True),
        ("++--", True),
        ("++--+--", True),
        ("++---", False),
        ("++---+", False),
        ("++---+-+", False),
        ("++---++", True),
    ],
)
def test_rise_two_fall_three(results: str, up: bool | None) -> None:
    assert judged(results, Check(rise=2, fall=3), Health(valid_from=0)).up is up


def test_since_is_the_time_of_the_verdict() -> None:
    health = judged("++--+---", Check(rise=2, fall=3), Health(valid_from=0))
    assert (health.up, health.since, health.detail) == (False, 8, "-")


@given(results=st.text(alphabet="+-"), rise=st.integers(1, 4), fall=st.integers(1, 4))
def test_a_verdict_changes_after_rise_or_fall_results_in_a_row(
    results: str, rise: int, fall: int
) -> None:
    check = Check(rise=rise, fall=fall)
    for end in range(1, len(results) + 1):
        before = judged(results[: end - 1], check, Health(valid_from=0)).up
        after = judged(results[:end], check, Health(valid_from=0)).up
        if after is not before:
            run = "+" * rise if after else "-" * fall
            assert results[:end].endswith(run)
        assert not (before is None and after is False)  # never seen up is unknown, not down


def test_probes_begun_before_valid_from_do_not_count() -> None:
    health = Health(valid_from=10.0, detail="")
    assert judged("+++++++++", Check(rise=1), health) == health
    assert judged("++++++++++", Check(rise=1), health).up is True


weights = st.lists(st.integers(0, 100), max_size=12)


@given(failing=weights, sound=weights, out=weights, percent=st.integers(0, 100))
def test_the_share_of_the_weight_stays(
    failing: list[int], sound: list[int], out: list[int], percent: int
) -> None:
    total, remaining = sum(failing) + sum(sound) + sum(out), sum(failing) + sum(sound)
    fail = [FailingServer(since=float(n % 3), weight=weight) for n, weight in enumerate(failing)]
    leaving = removable_servers(fail, total=total, remaining=remaining, share=percent / 100)
    left = remaining - sum(failing[index] for index in leaving)
    weigh = [index for index in leaving if failing[index] > 0]
    assert not weigh or 100 * left >= percent * total
    for index in set(range(len(failing))) - set(leaving):  # no more servers are kept than necessary
        assert 100 * (left - failing[index]) < percent * total
    if percent == 0:
        assert len(leaving) == len(failing)


def test_the_longest_failed_leave_first() -> None:
    fail = [FailingServer(since=since, weight=1) for since in (3.0, 1.0, 2.0)]
    assert removable_servers(fail, total=3, remaining=3, share=0.3) == (1, 2)


def test_a_server_counts_with_its_weight() -> None:
    fail = [FailingServer(since=1.0, weight=3), FailingServer(since=2.0, weight=1)]
    assert removable_servers(fail, total=5, remaining=5, share=0.5) == (1,)


def test_a_share_is_not_rounded_up_by_floating_point() -> None:
    assert 0.07 * 100 > 7
    fail = [FailingServer(since=0.0, weight=93)]
    assert removable_servers(fail, total=100, remaining=100, share=0.07) == (0,)


# --- flap damping --------------------------------------------------------------------------------

FLAPS = Check(rise=1, fall=1, flap_damping=60.0)


def after_result(health: Health, at: float, *, up: bool, check: Check = FLAPS) -> Health:
    target = Target(check=check, address=ip_address("10.0.0.11"), port=25)
    return apply_result(
        health, ProbeFinished(at=at, target=target, started=at, up=up, detail=str(up)), check
    )


def returns(check: Check, *, failures: int) -> list[float]:
    """Return how long after each failure a server is back that fails as soon as it is.

    It is probed ten times a second.
    """
    health, at, delays = after_result(Health(valid_from=0.0), 0.0, up=True, check=check), 1.0, []
    for _ in range(failures):
        health, failed = after_result(health, at, up=False, check=check), at
        while not health.up:
            at = round(at + 0.1, 1)
            health = after_result(health, at, up=True, check=check)
        delays.append(round(at - failed, 1))
    return delays


def test_a_flapping_server_is_held_back_longer_each_time() -> None:
    expected = [0.1, 0.1, 5.0, 10.0, 20.0, 40.0, 60.0, 60.0]
    assert returns(FLAPS, failures=8) == expected


def test_a_hold_lasts_flap_damping_at_most() -> None:
    short = Check(rise=1, fall=1, flap_damping=7.0)
    assert returns(short, failures=5) == [0.1, 0.1, 5.0, 7.0, 7.0]
    assert returns(Check(rise=1, fall=1, flap_damping=0.0), failures=6) == [0.1] * 6
    forever = returns(Check(rise=1, fall=1, flap_damping=15.0), failures=200)
    assert forever[-1] == 15.0


def test_a_hold_ends_with_rise_passes_in_a_row() -> None:
    health = Health(valid_from=0.0, up=False, failures=3, held_until=10.0, since=5.0)
    check = Check(rise=2, fall=1)
    for at in (6.0, 7.0, 8.0):
        health = after_result(health, at, up=True, check=check)
        assert (health.up, health.damped(at)) == (False, True)
    assert after_result(health, 9.0, up=True, check=check) == health  # no change
    assert after_result(health, 10.0, up=True, check=check).up is True
    bad = after_result(health, 9.0, up=False, check=check)
    assert after_result(bad, 10.0, up=True, check=check).up is False


def test_failures_are_forgotten_ten_minutes_after_the_last_hold() -> None:
    health = Health(valid_from=0.0, up=True, failures=7, held_until=100.0)
    assert after_result(health, 699.0, up=False).failures == 8
    assert after_result(health, 700.0, up=False).failures == 1


@given(
    seed=st.lists(
        st.tuples(st.sampled_from([0.1, 0.1, 1.0, 4.9, 20.0, 300.0, 601.0]), st.booleans()),
        max_size=120,
    ),
    longest=st.sampled_from([2.0, 5.0, 12.0, 60.0, 900.0]),
    span=st.sampled_from([1.0, 30.0, 75.0, 700.0, 3000.0]),
)
def test_the_number_of_failures_is_bounded(
    seed: list[tuple[float, bool]], longest: float, span: float
) -> None:
    """The bound of the module's docstring, in any span of any history."""
    check = Check(rise=1, fall=1, flap_damping=longest)
    health, at = Health(valid_from=0.0), 0.0
    failed: list[float] = []
    for wait, up in seed:
        at += wait
        after = after_result(health, at, up=up, check=check)
        if health.up and after.up is False:
            failed.append(at)
        health = after
    doubled = max(0, ceil(log2(longest / FIRST_HOLD)))
    most = (3 + doubled) * (1 + span / FORGOTTEN) + span / longest
    for first in failed:
        assert sum(first <= at < first + span for at in failed) <= most


def test_the_last_five_transitions_are_remembered() -> None:
    health = Health(valid_from=0.0)
    for at in range(1, 10):
        health = after_result(
            health, float(at), up=at % 2 == 1, check=Check(fall=1, flap_damping=0.0)
        )
    assert [(change.at, change.up) for change in health.changes] == [
        (5.0, True),
        (6.0, False),
        (7.0, True),
        (8.0, False),
        (9.0, True),
    ]


# --- shares of the weight ------------------------------------------------------------------------

HALF = Share(least=0.1, most=0.5)


@given(share=st.none() | st.floats())
@example(share=nan)
@example(share=inf)
def test_a_share_stays_within_its_bounds(share: float | None) -> None:
    """Whatever a server reports: no number, a large one, infinity."""
    for asks in (Agent(share=HALF), Exec(command=("/bin/true",), share=HALF)):
        taken = bounded(Check(asks=asks), share)
        assert taken is None or HALF.least <= taken <= HALF.most
        assert (taken is None) is (share is None or isnan(share))
    assert bounded(Check(asks=Agent(share=HALF)), share, declines=True) == 0.0
    assert bounded(Check(asks=Exec(command=("/bin/true",))), share) is None
    assert bounded(Check(), share) is None


def test_a_server_that_declines_gets_no_share_even_below_least() -> None:
    check = Check(asks=Agent(share=HALF))
    target = Target(check=check, address=ip_address("10.0.0.11"), port=25)
    result = ProbeFinished(
        at=1, target=target, started=1, up=True, detail="", share=0.3, declines=True
    )
    assert apply_result(Health(valid_from=0.0), result, check).share == 0.0
    assert apply_result(Health(valid_from=0.0), replace(result, declines=False), check).share == 0.3


def test_the_share_in_a_failing_result_is_ignored() -> None:
    check = Check(asks=Agent(), fall=1)
    target = Target(check=check, address=ip_address("10.0.0.11"), port=25)
    health = Health(valid_from=0.0, up=True, share=0.5)
    bad = ProbeFinished(at=1, target=target, started=1, up=False, detail="down", share=0.9)
    assert apply_result(health, bad, check).share == 0.5
    good = replace(bad, up=True, share=0.2)
    assert apply_result(health, good, check).share == 0.2
    assert (
        apply_result(health, replace(good, share=None), check).share is None
    )  # the whole weight again


# --- several checks ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ups", "every", "one"),
    [
        ([True, True], True, True),
        ([True, False], False, True),
        ([True, None], None, True),
        ([False, None], False, False),
        ([None, None], None, None),
        ([False, False], False, False),
    ],
)
def test_all_checks_have_to_pass_or_one(
    ups: list[bool | None], every: bool | None, one: bool | None
) -> None:
    judged = [
        (
            Target(check=Check(), address=ip_address("10.0.0.11"), port=port),
            Health(valid_from=0.0, up=up, since=float(port)),
        )
        for port, up in enumerate(ups)
    ]
    for verdicts in (judged, judged[::-1]):
        assert combine(verdicts, one_is_enough=False)[1].up is every
        assert combine(verdicts, one_is_enough=True)[1].up is one


def test_the_smallest_share_applies() -> None:
    target = Target(check=Check(), address=ip_address("10.0.0.11"), port=25)
    healths = [Health(valid_from=0.0, up=True, share=share) for share in (0.7, None, 0.3)]
    judged = [(target, health) for health in healths]
    assert combine(judged, one_is_enough=False)[1].share == 0.3
    assert combine(judged, one_is_enough=True)[1].share == 0.3
    down = [*judged[:2], (target, replace(healths[2], up=False))]
    assert combine(down, one_is_enough=True)[1].share == 0.7
    assert combine(down, one_is_enough=False)[1].share == 0.3
