"""Verdicts from results: rise, fall, and the share that must stay."""

from ipaddress import ip_address
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenlb.model.events import Probed, Target
from xenlb.model.health import Health, judge, may_leave
from xenlb.model.settings import Check


def judged(results: str, check: Check, health: Health) -> Health:
    """`+` passes, `-` fails, one a second."""
    target = Target(check=check, address=ip_address("10.0.0.11"), port=25)
    for at, sign in enumerate(results, start=1):
        result = Probed(at=at, target=target, asked=at, up=sign == "+", detail=sign)
        health = judge(health, result, check)
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


def test_since_is_when_the_verdict_was_reached() -> None:
    health = judged("++--+---", Check(rise=2, fall=3), Health(valid_from=0))
    assert (health.up, health.since, health.detail) == (False, 8, "-")


@given(results=st.text(alphabet="+-"), rise=st.integers(1, 4), fall=st.integers(1, 4))
def test_a_verdict_changes_after_so_many_in_a_row_only(results: str, rise: int, fall: int) -> None:
    check = Check(rise=rise, fall=fall)
    for end in range(1, len(results) + 1):
        before = judged(results[: end - 1], check, Health(valid_from=0)).up
        after = judged(results[:end], check, Health(valid_from=0)).up
        if after is not before:
            run = "+" * rise if after else "-" * fall
            assert results[:end].endswith(run)
        assert not (before is None and after is False)  # never seen up is unknown, not down


def test_probes_begun_before_do_not_count() -> None:
    health = Health(valid_from=10.0, detail="")
    assert judged("+++++++++", Check(rise=1), health) == health
    assert judged("++++++++++", Check(rise=1), health).up is True


@given(
    of=st.integers(0, 200),
    out=st.integers(0, 200),
    percent=st.integers(0, 100),
)
def test_the_share_stays(of: int, out: int, percent: int) -> None:
    leave = may_leave(of=of, out=min(out, of), share=percent / 100)
    must_stay = ceil(of * percent / 100 - 1e-9)
    assert leave == max(0, of - must_stay - min(out, of))


def test_a_share_is_not_rounded_up_by_floating_point() -> None:
    assert 0.07 * 100 > 7
    assert may_leave(of=100, out=0, share=0.07) == 93
