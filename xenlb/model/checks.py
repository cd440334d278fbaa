"""What a check asks of a server and what it expects: one class for each type of check.

Values only. They are written by the configuration (xenlb.config), asked by the probes
(xenlb.health), and of the answers health.py makes the verdict. Patterns are regular expressions
that were compiled once when the configuration was read; they are searched for, not matched whole.
Empty text: nothing is sent, or anything is taken. `send` is bytes, each the character of its
number (Latin-1).
"""

from dataclasses import dataclass, field
from typing import Any

from xenlb.ipvs.table import Protocol

# Codes from … to, both taken.
Codes = tuple[tuple[int, int], ...]


def among(code: int, codes: Codes) -> bool:
    return any(first <= code <= last for first, last in codes)


def codes_text(codes: Codes) -> str:
    """As the configuration writes them: `200-299, 401`."""
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in codes)


def octets(send: str) -> bytes:
    """What a `send` stands for: one byte for each character."""
    return send.encode("latin-1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """`name` is sent (SNI), and the certificate has to be for it; None: it is not sent and not
    asked for. `ca_file`: whom to trust, None is whom this host trusts. Without `verify` every
    certificate is taken."""

    name: str | None = None
    verify: bool = True
    ca_file: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tcp:
    """Connects; `send` is said then, and `expect` must come."""

    send: str = ""
    expect: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsHandshake:
    """Connects and shakes hands."""

    tls: Tls = field(default_factory=Tls)


@dataclass(frozen=True, slots=True, kw_only=True)
class Http:
    """One request; `tls` None is http. `host`: the header Host, None is the server's address.
    `header`: name and pattern of one that the answer must have; `body`: a pattern in its first
    64 KiB."""

    tls: Tls | None = None
    method: str = "GET"
    path: str = "/"
    host: str | None = None
    status: Codes = ((200, 399),)
    header: tuple[str, str] | None = None
    body: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Smtp:
    """A session: the banner (220), EHLO, or HELO where that is unknown, and QUIT. `hello` is the
    name said there, None this host's. `expect`: codes of the answer to EHLO or HELO. `tls`: from
    the beginning, `starttls`: by that command. At most one of them."""

    hello: str | None = None
    expect: Codes = ((250, 250),)
    tls: Tls | None = None
    starttls: Tls | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Dns:
    """One query over UDP, without recursion being asked for unless `recursive`. `query` None: any
    answer will do, but a failure of the server. `expect`: a record of the answer, as a zone file
    writes its data; empty: any record of that type."""

    query: str | None = None
    record: str = "SOA"
    expect: str = ""
    recursive: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Udp:
    """A datagram, and the pattern that the answer must have. Without `expect` a server is up as
    long as its host does not say that the port is closed."""

    send: str = ""
    expect: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Icmp:
    """An echo request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """An answer may say what share of the configured weight the server takes; it is taken as being
    within these bounds (1.0 is the configured weight)."""

    least: float = 0.0
    most: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Exec:
    """A program with the exit status of the Nagios plugins. `user`: as whom it runs. `share`: its
    output says a share of the weight; None: it says none."""

    command: tuple[str, ...]
    user: str = "nobody"
    share: Share | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """HAProxy's agent check: a TCP connection on which the server says a line about itself, such as
    `up 75%`, `drain` or `down`. `send` is said first."""

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
    """A log-in as `user`, without a password, and COM_QUIT; it must succeed. None: a log-in under
    the check's own name, whose refusal is an answer, too."""

    user: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pgsql:
    """The start of a session, as pg_isready does it, as far as the server's wish for a password."""

    user: str = "xenlb"
    database: str = "postgres"


@dataclass(frozen=True, slots=True, kw_only=True)
class Redis:
    """PING; a server that wants a password first is up."""

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
    """Ports of which protocols a check of this class can be sent to; none: it has no port."""
    if asks is Icmp:
        return ()
    if asks is Exec:
        return tuple(Protocol)
    return (Protocol.UDP,) if asks in {Dns, Udp} else (Protocol.TCP,)
