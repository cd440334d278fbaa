"""Reads `check`: none, one check, or several of which all or any must pass.

A mapping of a service is merged over that of `defaults` key by key, a list stands for itself. What
the types of checks are and may say is in check_types.py; what the keys mean together, in
check_rules.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from xenlb.config import quantities, yaml_nodes
from xenlb.config.check_types import TYPE_KEYS, TYPES, made, type_of
from xenlb.config.cursor import Cursor, Fields, Location, Reported, Value
from xenlb.config.invalid_value import InvalidValue, did_you_mean, quoted
from xenlb.config.yaml_nodes import NodeKind, Scalar
from xenlb.model.checks import Asks
from xenlb.model.settings import Check

COMMON_KEYS: Final = ("type", "interval", "timeout", "rise", "fall", "port", "via", "flap-damping")
CHECK_KEYS: Final = COMMON_KEYS + TYPE_KEYS
VIAS: Final = ("server", "vip")
MOST_CHECKS: Final = 16

_EXAMPLE: Final = "[{type: tcp}, {type: icmp}]"
_DEFAULT: Final = Check()
_KNOWN: Final = frozenset(CHECK_KEYS)
_COMMON: Final = frozenset(COMMON_KEYS)
_KEYS: Final = {name: _COMMON.union(kind.keys) for name, kind in TYPES.items()}
_Class = type[Any]
_Entries = tuple[tuple[str, Location, Cursor], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckDraft:
    """`place`: of its mapping, None where the service has no key `check`. `told`: the keys of its
    type."""

    place: Location | None
    type: Value[str]
    told: Mapping[str, Value[Any]]
    interval: Value[float]
    timeout: Value[float | None]
    rise: Value[int]
    fall: Value[int]
    port: Value[int | None]
    via_vip: Value[bool]
    flap_damping: Value[float]

    def asks(self) -> Asks:
        return made(
            TYPES[self.type.value],
            {key: value.value for key, value in self.told.items() if value.given},
        )

    def asks_class(self) -> _Class:
        return TYPES[self.type.value].asks


@dataclass(frozen=True, slots=True, kw_only=True)
class ChecksDraft:
    """`section`: the key itself; its value is false for `check: none`."""

    section: Value[bool]
    any_check: bool
    checks: tuple[CheckDraft, ...]


class _Section(NamedTuple):
    """The mappings of a `check`; `listed`: not one by itself."""

    items: tuple[Cursor, ...]
    any_check: bool = False
    listed: bool = True


def read(fields: Fields) -> ChecksDraft:
    if "check" not in fields.own and "check" not in fields.inherited:
        return _LEFT_OUT
    none = _Section(())
    section = fields.read("check", _section, none)
    found = section.value
    if section.inherited:
        checks = tuple(_check(None, item) for item in found.items)
    elif found.listed:
        checks = tuple(_check(item, None) for item in found.items)
    else:
        behind = Fields(own=fields.inherited).read("check", _section, none).value
        under = None if behind.listed else behind.items[0]
        checks = (_check(found.items[0], under),)
    return ChecksDraft(
        section=Value(
            value=bool(found.items),
            place=section.place,
            inherited=section.inherited,
            bad=section.bad,
        ),
        any_check=found.any_check,
        checks=checks,
    )


def _section(cursor: Cursor) -> _Section:
    match cursor.node:
        case yaml_nodes.Mapping(entries=entries):
            if any(isinstance(key, Scalar) and key.text in {"all", "any"} for key, _ in entries):
                return _all_or_any(cursor)
            return _Section((cursor,), listed=False)
        case yaml_nodes.Sequence():
            return _Section(_listed(cursor))
        case Scalar(kind=NodeKind.NOTHING, trap=None):
            raise InvalidValue("has no value", hint="write none for no check, or {type: tcp}")
        case Scalar():
            text = cursor.raw().text
            if text == "none":
                return _Section(())
            known = f"{{type: {text}}}" if text in TYPES else "{type: tcp}"
            raise InvalidValue(f"{quoted(text)} is not a check", hint=f"write {known}, or none")


def _all_or_any(cursor: Cursor) -> _Section:
    entries = cursor.entries()
    first = next((entry for entry in entries if entry[0] in {"all", "any"}), None)
    if first is None:  # its key has an anchor or a tag
        raise Reported("")
    word, place, found = first
    for name, other, _ in entries:
        if other != place:
            cursor.report.add(
                other, f"{name[:40]} stands beside {word}", f"write it into each check of {word}"
            )
    return _Section(_listed(found), any_check=word == "any")


def _listed(cursor: Cursor) -> tuple[Cursor, ...]:
    found = []
    items = cursor.items(_EXAMPLE)
    if not items:
        raise InvalidValue("has no check", hint="write none for no check")
    if len(items) > MOST_CHECKS:
        raise InvalidValue(f"has {len(items)} checks", hint=f"at most {MOST_CHECKS}")
    for item in items:
        try:
            if isinstance(item.node, Scalar) and item.node.text in TYPES:
                raise InvalidValue(
                    f"{quoted(item.node.text)} is not a check",
                    hint=f"write {{type: {item.node.text}}}",
                )
            if {"all", "any"} & {name for name, _, _ in item.entries()}:
                raise InvalidValue(
                    "all and any are not nested", hint="write the checks in one list"
                )
            found.append(item)
        except InvalidValue as wrong:
            item.report_wrong(wrong)
    return tuple(found)


def _check(own: Cursor | None, inherited: Cursor | None) -> CheckDraft:
    """One check. Keys of the defaults' mapping are for checks of the same type, except those that
    every type has; its port and way go with its type, too, where it says one."""
    entries = () if own is None else own.entries()
    mine = _known(entries)
    entries_behind = () if inherited is None else inherited.entries()
    behind = _known(entries_behind)
    kind = their_kind = Fields(own=mine, inherited=behind).read("type", type_of, _DEFAULT.type)
    if own is None:
        _report_keys_of_other_types(kind, entries_behind, inherited)
    else:
        _report_keys_of_other_types(kind, entries, own)
        their_kind = Fields(own=behind).read("type", type_of, _DEFAULT.type)
    if kind.value != their_kind.value:
        dropped = TYPE_KEYS if "type" not in behind else (*TYPE_KEYS, "port", "via")
        behind = {key: cursor for key, cursor in behind.items() if key not in dropped}
    fields = Fields(own=mine, inherited=behind)
    place = own.place if own is not None else inherited.place if inherited is not None else None
    told = {} if kind.bad else TYPES[kind.value].keys
    return CheckDraft(
        place=place,
        type=kind,
        told={
            name: fields.read(name, key.parse, None)
            for name, key in told.items()
            if name in mine or name in behind
        },
        interval=fields.read("interval", lambda c: _duration(c, 0.01), _DEFAULT.interval),
        timeout=fields.read("timeout", lambda c: _duration(c, 0.001), None),
        rise=fields.read("rise", lambda c: c.whole_number(1, 1000), _DEFAULT.rise),
        fall=fields.read("fall", lambda c: c.whole_number(1, 1000), _DEFAULT.fall),
        port=fields.read("port", lambda c: c.whole_number(1, 65535), None),
        via_vip=fields.read("via", lambda c: c.word(VIAS, "a way of a check") == "vip", False),
        flap_damping=fields.read("flap-damping", lambda c: _duration(c, 0), _DEFAULT.flap_damping),
    )


def _known(entries: _Entries) -> dict[str, Cursor]:
    return {name: value for name, _, value in entries if name in _KNOWN}


def _report_keys_of_other_types(kind: Value[str], entries: _Entries, cursor: Cursor | None) -> None:
    mine = _COMMON if kind.bad else _KEYS[kind.value]
    for name, place, _ in entries:
        if cursor is None or name in mine or (kind.bad and name in TYPE_KEYS):
            continue
        if name in TYPE_KEYS:
            types = [each for each, found in TYPES.items() if name in found.keys]
            cursor.report.add(
                place,
                f"a check of type {kind.value} has no {name}",
                f"it is for type: {', '.join(types)}",
            )
        else:
            known = (
                CHECK_KEYS if kind.bad else (*COMMON_KEYS, *TYPES[kind.value].keys, "all", "any")
            )
            cursor.report.add(place, "unknown key", did_you_mean(name, known))


def _duration(cursor: Cursor, least: float) -> float:
    return cursor.parsed(lambda text: quantities.duration(text, least=least, most=quantities.DAY))


_LEFT_OUT: Final = ChecksDraft(
    section=Value(value=True), any_check=False, checks=(_check(None, None),)
)
