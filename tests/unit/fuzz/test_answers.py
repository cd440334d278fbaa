"""Any answers of servers: each probe ends within its budget, or raises BudgetSpent.

The streams are real; the loop's sockets receive input made by Hypothesis.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

import dns.message
import dns.rrset
import pytest
from hypothesis import example, given

from tests.unit.fuzz.mutations import LIMIT, MANY, damaged, pieces
from tests.unit.health.test_talks import MYSQL_GREETING, TALKS, error_of_postgresql, packet
from xenlb.health.probes import agent, http, imap, ldap, mysql, pgsql, pop3, redis, smtp, tcp, udp
from xenlb.health.probes import dns as dns_probe
from xenlb.health.transport.result import PIECES, SIZE, Answer, answer_budget, over_budget
from xenlb.health.transport.stream import IN_A_ROW, PIECE, Stream, Unexpected
from xenlb.model.checks import Agent, Asks, Dns, Http, Imap, Mysql, Pgsql, Pop3, Smtp, Tcp, Udp
from xenlb.model.settings import Check
from xenlb.model.target import Target
from xenlb.untrusted.budget import BudgetSpent

pytestmark = pytest.mark.timeout(LIMIT)


class Fed(asyncio.SelectorEventLoop):
    """A loop whose sockets receive `coming`, and then the end."""

    def __init__(self) -> None:
        super().__init__()
        self.coming: list[bytes] = []
        self.reads = 0
        self.number = b""  # of a query

    async def sock_recv(self, sock: Any, nbytes: int) -> bytes:
        self.reads += 1
        if not self.coming:
            return b""
        data = self.coming[0][:nbytes]
        self.coming[0] = self.coming[0][nbytes:]
        if not self.coming[0]:
            self.coming.pop(0)
        return data

    async def sock_sendall(self, sock: Any, data: Any) -> None:
        pass


class Nowhere:
    """A socket, as far as a stream needs one."""

    def shutdown(self, how: int) -> None:
        pass


# The function of a probe that talks to the server.
TalksToServer = Callable[[Stream, Any], Awaitable[Answer]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    asks: Asks
    check: TalksToServer
    corpus: tuple[bytes, ...]


def right(name: str) -> bytes:
    """The replies of a healthy server in tests/unit/health."""
    return b"".join(step for step in TALKS[name].script if isinstance(step, bytes))


PAGE = (
    b"HTTP/1.1 200 OK\r\nX-Health: good\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5;a=b\r\nhello\r\n1\r\n \r\n5\r\nworld\r\n0\r\n\r\n"
)
PAGES = (
    PAGE,
    right("http"),
    b"HTTP/1.1 103 x\r\nLink: a\r\n\r\nHTTP/1.0 200\r\n\r\nhello world",
    b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\nX-Health: a\r\n b\r\n\r\nhello world",
    b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\nX: \r\n\r\nhi",
)
SQL = packet(0, MYSQL_GREETING) + packet(2, b"\0\0\0\2\0\0\0")
PROTOCOLS = {
    "http header": Protocol(
        asks=Http(header=("X-Health", "^(go+d|a b)+$")),
        check=http._check,
        corpus=PAGES,
    ),
    "http body": Protocol(
        asks=Http(body="(?s)hello.*world$"),
        check=http._check,
        corpus=PAGES,
    ),
    "smtp": Protocol(asks=Smtp(), check=smtp._check, corpus=(right("smtp"),)),
    "imap": Protocol(
        asks=Imap(),
        check=imap._check,
        corpus=(right("imap"), b"* PREAUTH x\r\n", b"* BYE\r\n"),
    ),
    "pop3": Protocol(asks=Pop3(), check=pop3._check, corpus=(right("pop3"),)),
    "ldap": Protocol(
        asks=TALKS["ldap"].asks,
        check=ldap._check,
        corpus=(
            right("ldap"),
            bytes.fromhex("3084000000100201016184000000070a013004000400"),
            bytes.fromhex("300c02010078070a013404000400"),
        ),
    ),
    "mysql": Protocol(
        asks=Mysql(),
        check=mysql._check,
        corpus=(
            SQL,
            packet(0, b"\xff\x10\x04#08004Too many connections"),
            packet(0, MYSQL_GREETING) + packet(2, b"\xfemysql_native_password\0abc"),
            packet(0, MYSQL_GREETING) + packet(2, b"\x01\x03") + packet(3, b"\0\0\0\2\0\0\0"),
        ),
    ),
    "pgsql": Protocol(
        asks=Pgsql(),
        check=pgsql._check,
        corpus=(
            right("pgsql"),
            b"R\0\0\0\x08\0\0\0\0S\0\0\0\x08a\0b\0Z\0\0\0\x05I",
            error_of_postgresql("28000", "no"),
            error_of_postgresql("53300", "too many"),
        ),
    ),
    "redis": Protocol(
        asks=TALKS["redis"].asks, check=redis._check, corpus=(b"+PONG\r\n", b"-NOAUTH x\r\n")
    ),
    "tcp": Protocol(
        asks=Tcp(expect="^(OK )+\\d+$"),
        check=tcp._check,
        corpus=(b"OK 12\n", b"OK OK OK OK OK OK OK OK OK OK OK OK !"),
    ),
    "agent": Protocol(
        asks=Agent(),
        check=agent._check,
        corpus=(b"up 75%\n", b"drain,maint # why\n", b"down\tx\n", b"99999% maxconn:30\n"),
    ),
}


def target(asks: Asks, port: int = 9) -> Target:
    check = Check(type="test", asks=asks, timeout=5.0)
    return Target(check=check, address=ip_address("127.0.0.1"), port=port)


@contextmanager
def fed() -> Any:
    with asyncio.Runner(loop_factory=Fed) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, Fed)
        yield runner, loop


def assert_an_answer(answer: Answer) -> None:
    assert answer.detail
    assert answer.detail.isprintable()
    assert len(answer.detail) < 600


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_conversation(name: str) -> None:
    protocol = PROTOCOLS[name]
    where = target(protocol.asks)

    async def conversation() -> tuple[Answer, int]:
        budget = answer_budget()
        stream = Stream(where, budget, Nowhere())  # type: ignore[arg-type]
        try:
            answer = await protocol.check(stream, protocol.asks)
        except Unexpected as unexpected:
            answer = Answer(up=False, detail=str(unexpected))
        except BudgetSpent as spent:
            answer = over_budget(where, spent)
        assert budget.used_pieces <= PIECES + IN_A_ROW
        assert budget.used_size <= SIZE + PIECE
        return answer, budget.used_pieces

    with fed() as (runner, loop):

        @MANY
        @given(coming=pieces(protocol.corpus))
        @example(coming=[*protocol.corpus])
        @example(coming=[bytes([byte]) for byte in protocol.corpus[0]])
        @example(coming=[protocol.corpus[0] * 9000])
        def conversations(coming: list[bytes]) -> None:
            loop.coming, loop.reads = list(coming), 0
            answer, pieces = runner.run(conversation())
            assert loop.reads <= pieces + 1, "no more reads than its budget has"
            assert_an_answer(answer)

        conversations()


def dns_answers() -> tuple[bytes, ...]:
    query = dns.message.make_query("localhost.", "A")
    answer = dns.message.make_response(query)
    answer.answer.append(dns.rrset.from_text("localhost.", 60, "IN", "A", "127.0.0.1"))
    mail = dns.message.make_response(dns.message.make_query("example.org.", "MX"))
    mail.answer.append(dns.rrset.from_text("example.org.", 60, "IN", "MX", "10 a.example.org."))
    return answer.to_wire(), mail.to_wire(), query.to_wire()


@pytest.mark.parametrize(
    ("asks", "probe", "corpus"),
    [
        (Dns(), dns_probe.probe, dns_answers()),
        (Dns(query="localhost.", record="A", expect="127.0.0.1"), dns_probe.probe, dns_answers()),
        (Udp(send="x", expect="^(a|ab)+$"), udp.probe, (b"ababab", b"a" * 40 + b"!")),
    ],
)
def test_datagrams(asks: Asks, probe: Any, corpus: tuple[bytes, ...]) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.setblocking(False)
        where = target(asks, server.getsockname()[1])

        class Loop(Fed):
            async def sock_recv(self, sock: Any, nbytes: int) -> bytes:
                """Receive with the id of the query that was sent, so that it is parsed."""
                data = await super().sock_recv(sock, nbytes)
                with suppress(BlockingIOError):
                    self.number = server.recv(512)[:2]
                return data if isinstance(asks, Udp) else self.number + data[2:]

        async def asked() -> Answer:
            budget = answer_budget()
            try:
                answer: Answer = await probe(where, budget)
            except BudgetSpent as spent:
                answer = over_budget(where, spent)
            return answer

        with asyncio.Runner(loop_factory=Loop) as runner:
            loop = runner.get_loop()
            assert isinstance(loop, Fed)

            @MANY
            @given(coming=damaged(corpus))
            @example(coming=corpus[0])
            def datagrams(coming: bytes) -> None:
                loop.coming = [coming] * 20
                assert_an_answer(runner.run(asked()))

            datagrams()
