"""Keys of the configuration: one declaration states a key's values, default and description.

A section of the file is a dataclass; each field made by key() is one of its keys. The validator
reads the section by these declarations, and `make schema` writes schema.json from them.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from functools import cache
from typing import Any, Final, Generic, NamedTuple, TypeVar

from xenlb.config import quantities, yaml_nodes
from xenlb.config.config_node import ConfigNode, optional_values
from xenlb.config.invalid_value import InvalidValue
from xenlb.config.problem_report import Location

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
E = TypeVar("E", bound=StrEnum)

Schema = Mapping[str, Any]


class ConfigValue(NamedTuple, Generic[T]):
    """The value of a key, or its default if the key is absent or its value is refused (`bad`).

    `location` is None if the key is absent. `inherited`: the key is in `defaults`, not in the
    service.
    """

    value: T
    location: Location | None = None
    inherited: bool = False
    bad: bool = False

    @property
    def given(self) -> bool:
        """Whether the file has the key, in the service or in `defaults`."""
        return self.location is not None

    @property
    def own(self) -> bool:
        """Whether the file has the key outside `defaults`."""
        return self.location is not None and not self.inherited


@dataclass(frozen=True, slots=True)
class ValueKind(Generic[T_co]):
    """How a value is read, and the JSON Schema of what is accepted."""

    parse: Callable[[ConfigNode], T_co]
    schema: Schema

    def __call__(self, node: ConfigNode) -> T_co:
        """Parse a node. Raises InvalidValue."""
        return self.parse(node)


class Key(NamedTuple):
    """A key of a section, for the reader and for the schema."""

    name: str
    kind: ValueKind[Any]
    default: Any
    description: str


def key(kind: ValueKind[T], default: T, description: str, *, name: str = "") -> ConfigValue[T]:
    """Declare a key as a field of a section; its name is the field's, with hyphens."""
    declaration: Any = field(metadata={"key": Key(name, kind, default, description)})
    return declaration  # type: ignore[no-any-return]


def section(definition: str, *, name: str = "") -> Any:
    """Declare a key whose value is a section of its own, `definition` in the schema."""
    kind = ValueKind(ConfigNode.entries, {"$ref": f"#/$defs/{definition}"})
    return field(metadata={"key": Key(name, kind, None, "")})


@cache
def keys_by_field(declared: Any) -> Mapping[str, Key]:
    """The keys of a section's class by the names of the fields that declare them."""
    keys = ((item.name, item.metadata.get("key")) for item in fields(declared))
    return {
        name: key._replace(name=key.name or name.replace("_", "-"))
        for name, key in keys
        if key is not None
    }


@cache
def key_names(declared: Any) -> tuple[str, ...]:
    """The names of the keys as the file has them, in the order of the fields."""
    return tuple(key.name for key in keys_by_field(declared).values())


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyLayers:
    """The values of a mapping by key, and below them those of the same mapping in `defaults`."""

    own: Mapping[str, ConfigNode]
    inherited: Mapping[str, ConfigNode] = field(default_factory=dict)

    def read(self, name: str, parse: Callable[[ConfigNode], T], default: T) -> ConfigValue[T]:
        """The value of a key; one that `parse` refuses is reported, and the default taken."""
        node = self.own.get(name)
        inherited = node is None
        if node is None:
            node = self.inherited.get(name)
            if node is None:
                return ConfigValue(default)
        try:
            return ConfigValue(parse(node), node.location, inherited)
        except InvalidValue as error:
            node.report_error(error)
            return ConfigValue(default, node.location, inherited, bad=True)

    def read_keys(self, declared: Callable[..., T], **others: Any) -> T:
        """The section with all its keys; `others` are fields that the caller has read already."""
        values = {
            name: self.read(key.name, key.kind.parse, key.default)
            for name, key in keys_by_field(declared).items()
            if name not in others
        }
        return declared(**values, **others)

    def nested(self, name: str, declared: Any) -> "KeyLayers":
        """The layers of a section inside this one; values that are no mapping are reported."""
        known = key_names(declared)
        return KeyLayers(
            own=optional_values(self.own.get(name), known),
            inherited=optional_values(self.inherited.get(name), known),
        )


def plain_values(read: Any) -> dict[str, Any]:
    """The values of a section's keys by field, without their locations."""
    return {name: getattr(read, name).value for name in keys_by_field(read.__class__)}


def is_mapping(node: ConfigNode | None) -> bool:
    """Whether the value of a key is a mapping; False if the key is absent (None)."""
    return node is not None and isinstance(node.node, yaml_nodes.Mapping)


# Kinds of values

PERCENT: Final = ValueKind(
    lambda node: node.parsed(quantities.percent),
    {"type": "string", "pattern": "^(100|[1-9]?[0-9])%$"},
)
BOOLEAN: Final = ValueKind(ConfigNode.boolean, {"type": "boolean"})


def duration(least: float, most: float = quantities.DAY) -> ValueKind[float]:
    """A duration with a unit, such as 5s, from `least` to `most` seconds."""
    return ValueKind(
        lambda node: node.parsed(lambda text: quantities.duration(text, least=least, most=most)),
        {"$ref": "#/$defs/duration"},
    )


def whole_number(least: int, most: int) -> ValueKind[int]:
    """A whole number from `least` to `most`, ends included."""
    return ValueKind(
        lambda node: node.whole_number(least, most),
        {"type": "integer", "minimum": least, "maximum": most},
    )


PORT_NUMBER: Final = whole_number(1, 65535)


def choice(
    kind: type[E], also: Mapping[str, E] | None = None, without: Collection[E] = ()
) -> ValueKind[E]:
    """A member of the enumeration. `also`: other programs' names for members, for the hint."""
    known = [member.value for member in kind if member not in without]
    return ValueKind(lambda node: node.choice(kind, also, without), {"enum": known})


def word(known: Collection[str], what: str) -> ValueKind[str]:
    """One of the known words; `what` names them in the message."""
    return ValueKind(lambda node: node.word(known, what), {"enum": list(known)})


def parsed(parse: Callable[[str], T], **schema: Any) -> ValueKind[T]:
    """A text with a syntax of its own; what YAML reads as a number is accepted too."""
    return ValueKind(lambda node: node.parsed(parse), {"type": "string", **schema})


def text(parse: Callable[[str], T], **schema: Any) -> ValueKind[T]:
    """A text with a syntax of its own; what YAML reads as a number is refused."""
    return ValueKind(lambda node: parse(node.text()), {"type": "string", **schema})
