"""Patterns in texts of servers, including hostile ones."""

import asyncio
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenlb.health.pacing import StepScheduler, run_in_steps
from xenlb.health.transport.pattern import POSITIONS, SearchTooLong, matches
from xenlb.untrusted.budget import Budget

PATTERNS = ["^OK", "a.*b", "(?s)b.a$", "(?m)^a+$", r"\bab\b", "(?<=b)a?$", "^$", "a|b{3}", "(?i)AB"]


def searched(pattern: str, *texts: str, budget: Budget | None = None) -> bool:
    """Search as a probe does, with the time of each step counted."""
    budget = budget or Budget(pieces=1000)
    return asyncio.run(_metered(pattern, texts, budget))


async def _metered(pattern: str, texts: tuple[str, ...], budget: Budget) -> bool:
    return await run_in_steps(matches(pattern, *texts, budget=budget), budget, StepScheduler())


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("a.*b.*c", "a" * 2_000 + "b" * 2_000),
        ("a.*b.*c", "a" * 40_000 + "b" * 20_000),
        ("(a|aa)+$", "a" * 60 + "b"),
        ("(a|aa)+$", "a" * 60_000 + "b"),
        ("a.*c", "a" * 65_536),
        ("[a-z]*1[a-z]*2", "a" * 65_536),
    ],
)
def test_an_endless_search_is_stopped(pattern: str, text: str) -> None:
    budget = Budget(pieces=1000, time=0.05)
    with pytest.raises(SearchTooLong):
        searched(pattern, text, budget=budget)
    assert budget.spent
    assert searched("^a", text), "the next one has its own budget"


@given(pattern=st.sampled_from(PATTERNS), text=st.text(alphabet="ab\nOK "), long=st.booleans())
def test_result_equals_that_of_re_search(pattern: str, text: str, long: bool) -> None:
    if long:
        text = "b" * POSITIONS + text
    assert searched(pattern, text) == (re.search(pattern, text) is not None)


def test_all_searches_in_an_answer_have_one_budget() -> None:
    """Each search is short enough by itself."""
    budget = Budget(pieces=1000, time=0.05)
    texts = ("a" * 20 + "b",) * 1000
    with pytest.raises(SearchTooLong):
        searched("(a|aa)+$", *texts, budget=budget)
    assert budget.used_pieces < 1000


@pytest.mark.parametrize("texts", [("ab" * 30_000,), ("ab" * 80,) * 500])
def test_the_loop_runs_other_tasks_during_a_long_search(texts: tuple[str, ...]) -> None:
    budget = Budget(pieces=1000)
    assert not searched("a+c", *texts, budget=budget)
    assert budget.used_pieces > sum(map(len, texts)) / POSITIONS / 2
