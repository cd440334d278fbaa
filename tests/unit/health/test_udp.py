"""The udp probe against a server of the test's own."""

import asyncio

import pytest

from tests.unit.director.netns import in_own_network
from tests.unit.health.datagrams import answering, asked, closed_port, target
from tests.unit.health.peer import PEER, PEER6, peer
from tests.unit.health.virtual import run
from xenlb.health.registry import run_probe
from xenlb.health.transport.result import Answer, answer_budget
from xenlb.model.checks import Udp


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_the_expected_answer_is_up(address: str) -> None:
    asks = Udp(send="ping\n", expect="^pong [0-9]+$")
    answer = asked(asks, lambda data: [b"pong 7" if data == b"ping\n" else b"what?"], address)
    assert answer == Answer(up=True, detail=f"{address} port PORT answers as expected")


def test_bytes_beyond_ascii_are_sent_as_they_are() -> None:
    asks = Udp(send="\xff\xfe", expect="^pong$")
    answer = asked(asks, lambda data: [b"pong" if data == b"\xff\xfe" else b"what?"])
    assert answer == Answer(up=True, detail="127.0.0.1 port PORT answers as expected")


def test_an_unexpected_answer_is_down() -> None:
    answer = asked(Udp(send="ping", expect="pong"), lambda _: [b"\x1b[2Jbusy\nmore"])
    assert answer == Answer(
        up=False, detail='expected "pong" from 127.0.0.1 port PORT, got "\\x1b[2Jbusy"'
    )


def test_without_expect_silence_is_up() -> None:
    answer = asked(Udp(send="log line"), lambda _: (), timeout=0.2)
    assert answer == Answer(up=True, detail="127.0.0.1 port PORT does not refuse datagrams")


def test_without_expect_any_answer_is_up() -> None:
    answer = asked(Udp(), lambda _: [b"\xff"], timeout=600)
    assert answer == Answer(up=True, detail="127.0.0.1 port PORT answers")


@pytest.mark.parametrize("expect", ["", "pong"])
def test_a_closed_port_is_down_at_once(expect: str) -> None:
    port = closed_port()
    probe = run_probe(target(Udp(send="ping", expect=expect), port, timeout=600), answer_budget())
    answer = asyncio.run(asyncio.wait_for(probe, 60))
    assert answer == Answer(up=False, detail=f"connection refused by 127.0.0.1 port {port}")


def test_an_answer_with_an_endless_search_is_down() -> None:
    answer = asked(Udp(send="x", expect="(a*)*b"), lambda _: [b"a" * 9000])
    assert answer.up is False
    assert "got what takes too long to search" in answer.detail


def test_a_port_that_has_refused_is_up_after_three_silences() -> None:
    """A datagram every five seconds, as the agent sends them."""

    async def main() -> list[bool | None]:
        port = closed_port()
        asks = target(Udp(send="x"), port, timeout=1.0)
        said = [(await run_probe(asks, answer_budget())).up for _ in range(2)]
        async with answering(lambda _: (), port=port):
            for _ in range(4):
                await asyncio.sleep(5)
                said.append((await run_probe(asks, answer_budget())).up)
        return said

    assert run(main()) == [False, False, False, False, True, True]


def test_an_answer_after_a_refusal_is_up_at_once() -> None:
    async def main() -> list[bool | None]:
        port = closed_port()
        asks = target(Udp(send="x"), port, timeout=1.0)
        said = [(await run_probe(asks, answer_budget())).up]
        async with answering(lambda _: [b"here"], port=port):
            said.append((await run_probe(asks, answer_budget())).up)
        return said

    assert asyncio.run(main()) == [False, True]


@pytest.mark.parametrize("address", [PEER, PEER6])
@in_own_network
def test_of_twenty_dead_ports_none_is_up(address: str) -> None:
    """The kernel's own limit: it refuses six at once, then one a second."""
    dead = [target(Udp(), port, address, timeout=0.4) for port in range(2001, 2021)]

    async def main() -> list[bool | None]:
        rounds = [
            await asyncio.gather(*(run_probe(each, answer_budget()) for each in dead))
            for _ in range(4)
        ]
        return [answer.up for answers in rounds for answer in answers]

    with peer():
        said = asyncio.run(main())
        assert True not in said
        assert said.count(False) >= 6


@in_own_network
def test_a_live_port_beside_a_dead_one_is_up() -> None:
    with peer(listens=2001):
        asks = [target(Udp(), port, PEER, timeout=3.0) for port in (2001, 2002)]

        async def main() -> list[bool | None]:
            return [
                answer.up
                for answer in await asyncio.gather(
                    *(run_probe(each, answer_budget()) for each in asks)
                )
            ]

        assert asyncio.run(main()) == [True, False]
