"""Settings of checks: what a probe sends and expects, one class for each type of check.

Patterns are regular expressions that compile; they are searched for, not matched whole. Empty text:
nothing is sent, or any reply passes. `send` is bytes, each the character of its number (Latin-1).
"""

from dataclasses import dataclass, field
from typing import Any

from xenlb.ipvs.table import Protocol

# Ranges of codes, ends included.
Codes = tuple[tuple[int, int], ...]


def among(code: int, codes: Codes) -> bool:
    """Return whether a code is in one of the ranges."""
    return any(first <= code <= last for first, last in codes)


def codes_text(codes: Codes) -> str:
    """`200-299, 401`, as in the configuration."""
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in codes)


def octets(send: str) -> bytes:
    """Return the bytes of a `send`: one for each character."""
    return send.encode("latin-1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """TLS settings. `name` is sent (SNI), and the certificate must be valid for it, unless None.

    `ca_file`: trusted certificates, None: this host's. Without `verify` every certificate passes.
    """

    name: str | None = None
    verify: bool = True
    ca_file: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tcp:
    """A connection; `send` is sent on it, and the reply must contain `expect`."""

    send: str = ""
    expect: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsHandshake:
    """A connection and a TLS handshake."""

    tls: Tls = field(default_factory=Tls)


@dataclass(frozen=True, slots=True, kw_only=True)
class Http:
    """One request; `tls` None is http. `host`: the header Host, None is the server's address.

    `header`: name and pattern of a header that the reply must have; `body`: a pattern in its first
    64 KiB.
    """

    tls: Tls | None = None
    method: str = "GET"
    path: str = "/"
    host: str | None = None
    status: Codes = ((200, 399),)
    header: tuple[str, str] | None = None
    body: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Smtp:
    """A session: the banner (220), EHLO, or HELO if EHLO is unknown, and QUIT.

    `hello`: the name sent with it, None: this host's. `expect`: codes of its reply. `tls`: from the
    beginning, `starttls`: by that command; at most one of them.
    """

    hello: str | None = None
    expect: Codes = ((250, 250),)
    tls: Tls | None = None
    starttls: Tls | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Dns:
    """One query over UDP. `query` None: any reply passes, but a failure of the server.

    `expect`: the data of a record in the reply, as in a zone file; empty: any record of that type.
    """

    query: str | None = None
    record: str = "SOA"
    expect: str = ""
    recursive: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Udp:
    """A datagram, and a pattern in the reply.

    Without `expect` a server is up while its host does not report the port as closed.
    """

    send: str = ""
    expect: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Icmp:
    """An echo request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """Bounds of the share of its configured weight that a server may ask for; 1.0 is all of it."""

    least: float = 0.0
    most: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Exec:
    """A program with the exit status of the Nagios plugins, run as `user`.

    `share`: bounds of the share in its output; None: it reports none.
    """

    command: tuple[str, ...]
    user: str = "nobody"
    share: Share | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """HAProxy's agent check: the server sends a line such as `up 75%`, `drain` or `down` by TCP.

    `send` is sent first.
    """

    send: str = ""
    share: Share = field(default_factory=Share)


@dataclass(frozen=True, slots=True, kw_only=True)
class Imap:
    """The greeting and LOGOUT."""

    tls: Tls | None = None
    starttls: Tls | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pop3:
    """The greeting and QUIT."""

    tls: Tls | None = None
    starttls: Tls | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ldap:
    """An anonymous bind and an unbind."""

    tls: Tls | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Mysql:
    """A log-in as `user`, without a password, and COM_QUIT; it must succeed.

    None: a log-in under the check's own name, which passes also if it is refused.
    """

    user: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pgsql:
    """The start of a session, as by pg_isready, up to the server's request for a password."""

    user: str = "xenlb"
    database: str = "postgres"


@dataclass(frozen=True, slots=True, kw_only=True)
class Redis:
    """PING; a server that requires a password first is up."""

    tls: Tls | None = None


Asks = (
    Tcp
    | TlsHandshake
    | Http
    | Smtp
    | Dns
    | Udp
    | Icmp
    | Exec
    | Agent
    | Imap
    | Pop3
    | Ldap
    | Mysql
    | Pgsql
    | Redis
)


def protocols_of(asks: type[Any]) -> tuple[Protocol, ...]:
    """Return the protocols of the ports that a check of this class can probe."""
    if asks is Icmp:
        return ()
    if asks is Exec:
        return tuple(Protocol)
    return (Protocol.UDP,) if asks in {Dns, Udp} else (Protocol.TCP,)
