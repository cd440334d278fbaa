"""Dataclasses as JSON and back, by the types of their fields.

A class without defaults becomes the list of its fields, for example `["tcp", "192.0.2.1", 80]`. Any
other class becomes an object without the fields that have their default. A mapping becomes a list
of pairs. A field that may have several classes becomes a pair of name and object: `["Http", {}]`.

Decoding checks each value: its type, the range of a number, the length of a text. Nothing is
converted; a whole number may stand for a float. A change of a default, or of a class that becomes a
list, needs a new version of the state file.
"""

import json
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import Enum
from functools import cache, lru_cache, reduce
from ipaddress import ip_address
from operator import attrgetter, or_
from socket import AF_INET, inet_pton
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints
from uuid import UUID

from xenlb.ipvs import table
from xenlb.ipvs.table import AddressKey, IPAddress, MarkKey, ServerKey
from xenlb.model.domain import GuestId
from xenlb.model.guest import Guest
from xenlb.model.health import Health
from xenlb.model.settings import Check

Convert = Callable[[Any], Any]

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
# Fields that are not encoded: a restarted agent learns or counts their values again.
TRANSIENT: Mapping[Any, set[str]] = {
    Guest: {
        "last_event",
        "metadata_at",
        "rejected",
        "address_notes",
        "metadata_problems",
        "readiness",
    },
    Health: {"streak", "overridden"},
}
# Classes whose values occur many times in a file. A value is converted once; decoded, it is one
# object. It saves a fifth of the time of encoding, and memory.
REPEATED = {AddressKey, MarkKey, ServerKey, GuestId, Check}
CACHED = 65536  # values of each class


def dumps(value: object) -> str:
    """JSON of a value of these classes, or of lists and string-keyed dicts of them."""
    return _ENCODER.encode(value)


def same_json(before: Any, after: Any) -> bool:
    """Whether two values of one class are encoded in the same way."""
    encode = _encoder(before.__class__)
    return encode(before) == encode(after) or dumps(before) == dumps(after)


@cache
def _encoder(kind: Any) -> Convert:
    """A function for what `json` does not know. The items of its result may need another one."""
    if issubclass(kind, AbstractSet):
        return lambda value: sorted(value, key=str)
    if not is_dataclass(kind):
        return str
    encode: Convert = attrgetter(*_names(kind)) if _is_list(kind) else _object_encoder(kind)
    if kind in REPEATED:
        return lru_cache(maxsize=CACHED)(lambda value: json.loads(dumps(encode(value))))
    return encode


_ENCODER = json.JSONEncoder(
    separators=(",", ":"),
    check_circular=False,
    default=lambda value: _encoder(value.__class__)(value),
)


def _object_encoder(kind: Any) -> Convert:
    hints = get_type_hints(kind)
    names = [name for name in _names(kind) if name not in TRANSIENT.get(kind, ())]
    defaults = [_default(field) for field in fields(kind) if field.name in names]
    mappings = [name for name in names if _is(hints[name], Mapping)]
    unions = [name for name in names if _named_classes(hints[name])]
    values = attrgetter(*names, "__class__", "__class__")  # for several names it makes a tuple

    def encode(value: Any) -> dict[str, Any]:
        encoded = {
            name: item
            for name, default, item in zip(names, defaults, values(value), strict=False)
            if item is not default and item != default
        }
        for name in mappings:
            if name in encoded:
                encoded[name] = list(encoded[name].items())
        for name in unions:
            if name in encoded:
                encoded[name] = type(encoded[name]).__name__, encoded[name]
        return encoded

    return encode


@cache
def decoder(kind: Any, least: float = -LARGEST, most: float = LARGEST) -> Convert:
    """A function that makes a value of a type from what `json` read.

    It raises an exception of any class where that is not the JSON of such a value. Numbers are
    within `least` and `most`.
    """
    arguments = get_args(kind)
    if kind == IPAddress:
        return _address
    if _is_union(kind) and NoneType in arguments:
        some = decoder(
            reduce(or_, (each for each in arguments if each is not NoneType)), least, most
        )
        return lambda raw: None if raw is None else some(raw)
    if by_name := {each.__name__: decoder(each) for each in _named_classes(kind)}:
        return lambda raw: by_name[_list(raw)[0]](raw[1])
    if _is_union(kind):
        by_length = {len(fields(each)): decoder(each) for each in arguments}
        return lambda raw: by_length[len(_list(raw))](raw)
    if is_dataclass(kind):
        decode = _dataclass_decoder(kind)
        once = lru_cache(maxsize=CACHED)(lambda text: decode(json.loads(text)))
        return (lambda raw: once(json.dumps(raw))) if kind in REPEATED else decode
    if _is(kind, Mapping):
        key, item = map(decoder, arguments)
        return lambda raw: {key(name): item(value) for name, value in map(_list, _list(raw))}
    if _is(kind, tuple) and arguments[1:] != (...,):
        items = [decoder(each) for each in arguments]
        return lambda raw: tuple(
            decode(each) for decode, each in zip(items, _list(raw), strict=True)
        )
    if _is(kind, tuple) or _is(kind, AbstractSet):
        item, many = decoder(arguments[0]), tuple if _is(kind, tuple) else frozenset
        return lambda raw: many(map(item, _list(raw)))
    if kind is UUID:
        return UUID
    if isinstance(kind, type) and issubclass(kind, Enum):
        return {member.value: member for member in kind}.__getitem__
    whole = max(least, 0), min(most, LARGEST_WHOLE)
    tests: dict[Any, Callable[[Any], bool]] = {
        float: lambda raw: type(raw) in {int, float} and least <= raw <= most,
        int: lambda raw: type(raw) is int and whole[0] <= raw <= whole[1],
        str: lambda raw: type(raw) is str and len(raw) <= LONGEST_TEXT,
        bool: lambda raw: type(raw) is bool,
        None: lambda raw: raw is None,
    }
    if (test := tests.get(kind)) is None:
        raise TypeError(f"no decoder for {kind!r}")
    return lambda raw: raw if test(raw) else _refuse(raw)


def _refuse(raw: object) -> Any:
    raise ValueError(f"unexpected value: {raw!r:.200}")


def _list(raw: Any) -> list[Any]:
    return raw if type(raw) is list else _refuse(raw)


@lru_cache(maxsize=CACHED)
def _address(text: str) -> IPAddress:
    try:  # a tenth of the time that ipaddress takes
        return table.address(inet_pton(AF_INET, text))
    except OSError:
        return ip_address(text)


def _dataclass_decoder(kind: Any) -> Convert:
    hints = get_type_hints(kind)
    names, is_list = _names(kind), _is_list(kind)
    decoders: dict[str, Convert] = {}

    def decode(raw: Any) -> Any:
        if not decoders:  # not before: a class may contain itself
            decoders.update((name, decoder(hints[name], *RANGES.get(name, ()))) for name in names)
        items = zip(names, _list(raw), strict=True) if is_list else raw.items()
        return kind(**{name: decoders[name](item) for name, item in items})

    return decode


def _names(kind: Any) -> list[str]:
    return [field.name for field in fields(kind)]


def _default(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def _is_list(kind: Any) -> bool:
    return len(fields(kind)) > 1 and all(_default(field) is MISSING for field in fields(kind))


def _is(hint: Any, kind: type) -> bool:
    origin = get_origin(hint)
    return isinstance(origin, type) and issubclass(origin, kind)


def _named_classes(hint: Any) -> list[Any]:
    """The classes between which an encoded value needs a name."""
    classes = [each for each in get_args(hint) if is_dataclass(each) and not _is_list(each)]
    return classes if _is_union(hint) and len(classes) > 1 else []


def _is_union(hint: Any) -> bool:
    return get_origin(hint) in {Union, UnionType}
