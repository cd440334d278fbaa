"""A YAML node with its path and report: typed getters that refuse what is not of that type.

Each getter returns a value of one type or raises InvalidValue. Lists and mappings report a bad
item at its own place and go on with the next. The keys and their meaning are declared elsewhere.
"""

from collections.abc import Callable, Collection, Mapping
from enum import StrEnum
from typing import NamedTuple, NoReturn, TypeVar

from xenlb.config import quantities, scalars, yaml_nodes
from xenlb.config.host_requirements import Requirement, RequirementKind
from xenlb.config.invalid_value import InvalidValue, known_words_hint
from xenlb.config.problem_report import Location, ProblemReport
from xenlb.config.yaml_nodes import Node, NodeKind, Scalar
from xenlb.untrusted.printable import quoted

T = TypeVar("T")
E = TypeVar("E", bound=StrEnum)

_BOOLEANS = {"yes": "true", "on": "true", "1": "true", "no": "false", "off": "false", "0": "false"}


class AlreadyReported(InvalidValue):
    """A refused value whose problem is in the report already."""

    def __init__(self) -> None:
        super().__init__("")


class ConfigNode(NamedTuple):
    """A node, its path, and the report for its problems.

    A tuple, not a dataclass: a large file has ten thousand of them.
    """

    node: Node
    path: str
    report: ProblemReport

    @property
    def location(self) -> Location:
        """Line, column and path of the node in the file."""
        return Location(self.node.line, self.node.column, self.path)

    def add_problem(self, message: str, hint: str) -> None:
        """Report a problem of this node; `hint` is what to write in its place."""
        self.report.add(self.location, message, hint)

    def require(self, kind: RequirementKind, name: str) -> str:
        """Record that this host must have `name`, and return the name."""
        self.report.requirements.setdefault(Requirement(kind, name), self.location)
        return name

    # Scalars

    def scalar(self) -> Scalar:
        """The scalar as written. Raises InvalidValue for a list, a mapping or no value."""
        self._refuse_part()
        node = self.node
        if isinstance(node, Scalar):
            if node.nothing:
                raise InvalidValue("has no value", hint="write one or remove it")
            return node
        what = "list" if isinstance(node, yaml_nodes.Sequence) else "mapping"
        raise InvalidValue(f"is a {what} where one value is expected", hint="write one value")

    def parsed(self, parse: Callable[[str], T]) -> T:
        """A value with a syntax of its own (address, duration, port), quoted or not."""
        return parse(scalars.plain_text(self.scalar().text))

    def text_scalar(self) -> Scalar:
        """The scalar, if YAML reads it as text."""
        scalar = self.scalar()
        if scalar.kind is not NodeKind.TEXT:
            raise InvalidValue(
                f"{scalar.text[:60]} is {scalar.kind} to YAML, not a text",
                hint=f"write it in quotes: '{scalar.text[:60]}'",
            )
        return scalar

    def text(self) -> str:
        """A text to YAML, without control characters. Raises InvalidValue."""
        return scalars.plain_text(self.text_scalar().text)

    def word(self, known: Collection[str], what: str) -> str:
        """One of the known words; `what` names them in the message."""
        text = self.scalar().text
        if text not in known:
            raise InvalidValue(f"{quoted(text)} is not {what}", hint=known_words_hint(text, known))
        return text

    def whole_number(self, least: int, most: int) -> int:
        """An unquoted number from `least` to `most`, ends included. Raises InvalidValue."""
        scalar = self.scalar()
        if not scalar.plain:
            raise InvalidValue(
                f"{quoted(scalar.text)} is in quotes, but a number is expected",
                hint=f"write {scalar.text[:20]}" if scalar.text.isdecimal() else "write a number",
            )
        return quantities.whole_number(scalar.text, least=least, most=most)

    def boolean(self) -> bool:
        """An unquoted true or false. Raises InvalidValue, with a hint for yes, off and the like."""
        scalar = self.scalar()
        if scalar.plain and scalar.text in {"true", "false"}:
            return scalar.text == "true"
        meant = _BOOLEANS.get(scalar.text.lower(), scalar.text.lower())
        quotes = "" if scalar.plain else " without quotes"
        hint = f"write {meant}{quotes}" if meant in {"true", "false"} else "write true or false"
        raise InvalidValue(f"{quoted(scalar.text)} is neither true nor false", hint=hint)

    def choice(
        self, kind: type[E], also: Mapping[str, E] | None = None, without: Collection[E] = ()
    ) -> E:
        """A member of the enumeration. `also`: other programs' names for members, for the hint."""
        member = (also or {}).get(self.scalar().text.lower())
        if member is not None:
            raise InvalidValue(
                f"{quoted(self.scalar().text)} is another program's name for it",
                hint=f"write {member.value}",
            )
        known = tuple(member.value for member in kind if member not in without)
        return kind(self.word(known, "a value of this key"))

    # Lists and mappings

    def items(self, example: str) -> "tuple[ConfigNode, ...]":
        """The items of a list. Raises InvalidValue for anything else; its hint shows `example`."""
        self._refuse_part()
        if not isinstance(self.node, yaml_nodes.Sequence):
            self._refuse_type(f"write a list, like {example}")
        return tuple(
            ConfigNode(item, f"{self.path}[{index}]", self.report)
            for index, item in enumerate(self.node.items)
        )

    def parsed_items(
        self, parse: "Callable[[ConfigNode], T]", example: str, *, skip_bad: bool = False
    ) -> tuple[T, ...]:
        """Every item by `parse`. Each bad one is reported; without `skip_bad` one spoils all."""
        values, bad = [], False
        for item in self.items(example):
            try:
                values.append(parse(item))
            except InvalidValue as error:
                item.report_error(error)
                bad = True
        if bad and not skip_bad:
            raise AlreadyReported
        return tuple(values)

    def entries(self) -> "tuple[tuple[str, Location, ConfigNode], ...]":
        """Key, location of the key, and value of every usable key; other keys are reported."""
        self._refuse_part()
        if not isinstance(self.node, yaml_nodes.Mapping):
            self._refuse_type("write KEY: VALUE, one a line")
        first_lines: dict[str, int] = {}
        entries = []
        for key, value in self.node.entries:
            key_node = ConfigNode(key, self.path, self.report)
            if isinstance(key, Scalar) and key.plain and key.text == "<<":
                key_node.add_problem(
                    "a merge key (<<)", "write the keys out, or put them under defaults"
                )
                continue
            try:
                if not isinstance(key, Scalar):
                    raise InvalidValue("a list or a mapping as a key", hint="a key is a text")
                if key.nothing:
                    raise InvalidValue("a key without a name", hint="write KEY: VALUE")
                name = key_node.text()
            except InvalidValue as error:
                key_node.report_error(error)
                continue
            path = f"{self.path}.{name}"[:200] if self.path else name[:200]
            location = Location(key.line, key.column, path)
            if name in first_lines:
                self.report.add(
                    location,
                    f"{quoted(name)} is here twice",
                    f"it is in line {first_lines[name]} already: remove one",
                )
                continue
            first_lines[name] = key.line
            node = value
            if isinstance(value, Scalar) and value.plain and not value.text:
                # The parser puts an absent value behind the next line's indentation.
                node = value._replace(line=key.line, column=key.column)
            entries.append((name, location, ConfigNode(node, path, self.report)))
        return tuple(entries)

    def values_by_key(self, known: Collection[str]) -> "dict[str, ConfigNode]":
        """The values by key; unknown keys are reported."""
        values = {}
        for name, location, value in self.entries():
            if name in known:
                values[name] = value
            else:
                self.report.add(location, "unknown key", known_words_hint(name, known))
        return values

    def report_error(self, error: InvalidValue) -> None:
        """Report an error at this node, unless it is AlreadyReported."""
        if not isinstance(error, AlreadyReported):
            self.add_problem(
                error.message if self.path else f"the file {error.message}", error.hint
            )

    def _refuse_part(self) -> None:
        refused = self.node.refused
        if refused is not None:
            self.add_problem(refused.message, refused.hint)
            if isinstance(self.node, Scalar):  # the items of a list or mapping are still checked
                raise AlreadyReported

    def _refuse_type(self, expected: str) -> NoReturn:
        match self.node:
            case Scalar(nothing=True):
                raise InvalidValue("has no value", hint=expected)
            case Scalar(text=text):
                raise InvalidValue(f"{quoted(text)} is one value", hint=expected)
            case yaml_nodes.Sequence():
                raise InvalidValue("is a list", hint=expected)
            case yaml_nodes.Mapping():
                raise InvalidValue("is a mapping", hint=expected)


def optional_values(node: ConfigNode | None, known: Collection[str]) -> dict[str, ConfigNode]:
    """The values by key of an optional mapping; empty if it is absent or, reported, no mapping."""
    if node is None:
        return {}
    try:
        return node.values_by_key(known)
    except InvalidValue as error:
        node.report_error(error)
        return {}
