"""The agent check: HAProxy's words, and other answers."""

import asyncio
import contextlib
from collections.abc import Callable

import pytest

from tests.unit.health.datagrams import target
from xenlb.health.probes.agent import LONGEST, parse_state
from xenlb.health.registry import run_probe
from xenlb.health.transport.result import Answer, answer_budget
from xenlb.model.checks import Agent


@pytest.mark.parametrize(
    ("line", "up", "share"),
    [
        (b"up\n", True, None),
        (b"ready\r\n", True, None),
        (b"UP 75%\n", True, 0.75),
        (b"75%", True, 0.75),
        (b"up,50%,maxconn:30\n", True, 0.5),
        (b"0%\n", True, 0.0),
        (b"250%\n", True, 2.5),
        (b"up\t75%\n", True, 0.75),
        (b"\tready\t,\t50%\t# half\n", True, 0.5),
        (b"up\x0b75%\x0c\n", True, 0.75),
        (b"up " + b"x" * 100 + b" 75%\n", True, 0.75),
        (b"up \x1b[1m 75%\n", True, 0.75),
        (b"down\n", False, None),
        (b"up\tdown\n", False, None),
        (b"up 75% stopped\n", False, None),
        (b"fail#disk is full\n", False, None),
        (b"up # down the hill\n", True, None),
        (b"", False, None),
        (b" \t\r\n", False, None),
        (b"maxconn:30\n", None, None),
        (b"7 5 %\n", None, None),
        (b"\xff\xfe\x00", None, None),
        (b"# all is well\n", None, None),
        ("٧٥%\n".encode(), None, None),
    ],
)
def test_states_of_the_agent_check(line: bytes, up: bool | None, share: float | None) -> None:
    answer = parse_state(line, "a")
    assert (answer.up, answer.share, answer.declines) == (up, share, False)


@pytest.mark.parametrize("line", [b"drain", b"drain 75%\n", b"75% maint\n", b"up maint\n"])
def test_drain_and_maint_are_up_and_decline(line: bytes) -> None:
    answer = parse_state(line, "a")
    assert (answer.up, answer.declines) == (True, True)


def test_the_reason_is_in_the_detail() -> None:
    answer = parse_state(b"down # disk \x1b[31mfull\n", "10.0.0.1 port 9")
    assert answer == Answer(
        up=False, detail="10.0.0.1 port 9 says that it is down (disk \\x1b[31mfull)"
    )
    answer = parse_state(b"HTTP/1.0 400 Bad request\n", "10.0.0.1 port 9")
    assert answer == Answer(
        up=None,
        detail='expected up, down or a share from 10.0.0.1 port 9, got "HTTP/1.0 400 Bad request"',
    )


def test_details_are_printable_and_short() -> None:
    assert parse_state(b"up\t75%\x1b[2J\n", "a").detail == "a says up 75%\\x1b[2J"
    assert len(parse_state(b"up " + b"x" * 200, "a").detail) < 100


def said(talk: Callable[[bytes], list[bytes]], asks: Agent) -> Answer:
    """Return the probe's answer for a server that sends these pieces."""

    async def main() -> Answer:
        served = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            heard = await reader.readexactly(len(asks.send))
            with contextlib.suppress(OSError):
                for piece in talk(heard):
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0.01)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
            served.set()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server, asyncio.timeout(20):
            answer = await run_probe(
                target(asks, server.sockets[0].getsockname()[1]), answer_budget()
            )
            await served.wait()
            return answer

    return asyncio.run(main())


def test_send_and_an_answer_in_pieces() -> None:
    answer = said(
        lambda heard: [b"u", b"p 4", b"0%\n"] if heard == b"web\n" else [], Agent(send="web\n")
    )
    assert (answer.up, answer.share) == (True, 0.4)


def test_bytes_beyond_ascii_are_sent_as_they_are() -> None:
    assert said(lambda heard: [b"up\n" if heard == b"\xff" else b"down\n"], Agent(send="\xff")).up


def test_a_line_without_its_end() -> None:
    assert said(lambda _: [b"drain"], Agent()).declines


def test_a_line_that_does_not_end() -> None:
    answer = said(lambda _: [b"x" * LONGEST, b"up\n"], Agent())
    assert not answer.up
    assert len(answer.detail) < 160


def test_refused() -> None:
    async def main() -> Answer:
        server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        server.close()
        await server.wait_closed()
        return await run_probe(target(Agent(), port), answer_budget())

    answer = asyncio.run(main())
    assert not answer.up
    assert answer.detail.startswith("connection refused by 127.0.0.1 port ")
