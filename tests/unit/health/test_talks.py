"""Checks of line protocols against scripted servers: right, wrong, incomplete, hostile."""

import asyncio
import os
from dataclasses import dataclass
from functools import cache

import pytest

from tests.unit.health.certificates import NAME, certificates
from tests.unit.health.servers import (
    LINE,
    Endless,
    Hang,
    HangUp,
    Hear,
    Reset,
    Script,
    StartTls,
    answer_of,
    asked,
    down,
    serving,
    target,
    up,
)
from xenlb.health.runner import HealthRunner
from xenlb.health.transport import stream
from xenlb.health.transport.result import Answer
from xenlb.model.checks import (
    Agent,
    Asks,
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
)
from xenlb.model.events import ProbeFinished
from xenlb.model.health import Health

# Requests that are no lines, in bytes.
BIND, STARTUP = Hear(count=14), Hear(count=4)
LDAP_OK = bytes.fromhex("30 0c 02 01 01 61 07 0a 01 00 04 00 04 00")
REQUEST = (LINE,) * 6
SMTP_UP = (
    b"220 mail ready\r\n",
    LINE,
    b"250-mail\r\n250 PIPELINING\r\n",
    LINE,
    b"221 bye\r\n",
)
MYSQL_GREETING = (
    b"\x0a8.0.36\0" + bytes(4) + b"12345678\0" + b"\xff\xf7" + b"\x21" + b"\x02\x00" + b"\xff\x81"
    b"\x15" + bytes(10) + b"123456789012\0" + b"caching_sha2_password\0"
)


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
COOKIES = b"".join(b"Set-Cookie: c%d=" % n + b"a" * 4000 + b"\r\n" for n in range(30))
# After a status line: what browsers, curl and other balancers take.
SLOPPY = (
    b"Server : app\r\nContent-Length: 2\r\n\r\nok",
    b"cache/page.php: no data\r\n\r\n",
    b"no colon\r\n\r\n",
    b"Transfer-Encoding: chunked\r\n" * 2 + b"\r\n2\r\nok\r\n0\r\n\r\n",
    b"Content-Length: 2\r\nContent-Length: 3\r\n\r\nok",
    b"\xff\0: \x01\r\n\r\n",
    COOKIES + b"\r\n",
    b"X-Half: ",
)


def http_up(asks: Http, rest: bytes) -> tuple[Asks, Script, Answer]:
    return asks, [*REQUEST, b"HTTP/1.1 200 OK\r\n" + rest], up("WHERE answers 200 OK")


def packet(number: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "little") + bytes([number]) + payload


MYSQL_LOGIN = Hear(count=4 + 4 + 4 + 1 + 23 + len(b"xenlb\0") + 1 + len(b"caching_sha2_password\0"))


def error_of_mysql(code: int, words: str) -> bytes:
    return b"\xff" + code.to_bytes(2, "little") + b"#28000" + words.encode()


def refused_log_in(code: int) -> tuple[Asks, Script, Answer]:
    script: Script = [packet(0, MYSQL_GREETING), MYSQL_LOGIN, packet(2, error_of_mysql(code, "no"))]
    return Mysql(), script, up(f'WHERE answers {code} "no"')


def error_of_postgresql(code: str, words: str) -> bytes:
    fields = f"SFATAL\0C{code}\0M{words}\0\0".encode()
    return b"E" + (len(fields) + 4).to_bytes(4) + fields


@dataclass(frozen=True, slots=True, kw_only=True)
class Talk:
    """A check with a server that is up, and its detail. `waits`: what the probe waits for when
    the server says nothing; `parting`: the last words that the server hears."""

    asks: Asks
    script: Script
    detail: str
    waits: str
    parting: bytes = b""


TALKS = {
    "tcp": Talk(
        asks=Tcp(send="hello\n", expect="^OK \\d+"),
        script=[LINE, b"OK ", b"12\n"],
        detail="WHERE answers as expected",
        waits="expected answer",
        parting=b"hello\n",
    ),
    "http": Talk(
        asks=Http(),
        script=[*REQUEST, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"],
        detail="WHERE answers 200 OK",
        waits="answer",
        parting=b"Connection: close\r\n\r\n",
    ),
    "smtp": Talk(
        asks=Smtp(hello="probe.example.org"),
        script=SMTP_UP,
        detail="WHERE answers EHLO with 250",
        waits="banner",
        parting=b"EHLO probe.example.org\r\nQUIT\r\n",
    ),
    "imap": Talk(
        asks=Imap(),
        script=[b"* OK ready\r\n", LINE, b"* BYE\r\nb OK\r\n"],
        detail="WHERE greets",
        waits="greeting",
        parting=b"b LOGOUT\r\n",
    ),
    "pop3": Talk(
        asks=Pop3(),
        script=[b"+OK ready\r\n", LINE, b"+OK bye\r\n"],
        detail="WHERE greets",
        waits="greeting",
        parting=b"QUIT\r\n",
    ),
    "ldap": Talk(
        asks=Ldap(),
        script=[BIND, LDAP_OK],
        detail="WHERE lets in",
        waits="answer to a bind",
        parting=bytes.fromhex("30 05 02 01 02 42 00"),
    ),
    "mysql": Talk(
        asks=Mysql(user="xenlb"),
        script=[packet(0, MYSQL_GREETING), MYSQL_LOGIN, packet(2, b"\0\0\0\2\0\0\0")],
        detail="WHERE lets xenlb in",
        waits="greeting",
        parting=b"caching_sha2_password\0\x01\0\0\0\x01",
    ),
    "pgsql": Talk(
        asks=Pgsql(),
        script=[STARTUP, b"R\0\0\0\x08\0\0\0\x0a"],
        detail="WHERE asks for a password",
        waits="answer to the start of a session",
        parting=b"\0\0",
    ),
    "redis": Talk(
        asks=Redis(),
        script=[LINE, LINE, LINE, b"+PONG\r\n"],
        detail="WHERE answers PING with PONG",
        waits="answer to PING",
        parting=b"PING\r\n",
    ),
}
EACH = pytest.mark.parametrize("talk", TALKS.values(), ids=TALKS.keys())


@EACH
@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_up_and_an_orderly_close(talk: Talk, address: str) -> None:
    answer, server = answer_of(talk.asks, talk.script, address=address)
    assert answer == up(talk.detail)
    assert server.heard.endswith(talk.parting)
    assert server.polite == [True], "a FIN, and no reset"


@EACH
def test_refused(talk: Talk) -> None:
    async def main() -> tuple[int, Answer]:
        async with serving([]) as server:
            port = server.port
        return port, await asked(target(talk.asks, port))

    port, answer = asyncio.run(main())
    assert answer == down(f"connection refused by 127.0.0.1 port {port}")


@EACH
def test_hanging(talk: Talk) -> None:
    answer, _ = answer_of(talk.asks, [Hang()], timeout=0.1)
    assert answer == down(f"no {talk.waits} within 0.1 s from WHERE")


def test_a_timeout_names_the_missing_reply() -> None:
    async def main() -> tuple[ProbeFinished, int]:
        told: asyncio.Queue[ProbeFinished] = asyncio.Queue()
        runner = HealthRunner(told.put_nowait, asyncio.get_running_loop().time)
        async with serving([Hang()]) as server:
            asks = target(Redis(), server.port, timeout=0.1)
            runner.set_targets({asks: Health(valid_from=0.0)})
            task = asyncio.create_task(runner.run())
            result = await asyncio.wait_for(told.get(), 10)
            task.cancel()
            await asyncio.wait([task])
        return result, server.port

    result, port = asyncio.run(main())
    assert result.detail == f"no answer to PING within 0.1 s from 127.0.0.1 port {port}"


@EACH
def test_garbage(talk: Talk) -> None:
    answer, _ = answer_of(talk.asks, [b"\x1b[2J\xff\xfe\x00garbage of \x07 some length\r\n"])
    assert answer.up is False
    assert answer.detail.startswith("expected ")
    assert "\x1b" not in answer.detail
    assert answer.detail.isprintable()


@EACH
def test_a_connection_that_ends_at_once_is_down(talk: Talk) -> None:
    answer, _ = answer_of(talk.asks, [HangUp()])
    assert answer.up is False
    assert "got the end of the connection" in answer.detail or "reset" in answer.detail


@pytest.mark.parametrize(
    ("asks", "script", "detail"),
    [
        # Neither has read the request when it hangs up.
        (
            Http(body="synced"),
            [b"HTTP/1.0 200 OK\r\n\r\nnode is synced\n", Reset()],
            "WHERE answers 200 OK",
        ),
        (Agent(send="state\n"), [b"up 75%", Reset()], "WHERE says up 75%"),
        (Redis(), [b"-NOAUTH first\r\n", Reset()], "WHERE answers PING with NOAUTH"),
        (Pgsql(), [error_of_postgresql("28000", "no"), Reset()], 'WHERE answers 28000 "no"'),
        (Imap(), [b"* OK ready\r\n", Reset()], "WHERE greets"),
        (Tcp(send="x", expect="^OK"), [b"OK", Reset()], "WHERE answers as expected"),
    ],
)
def test_an_answer_before_a_reset_counts(asks: Asks, script: Script, detail: str) -> None:
    for _ in range(20):
        answer, _ = answer_of(asks, script)
        assert (answer.up, answer.detail) == (True, detail)


def test_a_reset_in_the_middle_is_down() -> None:
    answer, _ = answer_of(Smtp(), [b"220 mail\r\n", LINE, Reset()])
    assert answer == down(
        "expected a whole line as answer to EHLO from WHERE, got a reset of the connection"
    )


@EACH
@pytest.mark.parametrize("words", [b"x" * 4096, b"250-\r\n" * 512, b"\r\n" * 2048, b"\0" * 4096])
def test_an_endless_answer_is_down(talk: Talk, words: bytes) -> None:
    """The probe gives up long before its timeout."""
    answer, _ = answer_of(talk.asks, [Endless(words=words)], timeout=30.0)
    assert answer.up is False
    assert answer.detail.startswith("expected ")


@EACH
def test_half_an_answer(talk: Talk) -> None:
    said = next(step for step in talk.script if isinstance(step, bytes))
    before = talk.script[: talk.script.index(said)]
    half = len(said.partition(b"\r\n")[0]) // 2
    answer, _ = answer_of(talk.asks, [*before, said[:half]])
    assert answer.up is False
    assert answer.detail.startswith("expected ")


@EACH
def test_a_cancelled_session_leaves_nothing_open(talk: Talk) -> None:
    async def main() -> None:
        await asked(target(talk.asks, 1, timeout=0.1))  # its module is loaded
        async with serving([Hang()]) as server:
            before = set(os.listdir("/proc/self/fd"))
            task = asyncio.create_task(asked(target(talk.asks, server.port)))
            while not server.under_way:
                await asyncio.sleep(0.001)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
            while server.under_way:
                await asyncio.sleep(0.001)
            assert set(os.listdir("/proc/self/fd")) <= before

    asyncio.run(main())


def test_a_server_that_does_not_close_the_connection_is_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stream, "FAREWELL", 0.05)
    for talk in TALKS.values():
        answer, _ = answer_of(talk.asks, [*talk.script, Hang()], timeout=1.0)
        assert answer == up(talk.detail)
    answer, _ = answer_of(Smtp(), [*SMTP_UP[:3], Hang()], timeout=1.0)
    assert answer == up("WHERE answers EHLO with 250")


WRONG: list[tuple[Asks, Script, Answer]] = [
    (
        Tcp(expect="^OK"),
        [b"BUSY \x07\n"],
        down('expected "^OK" from WHERE, got "BUSY \\x07"'),
    ),
    (Tcp(send="x"), [Hear(count=1)], up("WHERE answers as expected")),
    (
        Tcp(expect="a.*b.*c"),
        [b"a" * 2000 + b"b" * 2000],
        down("expected a.*b.*c from WHERE, got what takes too long to search"),
    ),
    # smtp
    (
        Smtp(),
        [b"554-go away\r\n554 now\r\n", LINE, b"221 bye\r\n"],
        down('expected 220 as banner from WHERE, got "554-go away"'),
    ),
    (
        Smtp(),
        [b"220 old\r\n", LINE, b"502 what\r\n", LINE, b"250 old\r\n", LINE],
        up("WHERE answers HELO with 250"),
    ),
    (
        Smtp(),
        [b"220 x\r\n", LINE, b"421 too busy\r\n"],
        down('expected 250 as answer to EHLO from WHERE, got "421 too busy"'),
    ),
    (
        Smtp(expect=((250, 250), (421, 421))),
        [b"220 x\r\n", LINE, b"421 too busy\r\n"],
        up("WHERE answers EHLO with 421"),
    ),
    (
        Smtp(),
        [b"220 x\r\n", LINE, b"250-mail\r\n251 other\r\n"],
        down('expected a reply of SMTP as answer to EHLO from WHERE, got "251 other"'),
    ),
    (
        Smtp(starttls=Tls(verify=False)),
        [b"220 x\r\n", LINE, b"250 x\r\n", LINE, b"454 not now\r\n", LINE],
        down('expected 220 as answer to STARTTLS from WHERE, got "454 not now"'),
    ),
    (
        Smtp(starttls=Tls(verify=False)),
        [b"220 x\r\n", LINE, b"250 x\r\n", LINE, b"220 go\r\n250 smuggled\r\n"],
        down('expected nothing after STARTTLS but TLS from WHERE, got "250 smuggled"'),
    ),
    # http
    (
        Http(),
        [*REQUEST, b"HTTP/2.0 200 OK\x07\r\n\r\n"],
        down('expected an answer of HTTP/1 from WHERE, got "HTTP/2.0 200 OK\\x07"'),
    ),
    (
        Http(),
        [*REQUEST, b"HTTP/1.0 503 Service Unavailable\r\n\r\nsorry"],
        down("expected status 200-399 from WHERE, got 503 Service Unavailable"),
    ),
    (
        Http(status=((200, 200), (503, 503))),
        [*REQUEST, b"HTTP/1.1 103 Early\r\n\r\nHTTP/1.1 503 Down\r\n\r\n"],
        up("WHERE answers 503 Down"),
    ),
    (
        Http(status=((200, 200), (301, 302))),
        [*REQUEST, b"HTTP/1.1 404 Not Found\r\n\r\n"],
        down("expected status 200, 301-302 from WHERE, got 404 Not Found"),
    ),
    (
        Http(body="all.*well"),
        [*REQUEST, b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\nall is ", b"well!\n"],
        up("WHERE answers 200 OK"),
    ),
    (
        Http(body="all.*well"),
        [*REQUEST, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nbad\r\n0\r\n\r\n"],
        down('expected "all.*well" in the body from WHERE, got "bad"'),
    ),
    (
        Http(body="well"),
        [*REQUEST, b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\nhalf of"],
        down('expected a whole body from WHERE, got "half of"'),
    ),
    (
        Http(body="well"),
        [*REQUEST, b"HTTP/1.1 200 OK\r\n\r\n"],
        down('expected "well" in the body from WHERE, got an empty one'),
    ),
    (
        Http(body="a.*b.*c"),
        [*REQUEST, b"HTTP/1.0 200 OK\r\n\r\n" + b"a" * 40_000 + b"b" * 20_000],
        down("expected a.*b.*c from WHERE, got what takes too long to search"),
    ),
    (
        Http(header=("X-Health", "^good$")),
        [*REQUEST, b"HTTP/1.1 200 OK\r\nx-health: good\r\n\r\n"],
        up("WHERE answers 200 OK"),
    ),
    (
        Http(header=("X-Health", "^good$")),
        [*REQUEST, b"HTTP/1.1 200 OK\r\nx-health: bad\r\n\r\n"],
        down('expected "^good$" in header X-Health from WHERE, got "X-Health: bad"'),
    ),
    (
        Http(header=("X-Health", "^good$")),
        [*REQUEST, b"HTTP/1.1 200 OK\r\n\r\n"],
        down('expected "^good$" in header X-Health from WHERE, got no header X-Health'),
    ),
    *(http_up(Http(), rest) for rest in SLOPPY),
    (Http(), [*REQUEST, b"HTTP/1.1 200\r\n\r\n"], up("WHERE answers 200")),
    (Http(), [*REQUEST, b"HTTP/1.0 200 OK\n\n"], up("WHERE answers 200 OK")),
    (
        Http(status=((404, 404),)),
        [*REQUEST, b"HTTP/1.1 200 OK\r\nServer : app\r\n\r\n"],
        down("expected status 404 from WHERE, got 200 OK"),
    ),
    (
        Http(status=((101, 101),)),
        [*REQUEST, b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n\0\0\6"],
        up("WHERE answers 101 Switching Protocols"),
    ),
    (
        Http(),
        [*REQUEST, b"HTTP/1.1 103 Early\r\n\r\n" * 6, Hang()],
        down('expected an answer of HTTP/1 from WHERE, got "HTTP/1.1 103 Early"'),
    ),
    # Where more is asked, headers that are none do not hide those that are.
    *(
        http_up(
            Http(header=("X-Health", "^good$"), body="^ok$"),
            head + b"X-Health : good\r\n" + rest,
        )
        for head, rest in (
            (b"cache/page.php: no data\r\n", b"Content-Length: 2\r\n\r\nok and more"),
            (b"no colon\r\nX:a\r\n b\r\n", b"Content-Length: no\r\n\r\nok"),
            (COOKIES, b"Content-Length: 2\r\nContent-Length: 2\r\n\r\nok"),
            (
                b"Transfer-Encoding: chunked\r\n" * 2,
                b"\r\n1 ;a=b\r\no\r\n01\r\nk\r\n0\r\n\r\n",
            ),
            (b"", b"Transfer-Encoding: identity\r\n\r\nok"),
            (b"", b"Transfer-Encoding: gzip,\r\n  Chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"),
        )
    ),
    (
        Http(header=("X-Health", "^good$")),
        [*REQUEST, b"HTTP/1.1 200 OK\r\nX-Health: good\r\nX-He"],
        up("WHERE answers 200 OK"),
    ),
    (
        Http(header=("X-Health", "^good$")),
        [*REQUEST, b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 6001, Hang()],
        down("expected an answer from WHERE, got more than 6000 pieces"),
    ),
    (
        Http(header=("X-Health", "(a+)+$")),
        [*REQUEST, b"HTTP/1.1 200 OK\r\n" + b"X-Health: aaaaaaaaaaaaaaaaaab\r\n" * 900],
        down("expected (a+)+$ from WHERE, got what takes too long to search"),
    ),
    (
        Http(body="well"),
        [*REQUEST, b"HTTP/1.1 204 No Content\r\nContent-Length: 4\r\n\r\nwell"],
        down('expected "well" in the body from WHERE, got an empty one'),
    ),
    (
        Http(body="well"),
        [*REQUEST, CHUNKED + b"what\r\n"],
        down('expected the size of a chunk of the body from WHERE, got "what"'),
    ),
    (
        Http(body="well"),
        [*REQUEST, CHUNKED + b"1\r\nx\r\n" * 2001, Hang()],
        down("expected an answer from WHERE, got more than 6000 pieces"),
    ),
    # What has come counts, however it ends.
    (
        Http(body="well"),
        [*REQUEST, b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nall is well"],
        up("WHERE answers 200 OK"),
    ),
    (Http(body="well"), [*REQUEST, CHUNKED + b"b\r\nall is well"], up("WHERE answers 200 OK")),
    # imap, pop3
    (Imap(), [b"* PREAUTH root\r\n", LINE], up("WHERE greets")),
    (
        Imap(),
        [b"* BYE too many\r\n"],
        down('expected "* OK" as greeting from WHERE, got "* BYE too many"'),
    ),
    (
        Imap(starttls=Tls(verify=False)),
        [b"* OK\r\n", LINE, b"a NO not here\r\n"],
        down('expected "a OK" as answer to STARTTLS from WHERE, got "a NO not here"'),
    ),
    (
        Pop3(),
        [b"-ERR [SYS/TEMP] down\r\n"],
        down('expected "+OK" as greeting from WHERE, got "-ERR [SYS/TEMP] down"'),
    ),
    (
        Pop3(starttls=Tls(verify=False)),
        [b"+OK\r\n", LINE, b"-ERR no\r\n"],
        down('expected "+OK" as answer to STLS from WHERE, got "-ERR no"'),
    ),
    # redis
    (
        Redis(),
        [LINE, b"-NOAUTH Authentication required.\r\n"],
        up("WHERE answers PING with NOAUTH"),
    ),
    (
        Redis(),
        [LINE, b"-LOADING Redis is loading\r\n"],
        down('expected PONG as answer to PING from WHERE, got "-LOADING Redis is loading"'),
    ),
    # ldap
    (
        Ldap(),
        [BIND, bytes.fromhex("30 84 00 00 00 10 02 01 01 61 84 00 00 00 07 0a 01 30 04 00 04 00")],
        up("WHERE wants authentication"),
    ),
    (
        Ldap(),
        [BIND, bytes.fromhex("30 10 02 01 01 61 0b 0a 01 33 04 00 04 04") + b"busy"],
        down('expected the answer to a bind from WHERE, got result 51 "busy"'),
    ),
    (
        Ldap(),
        [BIND, bytes.fromhex("30 0c 02 01 00 78 07 0a 01 34 04 00 04 00")],
        down("expected the answer to a bind from WHERE, got result 52"),
    ),
    # pgsql
    (
        Pgsql(),
        [STARTUP, b"R\0\0\0\x08\0\0\0\0S\0\0\0\x08a\0b\0Z\0\0\0\x05I"],
        up("WHERE lets xenlb in"),
    ),
    (
        Pgsql(),
        [STARTUP, b"R\0\0\0\x08\0\0\0\0" + error_of_postgresql("53300", "too many")],
        down('expected a session with WHERE, got 53300 "too many"'),
    ),
    (
        Pgsql(),
        [STARTUP, b"R\0\0\0\x08\0\0\0\0", b"S\0\0\0\x08a\0b\0" * 200],
        down("expected at most 100 messages from WHERE, got more"),
    ),
    (
        Pgsql(),
        [STARTUP, error_of_postgresql("57P03", "the database system is starting up")],
        down('expected a session with WHERE, got 57P03 "the database system is starting up"'),
    ),
    (
        Pgsql(),
        [STARTUP, error_of_postgresql("28P01", "no")],
        up('WHERE answers 28P01 "no"'),
    ),
    # mysql
    (
        Mysql(),
        [packet(0, MYSQL_GREETING), MYSQL_LOGIN, packet(2, b"\0\0\0\2\0\0\0")],
        up("WHERE lets xenlb in"),
    ),
    *(refused_log_in(code) for code in (1044, 1045, 1251, 1698, 1862, 3118, 3159, 4151)),
    (
        Mysql(),
        [packet(0, b"\xff" + (1130).to_bytes(2, "little") + b"Host 'h' is not allowed")],
        up("WHERE answers 1130 \"Host 'h' is not allowed\""),
    ),
    (
        Mysql(),
        [packet(0, b"\xff" + (1129).to_bytes(2, "little") + b"Host 'h' is blocked")],
        down("expected the greeting from WHERE, got error 1129 \"Host 'h' is blocked\""),
    ),
    (
        Mysql(),
        [packet(0, MYSQL_GREETING), MYSQL_LOGIN, packet(2, error_of_mysql(1203, "many"))],
        down('expected the answer to the log-in from WHERE, got error 1203 "many"'),
    ),
    (
        Mysql(user="xenlb"),
        [packet(0, b"\xff\x10\x04Too many connections")],
        down('expected the greeting from WHERE, got error 1040 "Too many connections"'),
    ),
    (
        Mysql(user="xenlb"),
        [packet(0, MYSQL_GREETING), MYSQL_LOGIN, packet(2, b"\xff\x15\x04#28000Access denied")],
        down('expected the answer to the log-in from WHERE, got error 1045 "Access denied"'),
    ),
    (
        Mysql(user="xenlb"),
        [
            packet(0, MYSQL_GREETING),
            MYSQL_LOGIN,
            packet(2, b"\xfemysql_native_password\0" + b"1" * 20 + b"\0"),
            Hear(count=4),
            packet(4, b"\0\0\0\2\0\0\0"),
        ],
        up("WHERE lets xenlb in"),
    ),
    # A challenge that is not answered would leave the log-in undecided, which counts.
    (
        Mysql(),
        [
            *(packet(0, MYSQL_GREETING), MYSQL_LOGIN),
            *(packet(2, b"\xfedialog\0\x04Password: "), Hear(count=4)),
            *(packet(4, b"\x01\x04Once more: "), Hear(count=4)),
            packet(6, error_of_mysql(1045, "Access denied")),
        ],
        up('WHERE answers 1045 "Access denied"'),
    ),
    (
        Mysql(user="xenlb"),
        [packet(0, MYSQL_GREETING), MYSQL_LOGIN, packet(2, b"\x01\x03"), packet(3, b"\0\0\0")],
        up("WHERE lets xenlb in"),
    ),
    (
        Mysql(user="xenlb"),
        (packet(0, MYSQL_GREETING), MYSQL_LOGIN, *(packet(2, b"\x01\x04"), Hear(count=4)) * 10),
        down('expected xenlb to be let in from WHERE, got "\\x01\\x04"'),
    ),
]


@pytest.mark.parametrize(("asks", "script", "expected"), WRONG)
def test_replies_of_servers(asks: Asks, script: Script, expected: Answer) -> None:
    answer, _ = answer_of(asks, script, timeout=0.5 if Hang() in script else 5.0)
    assert answer == expected


def test_the_request_of_http() -> None:
    script: Script = [*REQUEST, b"HTTP/1.1 204 No Content\r\n\r\n"]
    asks = Http(method="HEAD", path="/health?x=1", host="www.example.org")
    answer, server = answer_of(asks, script)
    assert answer == up("WHERE answers 204 No Content")
    lines = server.heard.decode().splitlines()
    assert lines[0] == "HEAD /health?x=1 HTTP/1.1"
    assert "Host: www.example.org" in lines
    assert any(line.startswith("User-Agent: xenlb/") for line in lines)
    _, server = answer_of(Http(), script, address="::1")
    assert f"Host: [::1]:{server.port}".encode() in server.heard


def test_an_invalid_request_is_no_verdict() -> None:
    answer, _ = answer_of(Http(host="a\r\nb"), [])
    assert answer.up is None
    assert answer.detail.startswith("this host cannot probe WHERE: its request is no HTTP: ")


@cache
def starttls_talks() -> dict[str, tuple[type[Smtp | Imap | Pop3], Script, Script, str]]:
    """Return class, script before TLS, script in TLS, and detail."""
    return {
        "smtp": (
            Smtp,
            (b"220 x\r\n", LINE, b"250 STARTTLS\r\n", LINE, b"220 go\r\n"),
            (LINE, b"250 x\r\n", LINE, b"221 bye\r\n"),
            "WHERE answers EHLO with 250",
        ),
        "imap": (
            Imap,
            (b"* OK x\r\n", LINE, b"* CAPABILITY\r\na OK go\r\n"),
            (LINE, b"* BYE\r\nb OK\r\n"),
            "WHERE greets",
        ),
        "pop3": (
            Pop3,
            (b"+OK\r\n", LINE, b"+OK go\r\n"),
            (LINE, b"+OK bye\r\n"),
            "WHERE greets",
        ),
    }


@pytest.mark.parametrize("name", ["smtp", "imap", "pop3"])
def test_starttls(name: str) -> None:
    kind, before, after, detail = starttls_talks()[name]
    made = certificates()
    trust = Tls(name=NAME, ca_file=made.ca)
    answer, server = answer_of(kind(starttls=trust), (*before, StartTls(context=made.good), *after))
    assert answer == up(detail)
    assert server.polite == [True]
    answer, _ = answer_of(kind(starttls=trust), [*before, StartTls(context=made.expired), *after])
    assert answer == down("expected a valid certificate from WHERE, got certificate has expired")


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (Http, "http"),
        (Smtp, "smtp"),
        (Imap, "imap"),
        (Pop3, "pop3"),
        (Ldap, "ldap"),
        (Redis, "redis"),
    ],
)
def test_tls_from_the_beginning(
    kind: type[Http | Smtp | Imap | Pop3 | Ldap | Redis], name: str
) -> None:
    made = certificates()
    asks = kind(tls=Tls(name=NAME, ca_file=made.ca))
    answer, server = answer_of(asks, TALKS[name].script, tls=made.good)
    assert answer == up(TALKS[name].detail)
    assert server.polite == [True]
    answer, _ = answer_of(asks, TALKS[name].script, tls=made.expired)
    assert answer == down("expected a valid certificate from WHERE, got certificate has expired")
