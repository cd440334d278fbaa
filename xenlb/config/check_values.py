"""Values of the keys that belong to a type of check.

No text of these keys can bring a line break into a session with a server. Only `send` names bytes.
"""

import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from xenlb.config import yaml_nodes
from xenlb.config.config_node import AlreadyReported, ConfigNode
from xenlb.config.host_requirements import RequirementKind
from xenlb.config.invalid_value import InvalidValue
from xenlb.config.keys import (
    BOOLEAN,
    PERCENT,
    ConfigValue,
    KeyLayers,
    Schema,
    ValueKind,
    key,
    key_names,
    plain_values,
    word,
)
from xenlb.model.checks import Codes, Share, Tls
from xenlb.untrusted.printable import quoted

_METHODS: Final = ("GET", "HEAD", "OPTIONS", "POST")
_RECORDS: Final = ("A", "AAAA", "CAA", "CNAME", "MX", "NS", "PTR", "SOA", "SRV", "TXT")

LONGEST_TEXT: Final = 1000
LONGEST_PATTERN: Final = 500
MOST_WORDS: Final = 64  # of a command
MOST_CODES: Final = 32

HOST_NAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?")
_HTTP_HOST = re.compile(r"([A-Za-z0-9_.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(:[0-9]{1,5})?")
_HTTP_PATH = re.compile(r'/[!-"$-~]*')
_HEADER = re.compile(r"([A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}):\s*(\S.*)")
_HELLO = re.compile(r"[A-Za-z0-9_.-]{1,255}|\[[0-9A-Za-z:.]{2,50}\]")
_DNS_NAME = re.compile(r"\.|[A-Za-z0-9_*/-]{1,63}(\.[A-Za-z0-9_*/-]{1,63})*\.?")
_CODE = re.compile(r"([0-9]{3})(?:-([0-9]{3}))?")
_USER = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,30}\$?")
_ESCAPE = re.compile(r"\\(?:x([0-9A-Fa-f]{2})|(.?))", re.DOTALL)
_ESCAPES: Final = {"r": "\r", "n": "\n", "t": "\t", "\\": "\\"}


# Texts


def _string(most: int = LONGEST_TEXT, **more: Any) -> Schema:
    return {"type": "string", "minLength": 1, "maxLength": most, **more}


def _bounded(text: str, most: int) -> str:
    if len(text) > most:
        raise InvalidValue(f"{quoted(text)} is {len(text)} characters long", hint=f"at most {most}")
    return text


def _matching(
    pattern: re.Pattern[str], what: str, hint: str, schema: Schema, most: int = LONGEST_TEXT
) -> ValueKind[str]:
    def parse(node: ConfigNode) -> str:
        text = node.text()
        if not pattern.fullmatch(_bounded(text, LONGEST_TEXT)):
            raise InvalidValue(f"{quoted(text)} is not {what}", hint=hint)
        return _bounded(text, most)

    return ValueKind(parse, schema)


_HOST_CHARACTERS: Final = r"^[A-Za-z0-9_.:\[\]-]+$"
_TLS_NAME: Final = _matching(
    HOST_NAME,
    "a name of a certificate",
    "write one like www.example.org",
    {"type": "string", "pattern": "^[A-Za-z0-9_][A-Za-z0-9_.-]*$"},
)
HOST: Final = _matching(
    _HTTP_HOST,
    "a host",
    "write one like www.example.org or www.example.org:8080",
    _string(pattern=_HOST_CHARACTERS),
)
PATH: Final = _matching(
    _HTTP_PATH,
    "a path for a request",
    "begin it with /, and write blanks, # and letters beyond ASCII as %20, %23, %C3%A4",
    _string(pattern=f"^{_HTTP_PATH.pattern}$"),
)
EHLO_NAME: Final = _matching(
    _HELLO,
    "a name for EHLO",
    "write one like director.example.org",
    _string(255, pattern=_HOST_CHARACTERS),
)
_USER_NAME: Final = _matching(_USER, "a user of this host", "write a name like nobody", _string(63))
_ABSOLUTE_PATH: Final = _matching(
    re.compile("/.*"), "an absolute path", "begin it with /", {"type": "string", "pattern": "^/"}
)
QUERY: Final = _matching(
    _DNS_NAME,
    "a name of the DNS",
    "write one like www.example.org, others as xn--…",
    _string(253, pattern=r"^(\.|[A-Za-z0-9_*/.-]+)$"),
    most=253,
)
LOCAL_USER: Final = ValueKind(
    lambda node: node.require(RequirementKind.USER, _USER_NAME(node)), _USER_NAME.schema
)
_CA_FILE: Final = ValueKind(
    lambda node: node.require(RequirementKind.FILE, _ABSOLUTE_PATH(node)), _ABSOLUTE_PATH.schema
)
ACCOUNT: Final = ValueKind(lambda node: _bounded(node.text(), 63), _string(63))
# As a zone file has it: 10.0.0.1, or 10 mail.example.org. for an MX.
RECORD_DATA: Final = ValueKind(lambda node: _bounded(node.parsed(str), 255), {})


def _compiled(text: str) -> str:
    _bounded(text, LONGEST_PATTERN)
    try:
        with warnings.catch_warnings():
            # A pattern that a later Python reads differently is refused today.
            warnings.simplefilter("error")
            re.compile(text)
    except (re.error, OverflowError, RecursionError, Warning) as error:
        reason = str(error) or "it is too deep"
        raise InvalidValue(
            f"{quoted(text)} is not a regular expression: {reason[:80]}",
            hint=r"write \ before a character that is meant as it is: \( \[ \* \? \.",
        ) from None
    return text


def _header(node: ConfigNode) -> tuple[str, str]:
    text = node.text()
    match = _HEADER.fullmatch(text)
    if match is None:
        raise InvalidValue(
            f"{quoted(text)} is not a header and a pattern",
            hint="write 'NAME: PATTERN', like 'Content-Type: ^text/html'",
        )
    return match[1], _compiled(match[2])


def _sent(node: ConfigNode) -> str:
    r"""Bytes, each as the character of its number: ASCII, and other bytes as \xHH."""
    text = _bounded(node.text_scalar().text, LONGEST_TEXT)
    if not text:
        raise InvalidValue("is an empty text", hint="remove the key: nothing is sent then")
    if not text.isascii():
        raise InvalidValue(f"{quoted(text)} is not ASCII", hint=r"write other bytes as \xHH")

    def byte(match: re.Match[str]) -> str:
        if match[1] is not None:
            return chr(int(match[1], 16))
        if match[2] not in _ESCAPES:
            raise InvalidValue(
                f"{quoted(match[0])} is not an escape that send knows",
                hint=r"write \r, \n, \t, \\ or \xHH",
            )
        return _ESCAPES[match[2]]

    return _ESCAPE.sub(byte, text)


PATTERN_SCHEMA: Final = _string(LONGEST_PATTERN)
PATTERN: Final = ValueKind(lambda node: _compiled(node.text()), PATTERN_SCHEMA)
EXPECT_PATTERN: Final = ValueKind(PATTERN.parse, {})

# Numbers


def _codes(least: int, most: int) -> Callable[[ConfigNode], Codes]:
    def code(item: ConfigNode) -> tuple[int, int]:
        text = item.parsed(str)
        match = _CODE.fullmatch(text)
        if match is None:
            raise InvalidValue(f"{quoted(text)} is not a code", hint="write 200, or 200-399")
        low, high = int(match[1]), int(match[2] or match[1])
        if not least <= low <= high <= most:
            raise InvalidValue(
                f"{text} is out of range", hint=f"{least} … {most}, the lower one first"
            )
        return low, high

    def codes(node: ConfigNode) -> Codes:
        if not isinstance(node.node, yaml_nodes.Sequence):
            return (code(node),)
        ranges = node.parsed_items(code, "[200, 301-308]")
        if not ranges or len(ranges) > MOST_CODES:
            raise InvalidValue(
                f"has {len(ranges)} codes", hint=f"write 1 … {MOST_CODES}, or remove it"
            )
        return ranges

    return codes


_CODE_REF: Final = {"$ref": "#/$defs/code"}
CODES_SCHEMA: Final = {
    "oneOf": [
        _CODE_REF,
        {"type": "array", "minItems": 1, "maxItems": MOST_CODES, "items": _CODE_REF},
    ]
}

# Mappings and lists


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsDraft:
    """The keys of `tls` and `starttls`."""

    name: ConfigValue[str | None] = key(
        _TLS_NAME,
        None,
        "Sent (SNI), and the certificate must be for it. Default with https: that of host.",
    )
    verify: ConfigValue[bool] = key(BOOLEAN, True, "false: every certificate is accepted.")
    ca_file: ConfigValue[str | None] = key(
        _CA_FILE, None, "The trusted certificate authorities. Default: those of this host."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightDraft:
    """The keys of `weight`: bounds for the share that a server reports."""

    least: ConfigValue[float] = key(PERCENT, 0.0, "")
    most: ConfigValue[float] = key(PERCENT, 1.0, "")


def _tls(node: ConfigNode) -> Tls | None:
    if not isinstance(node.node, yaml_nodes.Mapping):
        return Tls() if node.boolean() else None
    layers = KeyLayers(own=node.values_by_key(key_names(TlsDraft)))
    tls = layers.read_keys(TlsDraft)
    if tls.name.bad or tls.verify.bad or tls.ca_file.bad:
        raise AlreadyReported
    if tls.ca_file.given and not tls.verify.value:
        layers.own["ca-file"].add_problem(
            "ca-file has no effect with verify: false", "remove one of them"
        )
    return Tls(**plain_values(tls))


def _tls_always(node: ConfigNode) -> Tls:
    tls = _tls(node)
    if tls is None:
        raise InvalidValue(
            "this type of check has TLS always", hint="remove it, or use http or tcp"
        )
    return tls


def _share(node: ConfigNode) -> Share:
    layers = KeyLayers(own=node.values_by_key(key_names(WeightDraft)))
    bounds = layers.read_keys(WeightDraft)
    if bounds.least.bad or bounds.most.bad:
        raise AlreadyReported
    if bounds.least.value > bounds.most.value:
        raise InvalidValue("least is more than most", hint="write the smaller share as least")
    return Share(**plain_values(bounds))


def _command(node: ConfigNode) -> tuple[str, ...]:
    if isinstance(node.node, yaml_nodes.Scalar) and not node.node.nothing:
        text = node.parsed(str)
        raise InvalidValue(
            f"{quoted(text)} would need a shell, and there is none",
            hint=f"write {_as_yaml_list(text)}",
        )
    words = node.parsed_items(
        lambda item: _bounded(item.text(), LONGEST_TEXT), "[/usr/lib/check, -v]"
    )
    if not words or len(words) > MOST_WORDS:
        raise InvalidValue(
            f"has {len(words)} words", hint=f"write the program and its arguments, 1 … {MOST_WORDS}"
        )
    if not words[0].startswith("/"):
        raise InvalidValue(
            f"{quoted(words[0])} is not an absolute path",
            hint="write where the program is, like /usr/lib/nagios/plugins/check_ssh",
        )
    node.items("")[0].require(RequirementKind.PROGRAM, words[0])
    return words


def _as_yaml_list(text: str) -> str:
    words = [
        word if re.fullmatch(r"[A-Za-z/-][A-Za-z0-9/_.-]*", word) else f"'{word}'"
        for word in text[:80].split()
    ]
    return f"[{', '.join(words)}]"


COMMAND: Final = ValueKind(
    _command,
    {
        "type": "array",
        "minItems": 1,
        "maxItems": MOST_WORDS,
        "prefixItems": [_ABSOLUTE_PATH.schema],
        "items": _string(),
    },
)

METHOD: Final = word(_METHODS, "a method that a check may use")
RECORD: Final = word(_RECORDS, "a type of DNS record that a check may query")
STATUS: Final = ValueKind(_codes(100, 599), CODES_SCHEMA)
EHLO_CODES: Final = ValueKind(_codes(200, 599), {})
HEADER: Final = ValueKind(_header, _string(pattern=r"^[^:\s]+:\s*\S"))
SEND: Final = ValueKind(_sent, _string())
_TLS_SCHEMA: Final = {"$ref": "#/$defs/tls"}
TLS: Final = ValueKind(_tls, _TLS_SCHEMA)
TLS_ALWAYS: Final = ValueKind(_tls_always, _TLS_SCHEMA)
SHARE: Final = ValueKind(_share, {"$ref": "#/$defs/share"})
