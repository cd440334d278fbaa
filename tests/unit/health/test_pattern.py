"""Patterns in what servers say, hostile ones included."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenlb.health.pattern import SHORT, Endless, found

PATTERNS = ["^OK", "a.*b", "(?s)b.a$", "(?m)^a+$", r"\bab\b", "(?<=b)a?$", "^$", "a|b{3}", "(?i)AB"]


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
def test_a_search_without_end_is_ended(pattern: str, text: str) -> None:
    with pytest.raises(Endless):
        found(pattern, text)
    assert found("^a", text), "the next one has its own time"


@given(pattern=st.sampled_from(PATTERNS), text=st.text(alphabet="ab\nOK "), long=st.booleans())
def test_found_as_search_finds(pattern: str, text: str, long: bool) -> None:
    if long:
        text = "b" * SHORT + text
    assert found(pattern, text) == (re.search(pattern, text) is not None)
