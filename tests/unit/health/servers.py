"""Servers for the probes: scripts on loopback, in the test's own loop, with TLS or without.

A script is a list of steps: bytes are sent, a Hear reads input of the client. At its end the server
closes the connection, and records how the client does.
"""

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address

from xenlb.health.registry import run_probe
from xenlb.health.transport.result import Answer, answer_budget, over_budget, timed_out
from xenlb.model.checks import Asks
from xenlb.model.settings import Check
from xenlb.model.target import Target
from xenlb.untrusted.budget import BudgetSpent


@dataclass(frozen=True, slots=True, kw_only=True)
class Hear:
    """Read a line, or so many bytes, whatever they are."""

    count: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StartTls:
    context: ssl.SSLContext


@dataclass(frozen=True, slots=True, kw_only=True)
class Hang:
    """Send nothing more until the client closes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HangUp:
    """Close without waiting."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reset:
    """Close with a reset, as a server does that has unread input."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endless:
    """Send this again and again until the client closes."""

    words: bytes


LINE = Hear()
Step = bytes | Hear | StartTls | Hang | HangUp | Reset | Endless
Script = Sequence[Step]


@dataclass(slots=True, kw_only=True)
class Server:
    port: int = 0
    heard: bytes = b""
    # How the client ended: with a FIN, or with a reset.
    polite: list[bool] = field(default_factory=list)
    under_way: int = 0


async def _play(
    server: Server, script: Script, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    for step in script:
        match step:
            case bytes():
                writer.write(step)
                await writer.drain()
            case Hear(count=None):
                server.heard += await reader.readline()
            case Hear(count=int(count)):
                server.heard += await reader.readexactly(count)
            case StartTls(context=context):
                await writer.start_tls(context)
            case Hang():
                server.heard += await reader.read()
            case HangUp():
                return
            case Reset():
                linger = struct.pack("ii", 1, 0)
                writer.get_extra_info("socket").setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, linger
                )
                return
            case Endless(words=words):
                while True:
                    writer.write(words)
                    await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()
        server.heard += await reader.read()
    else:  # with TLS there is no half of an end
        server.heard += await reader.read(1 << 16)
    server.polite.append(True)


@contextlib.asynccontextmanager
async def serving(
    script: Script, *, tls: ssl.SSLContext | None = None, address: str = "127.0.0.1"
) -> AsyncIterator[Server]:
    server = Server()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server.under_way += 1
        try:
            await _play(server, script, reader, writer)
        except (ConnectionError, ssl.SSLError, asyncio.IncompleteReadError):
            server.polite.append(False)
        finally:
            server.under_way -= 1
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    listener = await asyncio.start_server(handle, address, 0, ssl=tls)
    server.port = listener.sockets[0].getsockname()[1]
    async with listener:
        yield server
    others = asyncio.all_tasks() - {asyncio.current_task()}
    await asyncio.wait_for(asyncio.gather(*others, return_exceptions=True), 5)


def target(asks: Asks, port: int, *, address: str = "127.0.0.1", timeout: float = 5.0) -> Target:
    check = Check(type="test", asks=asks, timeout=timeout, interval=60.0)
    return Target(check=check, address=ip_address(address), port=port)


async def asked(target: Target) -> Answer:
    """Run a probe as the runner does."""
    try:
        async with asyncio.timeout(target.check.timeout):
            return await run_probe(target, answer_budget())
    except TimeoutError as late:
        return timed_out(target, late)
    except BudgetSpent as spent:
        return over_budget(target, spent)


def answer_of(
    asks: Asks,
    script: Script,
    *,
    tls: ssl.SSLContext | None = None,
    address: str = "127.0.0.1",
    timeout: float = 5.0,
) -> tuple[Answer, Server]:
    """Return the probe's answer for a server with that script; its address and port are WHERE."""

    async def main() -> tuple[Answer, Server]:
        async with serving(script, tls=tls, address=address) as server:
            answer = await asked(target(asks, server.port, address=address, timeout=timeout))
        detail = answer.detail.replace(f"{address} port {server.port}", "WHERE")
        return Answer(
            up=answer.up, detail=detail, share=answer.share, declines=answer.declines
        ), server

    return asyncio.run(main())


def up(detail: str) -> Answer:
    return Answer(up=True, detail=detail)


def down(detail: str) -> Answer:
    return Answer(up=False, detail=detail)
