"""Checks as JSON and back: for what an agent leaves to the next one, and for kept configurations.

Each value with its class and what differs from that class's defaults. Reading raises ValueError,
KeyError or TypeError where something else wrote it; who reads is on his guard.
"""

from dataclasses import fields, is_dataclass
from functools import lru_cache
from typing import Any, get_args

from xenlb.model.checks import Asks, Share, Tls
from xenlb.model.settings import Check

_CLASSES: dict[str, type[Any]] = {each.__name__: each for each in (*get_args(Asks), Tls, Share)}


@lru_cache(maxsize=256)
def write(check: Check) -> dict[str, Any]:
    """Not to be changed by who gets it: a check is that of thousands of servers, and this is done
    for each whenever an agent saves what it knows."""
    written: dict[str, Any] = _written(check)
    return written


def read(item: Any) -> Check:
    return Check(**_fields(item))


def _written(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_written(each) for each in value]
    if not is_dataclass(value):
        return value
    changed = {
        field.name: _written(mine)
        for field in fields(value)
        for mine in (getattr(value, field.name),)
        if mine != field.default
    }
    return {"is": type(value).__name__, **changed}


def _read(item: Any) -> Any:
    match item:
        case dict():
            return _CLASSES[item["is"]](**_fields(item))
        case list():
            return tuple(_read(each) for each in item)
        case _:
            return item


def _fields(item: dict[str, Any]) -> dict[str, Any]:
    return {name: _read(value) for name, value in item.items() if name != "is"}
