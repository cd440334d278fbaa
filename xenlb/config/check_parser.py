"""Read `check`: none, one check, or several of which all or any must pass.

A mapping of a service is merged over that of `defaults` key by key; a list replaces it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from xenlb.config import yaml_nodes
from xenlb.config.check_types import TYPE_KEYS, TYPES, build_probe, parse_type
from xenlb.config.config_node import AlreadyReported, ConfigNode
from xenlb.config.invalid_value import InvalidValue, known_words_hint
from xenlb.config.keys import (
    PORT_NUMBER,
    ConfigValue,
    KeyLayers,
    ValueKind,
    duration,
    key,
    key_names,
    whole_number,
)
from xenlb.config.problem_report import Location
from xenlb.config.yaml_nodes import NodeKind, Scalar
from xenlb.model.checks import Asks
from xenlb.model.settings import Check
from xenlb.untrusted.printable import quoted

VIAS: Final = ("server", "vip")
MOST_CHECKS: Final = 16

_EXAMPLE: Final = "[{type: tcp}, {type: icmp}]"
_DEFAULT: Final = Check()
_TYPE: Final = ValueKind(parse_type, {"enum": list(TYPES)})
_VIA: Final = ValueKind(
    lambda node: node.word(VIAS, "a way of a check") == "vip", {"enum": list(VIAS)}
)
_Entries = tuple[tuple[str, Location, ConfigNode], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckDraft:
    """One check. `location`: of its mapping, None if the service has no key `check`.

    `type_values`: the values of the keys that belong to its type.
    """

    location: Location | None
    type_values: Mapping[str, ConfigValue[Any]]
    type: ConfigValue[str] = key(_TYPE, _DEFAULT.type, "How a server is probed. Default: tcp.")
    interval: ConfigValue[float] = key(
        duration(0.01), _DEFAULT.interval, "The time from one probe to the next."
    )
    timeout: ConfigValue[float | None] = key(
        duration(0.001), None, "The timeout of one probe; shorter than the interval."
    )
    rise: ConfigValue[int] = key(
        whole_number(1, 1000),
        _DEFAULT.rise,
        "The number of good probes in a row that put a server into service.",
    )
    fall: ConfigValue[int] = key(
        whole_number(1, 1000),
        _DEFAULT.fall,
        "The number of bad probes in a row that take a server out of service.",
    )
    port: ConfigValue[int | None] = key(
        PORT_NUMBER, None, "The probed port. Default: the server's own."
    )
    via_vip: ConfigValue[bool] = key(
        _VIA,
        False,
        "vip: a connection to the service address, through the server (type tcp; gatewaying, or"
        " tunnel of type ipip).",
        name="via",
    )
    flap_damping: ConfigValue[float] = key(
        duration(0),
        _DEFAULT.flap_damping,
        "The longest delay before a server that fails again and again returns; 0s: no delay.",
    )

    def probe(self) -> Asks:
        """The settings of the probe: an instance of probe_class() with the given values."""
        return build_probe(TYPES[self.type.value], self.given_type_values())

    def given_type_values(self) -> dict[str, Any]:
        """The values of the type's own keys that the file has, without defaults."""
        return {name: value.value for name, value in self.type_values.items() if value.given}

    def probe_class(self) -> Any:
        """The class of the type's settings, such as Icmp."""
        return TYPES[self.type.value].asks


COMMON_KEYS: Final = key_names(CheckDraft)
CHECK_KEYS: Final = (*COMMON_KEYS, *TYPE_KEYS)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChecksDraft:
    """The checks of a service. `enabled`: the key itself; false for `check: none`."""

    enabled: ConfigValue[bool]
    any_check: bool
    checks: tuple[CheckDraft, ...]


class _CheckNodes(NamedTuple):
    """The mappings of a `check`. `is_list`: false for a single mapping."""

    items: tuple[ConfigNode, ...]
    any_check: bool = False
    is_list: bool = True


def read_checks(layers: KeyLayers) -> ChecksDraft:
    """The checks of a service: its own key `check`, merged with that of `defaults`."""
    if "check" not in layers.own and "check" not in layers.inherited:
        return _ABSENT
    none = _CheckNodes(())
    value = layers.read("check", _check_nodes, none)
    nodes = value.value
    if value.inherited:
        checks = tuple(_check(None, item) for item in nodes.items)
    elif nodes.is_list:
        checks = tuple(_check(item, None) for item in nodes.items)
    else:
        defaults = KeyLayers(own=layers.inherited).read("check", _check_nodes, none).value
        checks = (_check(nodes.items[0], None if defaults.is_list else defaults.items[0]),)
    return ChecksDraft(
        enabled=ConfigValue(bool(nodes.items), value.location, value.inherited, value.bad),
        any_check=nodes.any_check,
        checks=checks,
    )


def _check_nodes(node: ConfigNode) -> _CheckNodes:
    match node.node:
        case yaml_nodes.Mapping(entries=entries):
            if any(isinstance(key, Scalar) and key.text in {"all", "any"} for key, _ in entries):
                return _all_or_any(node)
            return _CheckNodes((node,), is_list=False)
        case yaml_nodes.Sequence():
            return _CheckNodes(_list_items(node))
        case Scalar(kind=NodeKind.NOTHING, refused=None):
            raise InvalidValue("has no value", hint="write none for no check, or {type: tcp}")
        case Scalar():
            text = node.scalar().text
            if text == "none":
                return _CheckNodes(())
            example = f"{{type: {text}}}" if text in TYPES else "{type: tcp}"
            raise InvalidValue(f"{quoted(text)} is not a check", hint=f"write {example}, or none")


def _all_or_any(node: ConfigNode) -> _CheckNodes:
    entries = node.entries()
    first = next((entry for entry in entries if entry[0] in {"all", "any"}), None)
    if first is None:  # its key has an anchor or a tag
        raise AlreadyReported
    word, first_location, checks = first
    for name, location, _ in entries:
        if location != first_location:
            node.report.add(
                location, f"{name[:40]} stands beside {word}", f"write it into each check of {word}"
            )
    return _CheckNodes(_list_items(checks), any_check=word == "any")


def _list_items(node: ConfigNode) -> tuple[ConfigNode, ...]:
    items = node.items(_EXAMPLE)
    if not items:
        raise InvalidValue("has no check", hint="write none for no check")
    if len(items) > MOST_CHECKS:
        raise InvalidValue(f"has {len(items)} checks", hint=f"at most {MOST_CHECKS}")
    return node.parsed_items(_list_item, _EXAMPLE, skip_bad=True)


def _list_item(item: ConfigNode) -> ConfigNode:
    if isinstance(item.node, Scalar) and item.node.text in TYPES:
        raise InvalidValue(
            f"{quoted(item.node.text)} is not a check", hint=f"write {{type: {item.node.text}}}"
        )
    if {"all", "any"} & {name for name, _, _ in item.entries()}:
        raise InvalidValue("all and any are not nested", hint="write the checks in one list")
    return item


def _check(own: ConfigNode | None, inherited: ConfigNode | None) -> CheckDraft:
    """One check, merged over that of `defaults`.

    If the service's check is of another type than that of `defaults`, it inherits the common keys
    only, and not their port and via if `defaults` states a type.
    """
    own_entries = () if own is None else own.entries()
    inherited_entries = () if inherited is None else inherited.entries()
    own_values, default_values = _known(own_entries), _known(inherited_entries)
    layers = KeyLayers(own=own_values, inherited=default_values)
    kind = default_kind = layers.read("type", parse_type, _DEFAULT.type)
    if own is not None:
        _report_keys_of_other_types(kind, own_entries, own)
        default_kind = KeyLayers(own=default_values).read("type", parse_type, _DEFAULT.type)
    elif inherited is not None:
        _report_keys_of_other_types(kind, inherited_entries, inherited)
    if kind.value != default_kind.value:
        dropped = {*TYPE_KEYS, *(("port", "via") if "type" in default_values else ())}
        default_values = {
            name: node for name, node in default_values.items() if name not in dropped
        }
        layers = KeyLayers(own=own_values, inherited=default_values)
    node = own or inherited
    type_keys = {} if kind.bad else TYPES[kind.value].keys
    return layers.read_keys(
        CheckDraft,
        location=None if node is None else node.location,
        type=kind,
        type_values={
            name: layers.read(name, type_key.kind.parse, None)
            for name, type_key in type_keys.items()
            if name in own_values or name in default_values
        },
    )


def _known(entries: _Entries) -> dict[str, ConfigNode]:
    return {name: value for name, _, value in entries if name in CHECK_KEYS}


def _report_keys_of_other_types(
    kind: ConfigValue[str], entries: _Entries, node: ConfigNode
) -> None:
    own_keys = (*COMMON_KEYS, *(TYPE_KEYS if kind.bad else TYPES[kind.value].keys))
    for name, location, _ in entries:
        if name in own_keys:
            continue
        if name in TYPE_KEYS:
            types = [type_name for type_name, other in TYPES.items() if name in other.keys]
            node.report.add(
                location,
                f"a check of type {kind.value} has no {name}",
                f"it is for type: {', '.join(types)}",
            )
        else:
            known = own_keys if kind.bad else (*own_keys, "all", "any")
            node.report.add(location, "unknown key", known_words_hint(name, known))


_ABSENT: Final = ChecksDraft(
    enabled=ConfigValue(True), any_check=False, checks=(_check(None, None),)
)
