"""The types of checks: the keys that each has besides the common ones, and what these may say.

Here is one key at a time, and what becomes of them (xenlb.model.checks). What a server is told must
not become something else on the way: no text of these keys can bring a line break into a session,
`send` alone says what bytes it wants.
"""

import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final, NamedTuple

from xenlb.config import quantities, scalars, yaml_nodes
from xenlb.config.cursor import Cursor, Fields, Reported
from xenlb.config.host_requirements import RequirementKind
from xenlb.config.invalid_value import InvalidValue, quoted
from xenlb.config.yaml_nodes import NodeKind
from xenlb.model.checks import (
    Agent,
    Asks,
    Codes,
    Dns,
    Exec,
    Http,
    Icmp,
    Imap,
    Ldap,
    Mysql,
    Pgsql,
    Pop3,
    Redis,
    Share,
    Smtp,
    Tcp,
    Tls,
    TlsHandshake,
    Udp,
)

TLS_KEYS: Final = ("name", "verify", "ca-file")
WEIGHT_KEYS: Final = ("least", "most")
METHODS: Final = ("GET", "HEAD", "OPTIONS", "POST")
RECORDS: Final = ("A", "AAAA", "CAA", "CNAME", "MX", "NS", "PTR", "SOA", "SRV", "TXT")

LONGEST_TEXT: Final = 1000
LONGEST_PATTERN: Final = 500
MOST_WORDS: Final = 64  # of a command
MOST_CODES: Final = 32

_TYPE_ELSEWHERE: Final = {
    **dict.fromkeys(("connect", "l4", "tcp-check"), "tcp"),
    **dict.fromkeys(("ssl", "ssl-hello"), "tls"),
    **dict.fromkeys(("ping", "icmp6", "icmpv6"), "icmp"),
    **dict.fromkeys(("script", "external", "program", "misc", "nagios"), "exec"),
    **dict.fromkeys(("postgres", "postgresql"), "pgsql"),
    **dict.fromkeys(("mariadb",), "mysql"),
    **dict.fromkeys(("imaps",), "imap, with tls: true"),
    **dict.fromkeys(("pop", "pop3s"), "pop3"),
    **dict.fromkeys(("ldaps",), "ldap, with tls: true"),
    **dict.fromkeys(("smtps",), "smtp, with tls: true"),
}

_HOST_NAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?")
_HTTP_HOST = re.compile(r"([A-Za-z0-9_.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(:[0-9]{1,5})?")
_HTTP_PATH = re.compile(r"/[!-\"$-~]*")
_HEADER = re.compile(r"([A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}):\s*(\S.*)")
_HELLO = re.compile(r"[A-Za-z0-9_.-]{1,255}|\[[0-9A-Za-z:.]{2,50}\]")
_DNS_NAME = re.compile(r"\.|[A-Za-z0-9_*/-]{1,63}(\.[A-Za-z0-9_*/-]{1,63})*\.?")
_CODE = re.compile(r"([0-9]{3})(?:-([0-9]{3}))?")
_USER = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,30}\$?")
_ESCAPE = re.compile(r"\\(?:x([0-9A-Fa-f]{2})|(.?))", re.DOTALL)
_ESCAPES: Final = {"r": "\r", "n": "\n", "t": "\t", "\\": "\\"}


class Key(NamedTuple):
    """A key of a type: the field of its class, and how its value is read."""

    field: str
    parse: Callable[[Cursor], Any]


class CheckType(NamedTuple):
    """`preset`: fields that are not what they are by default with another type of the class."""

    asks: type[Any]
    keys: Mapping[str, Key]
    preset: Mapping[str, Any] = {}


def type_of(cursor: Cursor) -> str:
    text = cursor.raw().text
    if text == "none":
        raise InvalidValue("'none' is not a type of check", hint="write check: none")
    meant = _TYPE_ELSEWHERE.get(text.lower())
    if meant is not None:
        raise InvalidValue(f"{quoted(text)} is what others call it", hint=f"write {meant}")
    return cursor.word(tuple(TYPES), "a type of check")


def made(kind: CheckType, told: Mapping[str, Any]) -> Asks:
    """What a check asks; `told` are the values of the keys that were given."""
    fields = {kind.keys[key].field: value for key, value in told.items()}
    asks: Asks = kind.asks(**{**kind.preset, **fields})
    return _named(asks) if isinstance(asks, Http) else asks


def _named(asks: Http) -> Http:
    """A server of several names has a certificate for each: it is asked for that of `host`."""
    if asks.tls is None or asks.tls.name is not None or asks.host is None:
        return asks
    name = re.sub(r":[0-9]+$", "", asks.host)
    if not _HOST_NAME.fullmatch(name) or re.fullmatch(r"[0-9.]+", name):
        return asks
    return replace(asks, tls=replace(asks.tls, name=name))


# Texts


def _bounded(text: str, most: int) -> str:
    if len(text) > most:
        raise InvalidValue(f"{quoted(text)} is {len(text)} characters long", hint=f"at most {most}")
    return text


def _matching(pattern: re.Pattern[str], what: str, hint: str) -> Callable[[Cursor], str]:
    def parse(text: str) -> str:
        if not pattern.fullmatch(_bounded(text, LONGEST_TEXT)):
            raise InvalidValue(f"{quoted(text)} is not {what}", hint=hint)
        return text

    return lambda cursor: cursor.name(parse)


_tls_name = _matching(_HOST_NAME, "a name of a certificate", "write one like www.example.org")
_host = _matching(_HTTP_HOST, "a host", "write one like www.example.org or www.example.org:8080")
_path = _matching(
    _HTTP_PATH,
    "a path for a request",
    "begin it with /, and write blanks, # and letters beyond ASCII as %20, %23, %C3%A4",
)
_hello = _matching(_HELLO, "a name for EHLO", "write one like director.example.org")
_user_name = _matching(_USER, "a user of this host", "write a name like nobody")
_absolute = _matching(re.compile("/.*"), "an absolute path", "begin it with /")


def _user(cursor: Cursor) -> str:
    return cursor.needed(RequirementKind.USER, _user_name(cursor))


def _query(cursor: Cursor) -> str:
    text = _matching(
        _DNS_NAME, "a name of the DNS", "write one like www.example.org, others as xn--…"
    )(cursor)
    return _bounded(text, 253)


def _account(cursor: Cursor) -> str:
    return _bounded(cursor.text(), 63)


def _record_data(cursor: Cursor) -> str:
    """What a zone file has there: 10.0.0.1, or 10 mail.example.org. for an MX."""
    return _bounded(scalars.plain_text(cursor.raw().text), 255)


def _pattern(cursor: Cursor) -> str:
    return _compiled(cursor.text())


def _compiled(text: str) -> str:
    _bounded(text, LONGEST_PATTERN)
    try:
        with warnings.catch_warnings():
            # What a later Python will take for something else is not written into a file today.
            warnings.simplefilter("error")
            re.compile(text)
    except (re.error, OverflowError, RecursionError, Warning) as error:
        said = str(error) or "it is too deep"
        raise InvalidValue(
            f"{quoted(text)} is not a regular expression: {said[:80]}",
            hint=r"write \ before a character that is meant as it is: \( \[ \* \? \.",
        ) from None
    return text


def _header(cursor: Cursor) -> tuple[str, str]:
    match = _HEADER.fullmatch(cursor.text())
    if match is None:
        raise InvalidValue(
            f"{quoted(cursor.text())} is not a header and a pattern",
            hint="write 'NAME: PATTERN', like 'Content-Type: ^text/html'",
        )
    return match[1], _compiled(match[2])


def _sent(cursor: Cursor) -> str:
    r"""Bytes, each as the character of its number: ASCII, and what is not as \xHH."""
    scalar = cursor.raw()
    if scalar.kind is not NodeKind.TEXT:
        raise InvalidValue(
            f"{scalar.text[:60]} is {scalar.kind} to YAML, not a text",
            hint=f"write it in quotes: '{scalar.text[:60]}'",
        )
    text = _bounded(scalar.text, LONGEST_TEXT)
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


def _method(cursor: Cursor) -> str:
    return cursor.word(METHODS, "a method that a check may use")


def _record(cursor: Cursor) -> str:
    return cursor.word(RECORDS, "a type of record that is asked for")


# Numbers


def _codes(least: int, most: int) -> Callable[[Cursor], Codes]:
    def code(item: Cursor) -> tuple[int, int]:
        text = scalars.plain_text(item.raw().text)
        match = _CODE.fullmatch(text)
        if match is None:
            raise InvalidValue(f"{quoted(text)} is not a code", hint="write 200, or 200-399")
        low, high = int(match[1]), int(match[2] or match[1])
        if not least <= low <= high <= most:
            raise InvalidValue(
                f"{text} is out of range", hint=f"{least} … {most}, the lower one first"
            )
        return low, high

    def codes(cursor: Cursor) -> Codes:
        if not isinstance(cursor.node, yaml_nodes.Sequence):
            return (code(cursor),)
        found = cursor.each(code, "[200, 301-308]")
        if not found or len(found) > MOST_CODES:
            raise InvalidValue(
                f"has {len(found)} codes", hint=f"write 1 … {MOST_CODES}, or remove it"
            )
        return found

    return codes


_status = _codes(100, 599)
_smtp_codes = _codes(200, 599)


# Mappings and lists


def _tls(cursor: Cursor) -> Tls | None:
    if not isinstance(cursor.node, yaml_nodes.Mapping):
        return Tls() if cursor.true_or_false() else None
    fields = Fields(own=cursor.keys(TLS_KEYS))
    name = fields.read("name", _tls_name, None)
    verify = fields.read("verify", Cursor.true_or_false, True)
    ca_file = fields.read("ca-file", lambda c: c.needed(RequirementKind.FILE, _absolute(c)), None)
    if name.bad or verify.bad or ca_file.bad:
        raise Reported("")
    if ca_file.given and not verify.value:
        fields.own["ca-file"].wrong(
            "nobody is asked for trust with verify: false", "remove one of them"
        )
    return Tls(name=name.value, verify=verify.value, ca_file=ca_file.value)


def _tls_always(cursor: Cursor) -> Tls:
    tls = _tls(cursor)
    if tls is None:
        raise InvalidValue(
            "this type of check has TLS always", hint="remove it, or use http or tcp"
        )
    return tls


def _weight(cursor: Cursor) -> Share:
    fields = Fields(own=cursor.keys(WEIGHT_KEYS))
    least = fields.read("least", lambda c: c.parsed(quantities.percent), 0.0)
    most = fields.read("most", lambda c: c.parsed(quantities.percent), 1.0)
    if least.bad or most.bad:
        raise Reported("")
    if least.value > most.value:
        raise InvalidValue("least is more than most", hint="write the smaller share as least")
    return Share(least=least.value, most=most.value)


def _command(cursor: Cursor) -> tuple[str, ...]:
    if isinstance(cursor.node, yaml_nodes.Scalar) and not cursor.node.nothing:
        text = scalars.plain_text(cursor.raw().text)
        raise InvalidValue(
            f"{quoted(text)} would need a shell, and there is none", hint=f"write {_listed(text)}"
        )
    words = cursor.each(lambda item: _bounded(item.text(), LONGEST_TEXT), "[/usr/lib/check, -v]")
    if not words or len(words) > MOST_WORDS:
        raise InvalidValue(
            f"has {len(words)} words", hint=f"write the program and its arguments, 1 … {MOST_WORDS}"
        )
    if not words[0].startswith("/"):
        raise InvalidValue(
            f"{quoted(words[0])} is not an absolute path",
            hint="write where the program is, like /usr/lib/nagios/plugins/check_ssh",
        )
    cursor.items("")[0].needed(RequirementKind.PROGRAM, words[0])
    return words


def _listed(text: str) -> str:
    words = [
        word if re.fullmatch(r"[A-Za-z/-][A-Za-z0-9/_.-]*", word) else f"'{word}'"
        for word in text[:80].split()
    ]
    return f"[{', '.join(words)}]"


# Types

_TLS: Final = {"tls": Key("tls", _tls)}
_STARTTLS: Final = {**_TLS, "starttls": Key("starttls", _tls)}
_SEND: Final = {"send": Key("send", _sent)}
_SEND_EXPECT: Final = {**_SEND, "expect": Key("expect", _pattern)}
_HTTP: Final = {
    "method": Key("method", _method),
    "path": Key("path", _path),
    "host": Key("host", _host),
    "status": Key("status", _status),
    "header": Key("header", _header),
    "body": Key("body", _pattern),
}
_WEIGHT: Final = {"weight": Key("share", _weight)}

TYPES: Final[Mapping[str, CheckType]] = {
    "tcp": CheckType(Tcp, _SEND_EXPECT),
    "tls": CheckType(TlsHandshake, {"tls": Key("tls", _tls_always)}),
    "http": CheckType(Http, _HTTP),
    "https": CheckType(Http, {**_HTTP, "tls": Key("tls", _tls_always)}, {"tls": Tls()}),
    "smtp": CheckType(
        Smtp,
        {"hello": Key("hello", _hello), "expect": Key("expect", _smtp_codes), **_STARTTLS},
    ),
    "imap": CheckType(Imap, _STARTTLS),
    "pop3": CheckType(Pop3, _STARTTLS),
    "ldap": CheckType(Ldap, _TLS),
    "mysql": CheckType(Mysql, {"user": Key("user", _account)}),
    "pgsql": CheckType(
        Pgsql, {"user": Key("user", _account), "database": Key("database", _account)}
    ),
    "redis": CheckType(Redis, _TLS),
    "dns": CheckType(
        Dns,
        {
            "query": Key("query", _query),
            "record": Key("record", _record),
            "expect": Key("expect", _record_data),
            "recursive": Key("recursive", Cursor.true_or_false),
        },
    ),
    "udp": CheckType(Udp, _SEND_EXPECT),
    "icmp": CheckType(Icmp, {}),
    "exec": CheckType(
        Exec, {"command": Key("command", _command), "user": Key("user", _user), **_WEIGHT}
    ),
    "agent": CheckType(Agent, {**_SEND, **_WEIGHT}),
}
TYPE_KEYS: Final = tuple(dict.fromkeys(key for kind in TYPES.values() for key in kind.keys))
