"""PURE. JSON that others write: its values are pieces of a budget.

The reader of Python's library is one call in C, which nothing interrupts: four megabytes of small
lists hold the interpreter, and with it every thread, for 0.2 s. So they are counted first.
"""

import json

from xenlb.untrusted.budget import Budget

_BETWEEN = ("[", "{", ",")  # in a string they count as well


def json_value(text: str, budget: Budget) -> object:
    """The value that the text is. Raises ValueError, BudgetSpent."""
    budget.take(1 + sum(map(text.count, _BETWEEN)), size=len(text))
    try:
        value: object = json.loads(text)
    except RecursionError:
        raise ValueError("lists within lists without end") from None
    return value
