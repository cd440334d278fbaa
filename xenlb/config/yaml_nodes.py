"""Parse YAML text into a tree of nodes with lines and columns, or report its syntax errors.

The tree is built from the parser's events, not from constructed values. So texts such as 010, on
and 22:30 are not converted, every node has its place, and depth and size are bounded.
"""

import re
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Final, NamedTuple

import yaml

from xenlb.model.problem import ConfigError, Problem

Loader = type[yaml.SafeLoader] | type[yaml.CSafeLoader]
# libyaml where PyYAML was built with it
LOADER: Final[Loader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

# A configuration of 1,000 services with 10 servers each has about 0.6 MB and 100,000 nodes.
LARGEST_FILE: Final = 8 * 1024 * 1024
MOST_NODES: Final = 1_000_000
DEEPEST: Final = 32
_TOO_DEEP: Final = (f"nested deeper than {DEEPEST} levels", "flatten it")


class NodeKind(StrEnum):
    """What YAML 1.1 or 1.2 may read a plain scalar as."""

    TEXT = "a text"
    NOTHING = "nothing"
    TRUTH = "a truth value"
    NUMBER = "a number"
    DATE = "a date"


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedPart:
    """A construct of YAML that is refused everywhere: an anchor, an alias, a tag."""

    message: str
    hint: str


# Tuples: a large file has 50,000 nodes, and creating a frozen dataclass takes three times as long.


class Scalar(NamedTuple):
    """A single value. `plain`: without quotes. Line and column count from 1."""

    line: int
    column: int
    text: str
    plain: bool
    refused: RefusedPart | None = None

    @property
    def kind(self) -> NodeKind:
        """What YAML may read the value as; TEXT if it is quoted."""
        return _kind(self.text) if self.plain else NodeKind.TEXT

    @property
    def nothing(self) -> bool:
        """Whether the kind is NOTHING."""
        return self.plain and self.text in _NOTHING


class Sequence(NamedTuple):
    """A list with its items in file order. Line and column count from 1."""

    line: int
    column: int
    items: "tuple[Node, ...]"
    refused: RefusedPart | None = None


class Mapping(NamedTuple):
    """`entries` are in file order; keys may repeat."""

    line: int
    column: int
    entries: "tuple[tuple[Node, Node], ...]"
    refused: RefusedPart | None = None


Node = Scalar | Sequence | Mapping

_NOTHING: Final = ("", "~", "null", "Null", "NULL")
_KINDS: Final = (
    (NodeKind.NOTHING, re.compile("|".join(_NOTHING[1:]) + "|")),
    (
        NodeKind.TRUTH,
        re.compile(
            "|".join(
                form
                for word in ("true", "false", "yes", "no", "on", "off")
                for form in (word, word.capitalize(), word.upper())
            )
        ),
    ),
    (
        NodeKind.NUMBER,
        re.compile(
            r"[-+]?(0x[0-9a-fA-F_]+|0o[0-7]+|0b[01_]+|[0-9][0-9_]*(:[0-5]?[0-9])*(\.[0-9_]*)?"
            r"|\.[0-9][0-9_]*|[0-9]*\.?[0-9]+[eE][-+]?[0-9]+|[0-9]+\.[eE][-+]?[0-9]+"
            r"|\.(inf|Inf|INF))|\.(nan|NaN|NAN)"
        ),
    ),
    (NodeKind.DATE, re.compile(r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}([Tt ].*)?")),
)


@lru_cache(maxsize=1024)
def _kind(text: str) -> NodeKind:
    for kind, pattern in _KINDS:
        if pattern.fullmatch(text):
            return kind
    return NodeKind.TEXT


_BREAK = re.compile(r"\r\n|[\n\r\x85\u2028\u2029]")
# Two patterns: the second takes long to compile.
_NOT_YAML_ASCII = r"[^\t\n\r\x20-\x7e]"
_NOT_YAML = r"[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]"
_SURROGATE = re.compile(r"[\ud800-\udfff]")  # from an escape; libyaml refuses it itself
_LEADING_TAB = re.compile(r"^ *\t[\t ]*(?=[^\s#])", re.MULTILINE)

# libyaml's message → hint. The first fragment contained in «context: problem» counts.
_HINTS: Final = (
    ("while scanning an alias", "a text that begins with * goes into quotes: '*mail'"),
    ("while scanning an anchor", "a text that begins with & goes into quotes"),
    ("cannot start any token", "a text that begins with % @ ` or a tab goes into quotes"),
    ("mapping values are not allowed", "one KEY: VALUE a line; a text with ': ' goes into quotes"),
    ("while scanning a quoted scalar", "close the quotes"),
    ("while parsing a flow sequence", "a list is written [25, 465]; close the bracket"),
    ("while parsing a flow mapping", "a mapping is written {type: tcp}; close the brace"),
    ("could not find expected ':'", "write KEY: VALUE"),
    ("while parsing a block", "put the keys of one mapping below each other, at the same depth"),
    ("block sequence entries are not allowed", "begin the list on a line of its own"),
)


class _Unusable(Exception):
    """The text is not usable as YAML."""

    def __init__(self, line: int, column: int, message: str, hint: str) -> None:
        super().__init__(message)
        self.position = line, column
        self.message = message
        self.hint = hint


def decode(data: bytes, file: str) -> str:
    """The bytes of a file as text. Raises ConfigError."""
    if len(data) > LARGEST_FILE:
        raise _error(file, 1, 1, "the file is larger than 8 MiB", "is it a configuration?")
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise _error(file, 1, 1, "the file is UTF-16", "save it as UTF-8")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line, column = _position(data[: error.start].decode(), error.start)
        raise _error(
            file,
            line,
            column,
            f"byte 0x{data[error.start]:02x} is not UTF-8",
            "save the file as UTF-8",
        ) from None


def compose(text: str, file: str, *, loader: Loader = LOADER) -> Node:
    """The tree of the text's only document. Raises ConfigError."""
    if text.startswith("\ufeff"):
        raise _error(
            file, 1, 1, "the file begins with a byte order mark", "save it as UTF-8 without BOM"
        )
    if len(text) > LARGEST_FILE:
        raise _error(file, 1, 1, "the file is larger than 8 MiB", "is it a configuration?")
    if match := re.search(_NOT_YAML_ASCII if text.isascii() else _NOT_YAML, text):
        line, column = _position(text, match.start())
        raise _error(file, line, column, f"character {_name(match[0])}", "remove it")
    if tabs := list(_LEADING_TAB.finditer(text)):
        raise ConfigError(
            tuple(
                _problem(file, line, column, "a tab in the indentation", "indent with spaces")
                for line, column in (_position(text, tab.end() - 1) for tab in tabs[:100])
            )
        )
    try:
        return _build(text, loader)
    except _Unusable as refused:
        raise _error(file, *refused.position, refused.message, refused.hint) from None
    except yaml.MarkedYAMLError as error:
        raise ConfigError((_syntax(error, file, text),)) from None
    except (yaml.YAMLError, ValueError, OverflowError):
        # PyYAML's own parser raises these for absurd escapes and directives.
        raise _error(file, 1, 1, "is not YAML", "look for \\u escapes and % directives") from None


def _build(text: str, loader: Loader) -> Node:
    # Performance: event types are tested in the order of their frequency.
    open_nodes: list[tuple[yaml.CollectionStartEvent, list[Node]]] = []
    siblings: list[Node] = []  # of the innermost open node; at the top level, the root
    documents = count = 0
    node: Node
    for event in yaml.parse(text, Loader=loader):
        mark = event.start_mark
        assert mark is not None
        if isinstance(event, yaml.ScalarEvent):
            value = event.value
            line, column = mark.line + 1, mark.column + 1
            if not value.isascii() and _SURROGATE.search(value):
                raise _Unusable(line, column, "half a character (\\ud800 …)", "remove it")
            plain = bool(event.implicit[0]) and not event.style
            node = Scalar(line, column, value, plain, _refused_part(event))
        elif isinstance(event, yaml.CollectionStartEvent):
            if len(open_nodes) >= DEEPEST:
                raise _Unusable(
                    mark.line + 1,
                    mark.column + 1,
                    *_TOO_DEEP,
                )
            open_nodes.append((event, siblings))
            siblings = []
            continue
        elif isinstance(event, yaml.CollectionEndEvent):
            start, outer = open_nodes.pop()
            mark = start.start_mark
            assert mark is not None
            line, column = mark.line + 1, mark.column + 1
            if isinstance(event, yaml.MappingEndEvent):
                pairs = tuple(zip(siblings[::2], siblings[1::2], strict=True))
                node = Mapping(line, column, pairs, _refused_part(start))
            else:
                node = Sequence(line, column, tuple(siblings), _refused_part(start))
            siblings = outer
        elif isinstance(event, yaml.AliasEvent):
            line, column = mark.line + 1, mark.column + 1
            node = Scalar(line, column, "", plain=False, refused=_alias(event))
        else:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise _Unusable(
                        mark.line + 1,
                        mark.column + 1,
                        "a second document begins",
                        "one file holds one: remove ---",
                    )
            continue
        count += 1
        if count > MOST_NODES:
            raise _Unusable(line, column, "more than a million values", "is it a configuration?")
        siblings.append(node)
    if not siblings:
        raise _Unusable(1, 1, "the file is empty", "it needs at least: services: {}")
    return siblings[0]


def _refused_part(
    event: yaml.ScalarEvent | yaml.CollectionStartEvent,
) -> RefusedPart | None:
    if event.anchor is not None:
        return RefusedPart(
            message=f"an anchor (&{event.anchor[:40]})",
            hint="write the value out, or put it under defaults",
        )
    if event.tag is not None:
        return RefusedPart(message=f"a tag ({event.tag[:60]})", hint="write the value without !")
    return None


def _alias(event: yaml.AliasEvent) -> RefusedPart:
    name = f"*{(event.anchor or '')[:40]}"
    return RefusedPart(
        message=f"an alias ({name})",
        hint=f"write the value out; a text that begins with * goes into quotes: '{name}'",
    )


def _syntax(error: yaml.MarkedYAMLError, file: str, text: str) -> Problem:
    mark = error.problem_mark or error.context_mark
    line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
    reason = f"{error.context or ''}: {error.problem or ''}"
    hint = next((hint for words, hint in _HINTS if words in reason), "see yaml.org")
    if "nesting depth" in reason:  # PyYAML's own limit, since 6.0.4, is reached before ours
        return _problem(file, line, column, *_TOO_DEEP)
    lines = _BREAK.split(text)
    if line <= len(lines) and re.search(r":\s+\[[0-9a-fA-F:.]+\]:[0-9]", lines[line - 1]):
        hint = "an IPv6 address with a port goes into quotes: '[2001:db8::99]:25'"
    if (keyless := _without_colon(reason, lines, line)) is not None:
        number, key = keyless
        indent = len(lines[number - 1]) - len(lines[number - 1].lstrip())
        return _problem(
            file, number, indent + 1, f"no colon follows the key '{key[:60]}'", f"write {key[:60]}:"
        )
    message = f"not valid YAML: {error.problem or 'cannot be read'}"
    if error.context and error.context_mark and error.context_mark.line + 1 != line:
        message += f" {error.context} that begins in line {error.context_mark.line + 1}"
    return _problem(file, line, column, message, hint)


_NO_COLON: Final = (
    "mapping values are not allowed",
    "could not find expected ':'",
    "did not find expected key",
    "expected <block end>",
)


def _without_colon(reason: str, lines: list[str], line: int) -> tuple[int, str] | None:
    """The line and key without a colon; YAML notices it only in the next line."""
    if not any(words in reason for words in _NO_COLON):
        return None
    for number in range(min(line, len(lines)) - 1, 0, -1):
        text = lines[number - 1].partition(" #")[0].strip()
        if text and not text.startswith("#"):
            return (number, text) if re.fullmatch(r"[a-z][a-z0-9-]*", text) else None
    return None


def _name(character: str) -> str:
    return f"U+{ord(character):04X} is not allowed in YAML"


def _position(text: str, offset: int) -> tuple[int, int]:
    """Line and column, from 1, of the character at the offset, or of the end of the text."""
    line, start = 1, 0
    for match in _BREAK.finditer(text, 0, min(offset, len(text))):
        line, start = line + 1, match.end()
    return line, min(offset, len(text)) - start + 1


def _problem(file: str, line: int, column: int, message: str, hint: str) -> Problem:
    return Problem(file=file, line=line, column=column, path="", message=message, hint=hint)


def _error(file: str, line: int, column: int, message: str, hint: str) -> ConfigError:
    return ConfigError((_problem(file, line, column, message, hint),))
