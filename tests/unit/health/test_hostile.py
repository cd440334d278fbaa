"""Expensive answers: the loop goes on, the budget ends them, the next probe waits.

No elapsed time is measured, only pieces between two rounds of the loop and the processor's time of
each step.
"""

import asyncio
import gc
import struct
import time
from collections.abc import Awaitable, Iterator

import pytest

from tests.unit.health.datagrams import answering
from tests.unit.health.servers import LINE, Endless, Hang, Script, serving, target
from xenlb.health.pacing import StepScheduler, run_in_steps
from xenlb.health.registry import load_probe, run_probe
from xenlb.health.transport.result import PIECES, SIZE, TIME, Answer, answer_budget
from xenlb.health.transport.stream import IN_A_ROW
from xenlb.model.checks import Agent, Asks, Dns, Http, Imap, Pgsql, Smtp, Tcp, Udp
from xenlb.untrusted.budget import Budget, BudgetSpent

STEP = 0.05  # s of the processor, which the loop may stand for one answer
OK = b"HTTP/1.1 200 OK\r\n"
REQUEST = (LINE,) * 6
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
HOSTILE: dict[str, tuple[Asks, Script]] = {
    "chunks of a byte": (Http(body="zz"), [*REQUEST, CHUNKED, Endless(words=b"1\r\na\r\n" * 999)]),
    "empty headers": (Http(body="zz"), [*REQUEST, OK, Endless(words=b"a:\n" * 999)]),
    "a header that goes on": (
        Http(header=("X", "zz")),
        [*REQUEST, OK + b"X: " + b"x" * 60_000 + b"\r\n", Endless(words=b" \n" * 999)],
    ),
    "equal headers": (
        Http(header=("X", r"(\w+\s?)+$")),
        [*REQUEST, OK + b"X: aaaaaaaaaaaaaaaaaaaaaaaa!\r\n" * 777 + b"\r\n", Hang()],
    ),
    "cheap headers": (
        Http(header=("X", r"(\w+\s?)+$")),
        [*REQUEST, OK + b"X: aaaaaaaaaaaa!\r\n" * 3000 + b"\r\n", Hang()],
    ),
    "a body for the pattern": (
        Http(body=r"([a-z]+\s?)+$"),
        [*REQUEST, OK + b"\r\n" + b"aaaaaaaaaaa!" * 5000],
    ),
    "announcements": (Http(), [*REQUEST, Endless(words=b"HTTP/1.1 103 x\r\na:b\r\n\r\n" * 99)]),
    "a flood": (Tcp(expect="zz"), [Endless(words=b"a" * 65536)]),
    "bait for the pattern": (Tcp(expect="(a|aa)+$"), [Endless(words=b"aaaaaaaaaaaaaaaaaaaaab")]),
    "lines of SMTP": (Smtp(), [Endless(words=b"220-x\r\n" * 999)]),
    "lines of IMAP": (Imap(), [b"* OK\r\n", Endless(words=b"* x\r\n" * 999)]),
    "words of an agent": (Agent(), [Endless(words=b"up,100% " * 999)]),
    "messages of PostgreSQL": (
        Pgsql(),
        [b"R\0\0\0\x08\0\0\0\0", Endless(words=b"S\0\0\0\4" * 999)],
    ),
}


@pytest.fixture(autouse=True)
def _no_garbage_of_other_tests() -> Iterator[None]:
    """A collection goes through all that the process of the tests holds: 0.15 s were seen. The
    agent keeps its own objects out of it (main.py: exempt_from_collection)."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


class Watched(StepScheduler):
    """Records the pieces of an answer between two rounds of the loop, and the time of each step."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[int] = []
        self.steps: list[float] = []
        self._seen = 0, 0.0

    async def wait_turn(self, budget: Budget) -> None:
        pieces, seconds = self._seen
        self.pieces.append(budget.used_pieces - pieces)
        self.steps.append(budget.used_time - seconds)
        self._seen = budget.used_pieces, budget.used_time
        await super().wait_turn(budget)


async def watched(work: Awaitable[Answer], budget: Budget) -> tuple[str, Watched]:
    turns = Watched()
    try:
        return (await run_in_steps(work, budget, turns)).detail, turns
    except BudgetSpent as spent:
        return str(spent), turns


@pytest.mark.parametrize(("asks", "script"), HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_server_does_not_block_the_loop(asks: Asks, script: Script) -> None:
    async def main() -> None:
        async with serving(script) as server:
            asked = target(asks, server.port, timeout=60.0)
            await load_probe(asked)
            budget = answer_budget()
            detail, turns = await watched(run_probe(asked, budget), budget)
        assert max(turns.pieces) <= IN_A_ROW + 1, turns.pieces  # with what was received for them
        assert max(turns.steps) < STEP, turns.steps
        assert "answers" not in detail
        # One step at most goes beyond it.
        assert budget.used_time < TIME + STEP
        assert budget.used_pieces <= PIECES + IN_A_ROW
        assert budget.used_size <= SIZE + 65536

    asyncio.run(main())


def test_the_budget_suffices_for_large_answers() -> None:
    """A page of 64 KiB in chunks of 100 bytes takes a fraction of it."""
    body = b"64\r\n" + b"a" * 98 + b"zz\r\n"
    script: Script = [*REQUEST, CHUNKED + body * 650 + b"0\r\n\r\n"]

    async def main() -> None:
        async with serving(script) as server:
            budget = answer_budget()
            asked = target(Http(body="zz$"), server.port, timeout=60.0)
            detail, _ = await watched(run_probe(asked, budget), budget)
        assert detail.endswith("answers 200 OK")
        assert budget.used_pieces < PIECES / 2

    asyncio.run(main())


def dns_bomb(asked: bytes, size: int) -> bytes:
    """An answer whose records have a name of 126 labels each, by a pointer."""
    name = b"\1a" * 126 + b"\0"
    record = b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 0, 4) + b"\1\2\3\4"
    count = (size - 12 - len(name) - 4) // len(record)
    head = asked[:2] + struct.pack("!HHHHH", 0x8180, 1, count, 0, 0)
    return head + name + struct.pack("!HH", 1, 1) + record * count


@pytest.mark.parametrize("size", [512, 4000, 60_000])
def test_a_slow_dns_message_is_parsed_in_a_thread(size: int) -> None:
    async def main() -> None:
        async with answering(lambda data: [dns_bomb(data, size)] * 20) as port:
            asked = target(Dns(), port, timeout=60.0)
            await load_probe(asked)
            budget = answer_budget()
            began = time.thread_time()
            detail, _ = await watched(run_probe(asked, budget), budget)
            taken = time.thread_time() - began
        assert "answers queries" not in detail
        if size == 512:
            assert taken < 16 * STEP, "each is short"
        else:
            assert taken < STEP, "not in this thread"
        if size > 4096:
            assert f"a datagram of {len(dns_bomb(b'id', size))} bytes" in detail

    asyncio.run(main())


def test_a_datagram_with_an_endless_search() -> None:
    async def main() -> None:
        async with answering(lambda _: [b"aaaaaaaaaaaaaa!" * 4000]) as port:
            asked = target(Udp(send="x", expect=r"(\w+\s?)+$"), port, timeout=60.0)
            budget = answer_budget()
            detail, turns = await watched(run_probe(asked, budget), budget)
        assert "takes too long to search" in detail
        assert max(turns.steps) < STEP
        assert budget.spent

    asyncio.run(main())


def test_an_unread_page_does_not_exceed_the_budget() -> None:
    """Only its status is checked."""

    async def main() -> None:
        script: Script = [*REQUEST, OK + b"\r\n", Endless(words=b"a" * 65536)]
        async with serving(script) as server:
            budget = answer_budget()
            detail, _ = await watched(run_probe(target(Http(), server.port), budget), budget)
        assert detail.endswith("answers 200 OK")
        assert not budget.spent

    asyncio.run(main())
