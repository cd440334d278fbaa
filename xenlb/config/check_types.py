"""The types of checks: the keys of each type besides the common ones."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final, NamedTuple

from xenlb.config.check_values import (
    ACCOUNT,
    CODES_SCHEMA,
    COMMAND,
    EHLO_CODES,
    EHLO_NAME,
    EXPECT_PATTERN,
    HEADER,
    HOST,
    HOST_NAME,
    LOCAL_USER,
    METHOD,
    PATH,
    PATTERN,
    PATTERN_SCHEMA,
    QUERY,
    RECORD,
    RECORD_DATA,
    SEND,
    SHARE,
    STATUS,
    TLS,
    TLS_ALWAYS,
)
from xenlb.config.config_node import ConfigNode
from xenlb.config.invalid_value import InvalidValue
from xenlb.config.keys import BOOLEAN, ValueKind
from xenlb.model.checks import (
    Agent,
    Asks,
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
    Smtp,
    Tcp,
    Tls,
    TlsHandshake,
    Udp,
)
from xenlb.untrusted.printable import quoted

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


class TypeKey(NamedTuple):
    """A key of a type of check: the field of its class and the kind of its value.

    `narrower`: what the schema accepts for this type only.
    """

    field: str
    kind: ValueKind[Any]
    narrower: Mapping[str, Any] = {}


class CheckType(NamedTuple):
    """`preset`: values of fields that differ from the class's defaults."""

    asks: type[Any]
    keys: Mapping[str, TypeKey]
    preset: Mapping[str, Any] = {}


def parse_type(node: ConfigNode) -> str:
    """A known type of check. Raises InvalidValue, with a hint for other programs' names."""
    text = node.scalar().text
    if text == "none":
        raise InvalidValue("'none' is not a type of check", hint="write check: none")
    meant = _TYPE_ELSEWHERE.get(text.lower())
    if meant is not None:
        raise InvalidValue(
            f"{quoted(text)} is another program's name for it", hint=f"write {meant}"
        )
    return node.word(tuple(TYPES), "a type of check")


def build_probe(kind: CheckType, values: Mapping[str, Any]) -> Asks:
    """The probe of a check of this type, from the values of the keys that were given."""
    fields = {kind.keys[name].field: value for name, value in values.items()}
    probe: Asks = kind.asks(**{**kind.preset, **fields})
    return _with_server_name(probe) if isinstance(probe, Http) else probe


def _with_server_name(probe: Http) -> Http:
    """Use `host` as the TLS server name: a server may have a certificate for each of its names."""
    if probe.tls is None or probe.tls.name is not None or probe.host is None:
        return probe
    name = re.sub(r":[0-9]+$", "", probe.host)
    if not HOST_NAME.fullmatch(name) or re.fullmatch(r"[0-9.]+", name):
        return probe
    return replace(probe, tls=replace(probe.tls, name=name))


_TLS: Final = {"tls": TypeKey("tls", TLS)}
_TLS_ALWAYS: Final = {"tls": TypeKey("tls", TLS_ALWAYS, {"not": {"const": False}})}
_STARTTLS: Final = {**_TLS, "starttls": TypeKey("starttls", TLS)}
_SEND: Final = {"send": TypeKey("send", SEND)}
_SEND_EXPECT: Final = {**_SEND, "expect": TypeKey("expect", EXPECT_PATTERN, PATTERN_SCHEMA)}
_HTTP: Final = {
    "method": TypeKey("method", METHOD),
    "path": TypeKey("path", PATH),
    "host": TypeKey("host", HOST),
    "status": TypeKey("status", STATUS),
    "header": TypeKey("header", HEADER),
    "body": TypeKey("body", PATTERN),
}
_SMTP: Final = {
    "hello": TypeKey("hello", EHLO_NAME),
    "expect": TypeKey("expect", EHLO_CODES, CODES_SCHEMA),
    **_STARTTLS,
}
_LOG_IN: Final = {"user": TypeKey("user", ACCOUNT)}
_DNS: Final = {
    "query": TypeKey("query", QUERY),
    "record": TypeKey("record", RECORD),
    "expect": TypeKey("expect", RECORD_DATA),
    "recursive": TypeKey("recursive", BOOLEAN),
}
_WEIGHT: Final = {"weight": TypeKey("share", SHARE)}
_EXEC: Final = {
    "command": TypeKey("command", COMMAND),
    "user": TypeKey("user", LOCAL_USER),
    **_WEIGHT,
}

TYPES: Final[Mapping[str, CheckType]] = {
    "tcp": CheckType(Tcp, _SEND_EXPECT),
    "tls": CheckType(TlsHandshake, _TLS_ALWAYS),
    "http": CheckType(Http, _HTTP),
    "https": CheckType(Http, {**_HTTP, **_TLS_ALWAYS}, {"tls": Tls()}),
    "smtp": CheckType(Smtp, _SMTP),
    "imap": CheckType(Imap, _STARTTLS),
    "pop3": CheckType(Pop3, _STARTTLS),
    "ldap": CheckType(Ldap, _TLS),
    "mysql": CheckType(Mysql, _LOG_IN),
    "pgsql": CheckType(Pgsql, {**_LOG_IN, "database": TypeKey("database", ACCOUNT)}),
    "redis": CheckType(Redis, _TLS),
    "dns": CheckType(Dns, _DNS),
    "udp": CheckType(Udp, _SEND_EXPECT),
    "icmp": CheckType(Icmp, {}),
    "exec": CheckType(Exec, _EXEC),
    "agent": CheckType(Agent, {**_SEND, **_WEIGHT}),
}
# Descriptions for the schema. A key may belong to several types.
TYPE_KEYS: Final[Mapping[str, str]] = {
    "send": r"tcp, udp, agent: the bytes to send; \r \n \t \\ and \xHH are escapes.",
    "expect": "tcp, udp: a regular expression for the answer; smtp: codes of the answer to EHLO;"
    " dns: a record's data.",
    "tls": "TLS from the beginning of the connection. tls and https always use it.",
    "starttls": "smtp, imap, pop3: TLS by that command.",
    "method": "http, https. Default: GET.",
    "path": "http, https: the requested path. Default: /.",
    "host": "http, https: the header Host. Default: the server's address.",
    "status": "http, https: the codes that pass. Default: 200-399.",
    "header": "http, https: 'NAME: PATTERN' of a header that the answer must have.",
    "body": "http, https: a regular expression for the first 64 KiB of the answer.",
    "hello": "smtp: the name in EHLO. Default: this host's.",
    "query": "dns: the name in the query. Default: none; any answer but SERVFAIL passes.",
    "record": "dns: the type of record. Default: SOA.",
    "recursive": "dns: request recursion.",
    "command": "exec: the program and its arguments; there is no shell.",
    "user": "exec: the program's user. Default: nobody. mysql: the user whose log-in must succeed."
    " Default: none; a refused log-in passes too. pgsql: the user who logs in.",
    "database": "pgsql: the database. Default: postgres.",
    "weight": "exec, agent: bounds for the share of the weight that the answer states.",
}
