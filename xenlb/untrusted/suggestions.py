"""PURE. Suggest the known name that is nearest to the one that was typed."""

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(name: str, names: Iterable[str], *, similarity: float = 0.6) -> str:
    """`did you mean web1?`; "" if no name has that similarity, 0 … 1."""
    matches = get_close_matches(name, list(names), n=1, cutoff=similarity)
    return f"did you mean {matches[0]}?" if matches else ""
