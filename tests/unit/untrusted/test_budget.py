"""The budget of an answer."""

import pytest

from xenlb.untrusted.budget import Budget, BudgetSpent


def test_the_whole_budget_can_be_taken() -> None:
    budget = Budget(pieces=3, size=2048, time=0.5)
    budget.take(size=2047)
    budget.add_time(0.5)
    budget.take(2, size=1)
    assert (budget.used_pieces, budget.used_size, budget.used_time) == (3, 2048, 0.5)


@pytest.mark.parametrize(
    ("pieces", "size", "seconds", "message"),
    [
        (4, 0, 0.0, "more than 3 pieces"),
        (1, 2049, 0.0, "more than 2 KiB"),
        (1, 0, 0.51, "one that takes more than 0.5 s to read"),
    ],
)
def test_more_than_the_budget_raises(pieces: int, size: int, seconds: float, message: str) -> None:
    budget = Budget(pieces=3, size=2048, time=0.5)
    budget.add_time(seconds)
    with pytest.raises(BudgetSpent, match=message):
        budget.take(pieces, size=size)


def test_a_budget_without_limits() -> None:
    budget = Budget(pieces=1)
    budget.add_time(1e6)
    budget.take(size=1 << 40)
