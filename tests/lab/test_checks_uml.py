"""Each check against a real server of its kind: up, refused, hanging, wrong, expired, and its log.

The servers (servers.py) run in the lab's root, the probes next to them (xenlb.health.registry).
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest

from tests.lab import servers
from tests.lab.host import CHECKOUT, LabError, Process, venv_directory
from tests.lab.needed import lacking
from tests.lab.servers import ADDRESS, SERVERS, TLS
from tests.lab.uml import UmlLab
from tests.soak import often
from tests.unit.health.certificates import EXPIRED, NAME
from xenlb.model.checks import (
    Asks,
    Dns,
    Http,
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
from xenlb.model.settings import Check
from xenlb.store.json_codec import dumps

# Of each question to a server; more than MariaDB's max_connect_errors there, which is 10.
TIMES = often(12, soak=300)
# A busy lab is slow, above all with the handshakes of OpenSSL; only hanging servers take this long.
TIMEOUT = 3.0
TRUST = Tls(name=NAME, ca_file=f"{TLS}/ca.pem")
STALE = Tls(name=EXPIRED, ca_file=f"{TLS}/ca.pem")
HAS_EXPIRED = "expected a valid certificate from WHERE, got certificate has expired"


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked at which port, and what is to be said. `waits`: what is missed when the server
    is stopped, which the kernel makes connections for; None: not tried."""

    asks: Asks
    port: int
    up: str
    waits: str | None = None


def http(tls: Tls | None = None) -> Http:
    return Http(tls=tls, path="/health", status=((200, 200),), body="^all is well$")


# A query for the A of www.example.org, number 0x4242, without recursion.
QUERY = "BB\0\0\0\1\0\0\0\0\0\0\3www\7example\3org\0\0\1\0\1"


def dns(port: int) -> list[Question]:
    return [
        Question(asks=Dns(), port=port, up="WHERE answers queries", waits="answer"),
        Question(
            asks=Dns(query="www.example.org", record="A", expect="192.0.2.80"),
            port=port,
            up="WHERE answers with A of www.example.org",
        ),
        Question(
            asks=Udp(send=QUERY, expect="^BB.*www"), port=port, up="WHERE answers as expected"
        ),
        Question(asks=Udp(send=QUERY), port=port, up="WHERE answers"),
    ]


# server → what it is asked; all of them also are refused when it has ended.
UP: dict[str, list[Question]] = {
    "exim": [
        Question(asks=Tcp(expect="^220 .*ESMTP"), port=25, up="WHERE answers as expected"),
        Question(asks=Smtp(), port=25, up="WHERE answers EHLO with 250", waits="banner"),
        Question(asks=Smtp(starttls=TRUST), port=25, up="WHERE answers EHLO with 250"),
        Question(asks=Smtp(tls=TRUST), port=465, up="WHERE answers EHLO with 250"),
    ],
    "postfix": [
        Question(asks=Smtp(), port=2525, up="WHERE answers EHLO with 250", waits="banner"),
        Question(asks=Smtp(starttls=TRUST), port=2525, up="WHERE answers EHLO with 250"),
        Question(asks=Smtp(tls=TRUST), port=2465, up="WHERE answers EHLO with 250"),
    ],
    "nginx": [
        Question(asks=http(), port=80, up="WHERE answers 200 OK", waits="answer"),
        Question(asks=http(TRUST), port=443, up="WHERE answers 200 OK", waits="TLS handshake"),
        Question(asks=TlsHandshake(tls=TRUST), port=443, up="WHERE shakes hands (TLSv1.2)"),
    ],
    "dovecot": [
        Question(asks=Imap(), port=143, up="WHERE greets", waits="greeting"),
        Question(asks=Imap(starttls=TRUST), port=143, up="WHERE greets"),
        Question(asks=Imap(tls=TRUST), port=993, up="WHERE greets"),
        Question(asks=Pop3(), port=110, up="WHERE greets", waits="greeting"),
        Question(asks=Pop3(starttls=TRUST), port=110, up="WHERE greets"),
        Question(asks=Pop3(tls=TRUST), port=995, up="WHERE greets"),
    ],
    "courier-imap": [Question(asks=Imap(), port=1143, up="WHERE greets", waits="greeting")],
    "courier-pop": [Question(asks=Pop3(), port=1110, up="WHERE greets", waits="greeting")],
    "sphinx": [
        Question(asks=Mysql(), port=9306, up="WHERE lets xenlb in", waits="greeting"),
        Question(asks=Mysql(user="monitor"), port=9306, up="WHERE lets monitor in"),
    ],
    "nutcracker": [
        Question(
            asks=Redis(), port=22121, up="WHERE answers PING with PONG", waits="answer to PING"
        ),
    ],
    "slapd": [
        Question(asks=Ldap(), port=389, up="WHERE lets in", waits="answer to a bind"),
        Question(asks=Ldap(tls=TRUST), port=636, up="WHERE lets in"),
    ],
    "mariadb": [
        # Refused each time: such a log-in must not count against the host.
        Question(
            asks=Mysql(),
            port=3306,
            up="WHERE answers 1045 \"Access denied for user 'xenlb'@'10.0.0.1'"
            ' (using password: NO)"',
            waits="greeting",
        ),
        Question(asks=Mysql(user="monitor"), port=3306, up="WHERE lets monitor in"),
    ],
    "apache": [
        Question(asks=http(), port=8080, up="WHERE answers 200 OK", waits="answer"),
        Question(asks=http(TRUST), port=8443, up="WHERE answers 200 OK", waits="TLS handshake"),
        Question(asks=TlsHandshake(tls=TRUST), port=8443, up="WHERE shakes hands (TLSv1.3)"),
        Question(asks=Tcp(), port=8080, up=f"{ADDRESS} accepts connections on port 8080"),
    ],
    "bind": dns(5301),
    "nsd": dns(5302),
    "dnsmasq": dns(5303),
    "unbound": dns(5304),
    "pgbouncer": [
        Question(
            asks=Pgsql(user="pgsql"),
            port=6432,
            up="WHERE asks for a password",
            waits="answer to the start of a session",
        ),
        Question(asks=Pgsql(), port=6432, up="WHERE asks for a password"),
    ],
    "postgresql": [
        Question(
            asks=Pgsql(),
            port=5432,
            up="WHERE asks for a password",
            waits="answer to the start of a session",
        ),
        Question(asks=Pgsql(user="pgsql"), port=5432, up="WHERE lets pgsql in"),
    ],
    "redis": [
        Question(
            asks=Redis(), port=6379, up="WHERE answers PING with PONG", waits="answer to PING"
        ),
        Question(asks=Redis(tls=TRUST), port=6380, up="WHERE answers PING with PONG"),
    ],
}
# What goes wrong with a server that runs: asked, and what is said.
DOWN: dict[str, list[tuple[Asks, int, str]]] = {
    "exim": [
        (Smtp(expect=((251, 251),)), 25, 'expected 251 as answer to EHLO from WHERE, got "250-'),
        (Smtp(starttls=STALE), 25, HAS_EXPIRED),
        (Smtp(tls=STALE), 465, HAS_EXPIRED),
        (Imap(), 25, 'expected "* OK" as greeting from WHERE, got "220 mail.example.org ESMTP'),
    ],
    "postfix": [
        (Smtp(expect=((251, 251),)), 2525, 'expected 251 as answer to EHLO from WHERE, got "250-'),
        (Smtp(tls=TRUST), 2525, "expected a TLS handshake from WHERE, got an error of it"),
    ],
    "nginx": [
        (Http(), 80, "expected status 200-399 from WHERE, got 404 Not Found"),
        (
            replace(http(), body="broken"),
            80,
            'expected "broken" in the body from WHERE, got "all is well"',
        ),
        (http(STALE), 443, HAS_EXPIRED),
        (http(), 443, "expected status 200 from WHERE, got 400 Bad Request"),
        (Redis(), 80, 'expected PONG as answer to PING from WHERE, got "HTTP/1.1 400'),
        (Ldap(), 80, 'expected the answer to a bind from WHERE, got "'),
        (Pgsql(), 80, "expected the start of a session of PostgreSQL from WHERE, got "),
        (TlsHandshake(tls=TRUST), 80, "expected a TLS handshake from WHERE, got an error of it"),
    ],
    "dovecot": [
        (Imap(tls=STALE), 993, HAS_EXPIRED),
        (Imap(starttls=STALE), 143, HAS_EXPIRED),
        (Pop3(tls=STALE), 995, HAS_EXPIRED),
        (Pop3(starttls=STALE), 110, HAS_EXPIRED),
        (Pop3(), 143, 'expected "+OK" as greeting from WHERE, got "* OK ['),
        (Mysql(), 110, "expected a packet of MySQL as greeting from WHERE, got "),
    ],
    "slapd": [(Ldap(tls=replace(TRUST, name="other.example.org")), 636, "expected a certificate")],
    "mariadb": [
        (
            Mysql(user="nobody"),
            3306,
            "expected the answer to the log-in from WHERE, got error 1045",
        ),
    ],
    "postgresql": [
        (
            Pgsql(user="limited"),
            5432,
            'expected a session with WHERE, got 53300 "too many connections for role "limited""',
        ),
    ],
    "apache": [
        (Http(path="/missing"), 8080, "expected status 200-399 from WHERE, got 404 Not Found"),
        (http(), 8443, "expected status 200 from WHERE, got 400 Bad Request"),
    ],
    "bind": [
        (Dns(query="no.example.org", record="A"), 5301, "expected A of no.example.org from WHERE"),
        (Dns(query="."), 5301, "expected SOA of . from WHERE, got REFUSED"),
    ],
    "slapd-expired": [(Ldap(tls=TRUST), 637, HAS_EXPIRED)],
    "redis-expired": [(Redis(tls=TRUST), 6381, HAS_EXPIRED)],
}


@pytest.fixture(scope="module")
def lab(uml: UmlLab) -> UmlLab:
    try:
        servers.install(uml)
    except LabError as error:
        lacking(str(error))
    return uml


def ask(
    lab: UmlLab, questions: Sequence[tuple[Asks, int]], *, times: int = 1, timeout: float = TIMEOUT
) -> list[list[tuple[bool | None, str]]]:
    """The different answers to each; the server's address and port are WHERE in them."""
    written: list[dict[str, Any]] = [
        {
            "check": Check(type="test", asks=asks, timeout=timeout),
            "address": ADDRESS,
            "port": port,
            "times": times,
        }
        for asks, port in questions
    ]
    command = [str(venv_directory() / "bin/python"), "-m", "tests.lab.asks"]
    out = lab.run(command, input=dumps(written), timeout=120, cwd=str(CHECKOUT)).out
    return [
        [(up, detail.replace(f"{ADDRESS} port {port}", "WHERE")) for up, detail in answers]
        for (_, port), answers in zip(questions, json.loads(out), strict=True)
    ]


@pytest.fixture(scope="module", params=list(SERVERS))
def server(lab: UmlLab, request: pytest.FixtureRequest) -> Iterator[tuple[str, Process]]:
    """Each of them, one after the other, so that they do not share the lab's CPU."""
    process = servers.start(lab, request.param)
    yield request.param, process
    process.kill()


def test_it_is_up_and_logs_nothing_unusual(lab: UmlLab, server: tuple[str, Process]) -> None:
    name, _ = server
    if name not in UP:
        return
    questions = [(each.asks, each.port) for each in UP[name]]
    # Postfix starts its processes with the first session only, in a busy lab for seconds.
    ask(lab, questions, timeout=30.0)
    before = lab.out(f"cat {SERVERS[name].logs}").splitlines()
    assert ask(lab, questions, times=TIMES) == [[(True, each.up)] for each in UP[name]]
    said = lab.out(f"cat {SERVERS[name].logs}").splitlines()[len(before) :]
    usual = SERVERS[name].usual
    unusual = [line for line in said if usual is None or not usual.search(line)]
    assert not unusual, f"{len(unusual)} of {len(said)} lines"


def test_it_says_what_is_wrong(lab: UmlLab, server: tuple[str, Process]) -> None:
    name, _ = server
    wrong = DOWN.get(name, [])
    answers = ask(lab, [(asks, port) for asks, port, _ in wrong])
    for [(up, detail)], (_, _, said) in zip(answers, wrong, strict=True):
        assert (up, detail[: len(said)]) == (False, said)


def test_it_hangs(lab: UmlLab, server: tuple[str, Process]) -> None:
    """SIGSTOP: the kernel still makes connections for it."""
    name, process = server
    questions = [each for each in UP.get(name, []) if each.waits]
    process.signal(signal.SIGSTOP, group=True)
    try:
        answers = ask(lab, [(each.asks, each.port) for each in questions], timeout=1.0)
    finally:
        process.signal(signal.SIGCONT, group=True)
    assert answers == [[(False, f"no {each.waits} within 1 s from WHERE")] for each in questions]


def test_it_has_ended(lab: UmlLab, server: tuple[str, Process]) -> None:
    name, process = server
    process.kill()
    questions = [(each.asks, each.port) for each in UP.get(name, [])]
    for answers in ask(lab, questions):
        assert answers == [(False, "connection refused by WHERE")]
