"""Untrusted JSON: many small values are refused before they are parsed."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenlb.untrusted.budget import Budget, BudgetSpent
from xenlb.untrusted.json_text import json_value

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(VALUES)
def test_a_value_is_parsed(value: object) -> None:
    assert json_value(json.dumps(value), Budget(pieces=10_000)) == value


@pytest.mark.parametrize(
    ("text", "pieces"), [("[[],[]]", 5), ('{"a":{"b":1},"c":2}', 4), ("[" * 100_000, 100_001)]
)
def test_more_values_than_the_budget_raise(text: str, pieces: int) -> None:
    with pytest.raises(BudgetSpent):
        json_value(text, Budget(pieces=pieces - 1))
    budget = Budget(pieces=pieces)
    try:
        json_value(text, budget)
    except ValueError:
        assert text.startswith("[[[")
    assert budget.used_pieces == pieces


def test_bytes_are_counted() -> None:
    with pytest.raises(BudgetSpent, match="more than 1 KiB"):
        json_value('"' + "x" * 1023 + '"', Budget(pieces=10, size=1024))
