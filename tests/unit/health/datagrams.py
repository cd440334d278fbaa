"""A UDP server on loopback in the test's own loop, with given answers."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from ipaddress import ip_address
from typing import Any

from xenlb.health.registry import run_probe
from xenlb.health.transport.result import Answer, answer_budget
from xenlb.model.checks import Asks
from xenlb.model.settings import Check
from xenlb.model.target import Target

Answers = Callable[[bytes], Iterable[bytes]]


class _Protocol(asyncio.DatagramProtocol):
    def __init__(self, answers: Answers) -> None:
        self._answers = answers
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        assert self._transport
        for answer in self._answers(data):
            self._transport.sendto(answer, addr)


@asynccontextmanager
async def answering(
    answers: Answers, address: str = "127.0.0.1", port: int = 0
) -> AsyncIterator[int]:
    """Yield the port of a server that gives these answers to a datagram."""
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(
        lambda: _Protocol(answers), local_addr=(address, port)
    )
    try:
        yield transport.get_extra_info("sockname")[1]
    finally:
        transport.close()
        await asyncio.sleep(0)


def target(asks: Asks, port: int, address: str = "127.0.0.1", timeout: float = 5.0) -> Target:
    check = Check(type=type(asks).__name__.lower(), asks=asks, timeout=timeout)
    return Target(check=check, address=ip_address(address), port=port)


def asked(asks: Asks, answers: Answers, address: str = "127.0.0.1", timeout: float = 5.0) -> Answer:
    """Return the probe's answer for a server with these answers; its port is PORT."""

    async def main() -> Answer:
        async with answering(answers, address) as port, asyncio.timeout(20):
            answer = await run_probe(target(asks, port, address, timeout), answer_budget())
            return Answer(
                up=answer.up,
                detail=answer.detail.replace(f"port {port}", "port PORT"),
                share=answer.share,
                declines=answer.declines,
            )

    return asyncio.run(main())


def closed_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as closed:
        closed.bind(("127.0.0.1", 0))
        port: int = closed.getsockname()[1]
        return port
