"""Holds values against the types that their dataclasses declare: for what comes from a file.

A number must be finite, and of a size that the rest can reckon with. Narrower ranges stand below,
by the name of the field. Nothing is converted; a whole number may stand for a float.
"""

from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")

Check = Callable[[Any], bool]

LARGEST = 1e10  # as seconds, three hundred years
LARGEST_WHOLE = 0xFFFFFFFF
LONGEST_TEXT = 65536
# By the name of a field.
RANGES: Mapping[str, tuple[float, float]] = {
    "port": (0, 0xFFFF),
    "server_port": (0, 0xFFFF),
    "weight": (0, 0xFFFF),
    "share": (0, 1000),
}


def check_type(value: T, kind: Any) -> T:
    """The value. Raises ValueError where it is not of that type, inside and out."""
    if not _check(kind)(value):
        raise ValueError(f"not a {getattr(kind, '__name__', kind)}: {value!r:.200}")
    return value


@cache
def _check(kind: Any, least: float = -LARGEST, most: float = LARGEST) -> Check:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in {Union, UnionType}:
        checks = [_check(each, least, most) for each in arguments]
        return lambda value: any(check(value) for check in checks)
    if origin is tuple and arguments[1:] == (...,):
        item = _check(arguments[0])
        return lambda value: isinstance(value, tuple) and all(map(item, value))
    if origin is tuple:
        items = [_check(each) for each in arguments]
        return lambda value: (
            isinstance(value, tuple)
            and len(value) == len(items)
            and all(check(each) for check, each in zip(items, value, strict=True))
        )
    if isinstance(origin, type) and issubclass(origin, Mapping):
        key, item = map(_check, arguments)
        return lambda value: (
            isinstance(value, Mapping) and all(map(key, value)) and all(map(item, value.values()))
        )
    if isinstance(origin, type) and issubclass(origin, AbstractSet):
        item = _check(arguments[0])
        return lambda value: isinstance(value, AbstractSet) and all(map(item, value))
    if kind is float:
        # Also a whole number; never a truth value, nor what is not finite.
        return lambda value: type(value) in {int, float} and least <= value <= most
    if kind is int:
        first, last = max(least, 0), min(most, LARGEST_WHOLE)
        return lambda value: type(value) is int and first <= value <= last
    if kind is str:
        return lambda value: isinstance(value, str) and len(value) <= LONGEST_TEXT
    if kind is NoneType:
        return lambda value: value is None
    if is_dataclass(kind):
        return _dataclass(kind)
    if isinstance(kind, type) and (issubclass(kind, Enum) or kind.__module__ != "builtins"):
        return lambda value: isinstance(value, kind)
    if kind is bool:
        return lambda value: type(value) is bool
    raise TypeError(f"no check for {kind!r}")


def _dataclass(kind: Any) -> Check:
    hints = get_type_hints(kind)
    checks: list[tuple[str, Check]] = []

    def check(value: Any) -> bool:
        if not checks:  # a type may have itself inside
            checks.extend(
                (each.name, _check(hints[each.name], *RANGES.get(each.name, ())))
                for each in fields(kind)
            )
        return type(value) is kind and all(inside(getattr(value, name)) for name, inside in checks)

    return check
