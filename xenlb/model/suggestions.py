"""Names that are nearly the one that was typed, and how a typed name is quoted."""

from collections.abc import Iterable
from difflib import get_close_matches

from xenlb.untrusted import printable


def suggestion(name: str, names: Iterable[str]) -> str:
    """`did you mean web1?`; "" where nothing comes near."""
    found = get_close_matches(name, sorted(names), n=1, cutoff=0.6)
    return f"did you mean {found[0]}?" if found else ""


def quoted(name: str) -> str:
    """What was typed, cut, printable and in quotes."""
    return printable.quoted(name)
