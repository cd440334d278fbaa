"""Typed reading of a tree of nodes: every value with its place, every problem collected.

A getter of Cursor returns a value of one type or raises Wrong; Fields.read() turns that into a
problem of the report and a default that is marked bad, so that reading goes on and nothing is said
twice. Which keys there are, and what they mean together, is not known here.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Generic, NamedTuple, NoReturn, TypeVar

from xenlb.config import quantities, scalars, yaml_nodes
from xenlb.config.host_requirements import Requirement, RequirementKind
from xenlb.config.invalid_value import InvalidValue, did_you_mean, quoted
from xenlb.config.yaml_nodes import Node, NodeKind, Scalar
from xenlb.model.problem import Problem

T = TypeVar("T")
E = TypeVar("E", bound=StrEnum)


class Reported(InvalidValue):
    """The value cannot be taken, and the report already says why."""


# As in yaml_nodes.py, tuples for what is made by the ten thousand.


class Location(NamedTuple):
    line: int
    column: int
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The problems found so far. One found twice (a default, say) is kept once. `needs`: of the
    host, and where each stands first."""

    file: str
    found: dict[Problem, None] = field(default_factory=dict)
    needs: dict[Requirement, Location] = field(default_factory=dict)
    warned: list[Problem] = field(default_factory=list)

    def add(self, place: Location, message: str, hint: str) -> None:
        self.found[self.problem(place, message, hint)] = None

    def warn(self, place: Location, message: str, hint: str) -> None:
        """What is allowed, and yet likely to be a mistake."""
        self.warned.append(self.problem(place, message, hint))

    def problem(self, place: Location, message: str, hint: str) -> Problem:
        return Problem(
            file=self.file,
            line=place.line,
            column=place.column,
            path=place.path,
            message=message,
            hint=hint,
        )

    def problems(self) -> tuple[Problem, ...]:
        return tuple(sorted(self.found, key=lambda p: (p.line, p.column, p.path, p.message)))


class Value(NamedTuple, Generic[T]):
    """What a key says, or its default where the key is left out (`place` is None) or cannot be
    taken (`bad`). `inherited`: it stands under `defaults`, not with the service."""

    value: T
    place: Location | None = None
    inherited: bool = False
    bad: bool = False

    @property
    def given(self) -> bool:
        return self.place is not None

    @property
    def own(self) -> bool:
        return self.place is not None and not self.inherited


class Cursor(NamedTuple):
    """A node, its path, and the report that its problems go to."""

    node: Node
    path: str
    report: Report

    @property
    def place(self) -> Location:
        return Location(self.node.line, self.node.column, self.path)

    def wrong(self, message: str, hint: str) -> None:
        self.report.add(self.place, message, hint)

    def needed(self, kind: RequirementKind, name: str) -> str:
        """The name, which stands for something that this host must have."""
        self.report.needs.setdefault(Requirement(kind, name), self.place)
        return name

    # Scalars

    def raw(self) -> Scalar:
        """The scalar, whatever YAML would make of it; a list, a mapping or nothing is refused."""
        self._check_trap()
        node = self.node
        if isinstance(node, Scalar):
            if node.nothing:
                raise InvalidValue("has no value", hint="write one or remove it")
            return node
        what = "list" if isinstance(node, yaml_nodes.Sequence) else "mapping"
        raise InvalidValue(f"is a {what} where one value is expected", hint="write one value")

    def parsed(self, parse: Callable[[str], T]) -> T:
        """A value with a form of its own (address, duration, port), quoted or not."""
        return parse(scalars.plain_text(self.raw().text))

    def text(self) -> str:
        scalar = self.raw()
        if scalar.kind is not NodeKind.TEXT:
            raise InvalidValue(
                f"{scalar.text[:60]} is {scalar.kind} to YAML, not a text",
                hint=f"write it in quotes: '{scalar.text[:60]}'",
            )
        return scalars.plain_text(scalar.text)

    def word(self, known: tuple[str, ...], what: str) -> str:
        """One of the words known; `what` they are, for the message."""
        text = self.raw().text
        if text not in known:
            raise InvalidValue(f"{quoted(text)} is not {what}", hint=did_you_mean(text, known))
        return text

    def name(self, parse: Callable[[str], T]) -> T:
        """A text with a rule of its own; what YAML takes for a number is refused first."""
        return parse(self.text())

    def whole_number(self, least: int, most: int) -> int:
        scalar = self.raw()
        if not scalar.plain:
            raise InvalidValue(
                f"{quoted(scalar.text)} is in quotes, but a number is expected",
                hint=f"write {scalar.text[:20]}" if scalar.text.isdecimal() else "write a number",
            )
        return quantities.whole_number(scalar.text, least=least, most=most)

    def true_or_false(self) -> bool:
        scalar = self.raw()
        if scalar.plain and scalar.text in {"true", "false"}:
            return scalar.text == "true"
        meant = {"yes": "true", "on": "true", "1": "true", "no": "false", "off": "false",
                 "0": "false"}.get(scalar.text.lower(), scalar.text.lower())  # fmt: skip
        quotes = "" if scalar.plain else " without quotes"
        hint = f"write {meant}{quotes}" if meant in {"true", "false"} else "write true or false"
        raise InvalidValue(f"{quoted(scalar.text)} is neither true nor false", hint=hint)

    def choice(
        self, kind: type[E], also: Mapping[str, E] | None = None, without: Collection[E] = ()
    ) -> E:
        """A member of the enumeration. `also`: what other programs call them, for the hint."""
        other = (also or {}).get(self.raw().text.lower())
        if other is not None:
            raise InvalidValue(
                f"{quoted(self.raw().text)} is what others call it", hint=f"write {other.value}"
            )
        known = tuple(member.value for member in kind if member not in without)
        return kind(self.word(known, "a value of this key"))

    # Lists and mappings

    def items(self, example: str) -> "tuple[Cursor, ...]":
        self._check_trap()
        if not isinstance(self.node, yaml_nodes.Sequence):
            self._not(f"write a list, like {example}")
        return tuple(
            Cursor(node=item, path=f"{self.path}[{index}]", report=self.report)
            for index, item in enumerate(self.node.items)
        )

    def each(self, parse: "Callable[[Cursor], T]", example: str) -> tuple[T, ...]:
        """Every item by `parse`; every bad one is reported at its own place."""
        results, bad = [], False
        for item in self.items(example):
            try:
                results.append(parse(item))
            except InvalidValue as wrong:
                item.report_wrong(wrong)
                bad = True
        if bad:
            raise Reported("")
        return tuple(results)

    def entries(self) -> "tuple[tuple[str, Location, Cursor], ...]":
        """Key, place of the key, and value, for every usable key; the others are reported."""
        self._check_trap()
        if not isinstance(self.node, yaml_nodes.Mapping):
            self._not("write KEY: VALUE, one a line")
        first: dict[str, int] = {}
        result = []
        for key, value in self.node.entries:
            where = Cursor(key, self.path, self.report)
            if isinstance(key, Scalar) and key.plain and key.text == "<<":
                where.wrong("a merge key (<<)", "write the keys out, or put them under defaults")
                continue
            try:
                if not isinstance(key, Scalar):
                    raise InvalidValue("a list or a mapping as a key", hint="a key is a text")
                if key.nothing:
                    raise InvalidValue("a key without a name", hint="write KEY: VALUE")
                name = where.text()
            except InvalidValue as wrong:
                where.report_wrong(wrong)
                continue
            path = f"{self.path}.{name}"[:200] if self.path else name[:200]
            place = Location(key.line, key.column, path)
            if name in first:
                self.report.add(
                    place,
                    f"{quoted(name)} stands here twice",
                    f"it is in line {first[name]} already: remove one",
                )
                continue
            first[name] = key.line
            node = value
            if isinstance(value, Scalar) and value.plain and not value.text:
                # The parser puts a value that is not there behind the next line's indentation.
                node = value._replace(line=key.line, column=key.column)
            result.append((name, place, Cursor(node, path, self.report)))
        return tuple(result)

    def keys(self, known: tuple[str, ...]) -> "dict[str, Cursor]":
        """The values by key; unknown keys are reported."""
        result = {}
        for name, place, cursor in self.entries():
            if name in known:
                result[name] = cursor
            else:
                self.report.add(place, "unknown key", did_you_mean(name, known))
        return result

    def report_wrong(self, wrong: InvalidValue) -> None:
        if not isinstance(wrong, Reported):
            self.wrong(wrong.message if self.path else f"the file {wrong.message}", wrong.hint)

    def _check_trap(self) -> None:
        trap = self.node.trap
        if trap is not None:
            self.wrong(trap.message, trap.hint)
            if isinstance(self.node, Scalar):  # inside a list or a mapping there is more to read
                raise Reported("")

    def _not(self, expected: str) -> NoReturn:
        match self.node:
            case Scalar(nothing=True):
                raise InvalidValue("has no value", hint=expected)
            case Scalar(text=text):
                raise InvalidValue(f"{quoted(text)} is one value", hint=expected)
            case yaml_nodes.Sequence():
                raise InvalidValue("is a list", hint=expected)
            case yaml_nodes.Mapping():
                raise InvalidValue("is a mapping", hint=expected)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fields:
    """The keys of a mapping, and behind them those of the same mapping under `defaults`."""

    own: Mapping[str, Cursor]
    inherited: Mapping[str, Cursor] = field(default_factory=dict)

    def read(self, key: str, parse: Callable[[Cursor], T], default: T) -> Value[T]:
        cursor = self.own.get(key)
        inherited = cursor is None
        if cursor is None:
            cursor = self.inherited.get(key)
            if cursor is None:
                return Value(default)
        try:
            return Value(parse(cursor), cursor.place, inherited)
        except InvalidValue as wrong:
            cursor.report_wrong(wrong)
            return Value(value=default, place=cursor.place, inherited=inherited, bad=True)


def keys_of(cursor: Cursor | None, known: tuple[str, ...]) -> dict[str, Cursor]:
    """The keys of a mapping that may be left out; one that is no mapping is reported and empty."""
    if cursor is None:
        return {}
    try:
        return cursor.keys(known)
    except InvalidValue as wrong:
        cursor.report_wrong(wrong)
        return {}
