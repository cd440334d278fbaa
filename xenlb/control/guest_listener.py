"""The TCP port where guests say that they leave or stay, which have no other way to say it.

One conversation a connection, in lines:

    agent   xenlb 1 NONCE               32 hexadecimal digits, never used again
    guest   UUID WORD CHECKSUM          leaving or staying; secrets.answer_to()
    agent   ok                          or it closes

Guests are not trusted: who has a guest's secret can say a word of that guest, and nothing else.
Everything they may use of the agent is bounded: conversations and places of each peer
(listener_limits.py), length and time of a conversation, lines of the log. What a word means is not
known here.
"""

import asyncio
import hmac
import logging
import secrets
import socket
import struct
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from inspect import isawaitable
from ipaddress import IPv6Address
from uuid import UUID

from xenlb.control.guest_secrets import KeyFileError, answer_to
from xenlb.control.listener_limits import ConnectionLimits, Peer, PeerRates, peer_of
from xenlb.ipvs.table import IPAddress

log = logging.getLogger(__name__)

WORDS = frozenset({"leaving", "staying"})
PATIENCE = 5.0  # seconds for a whole conversation
LINE_LIMIT = 256  # bytes; an answer has 110
BACKLOG = 4096  # the kernel takes no more than net.core.somaxconn
# Connections that are taken, or hung up on, in one go, and the seconds until the next: some
# twenty thousand a second at most, at a third of the loop's time.
TOGETHER, BETWEEN = 64, 0.002
RETRY = (1.0, 30.0)  # seconds until it is tried again to listen: at first, at most
# <linux/in6.h>; Python has a name for neither.
IP_FREEBIND, IPV6_FREEBIND = 15, 78

Where = tuple[IPAddress, int]


class _Refused(Exception):
    """The guest is not heard; says why, for the log."""


class GuestListener:
    """Listens where `listen()` was told to, while `run()` runs.

    `secret_of` gives the secret of a guest, any UUID's, or raises KeyFileError. `heard` is called
    with a guest and its word once it has proved to be that guest; False means that no such guest
    runs here. `problem` is why nobody can be heard now, "" if there is nothing wrong.
    """

    def __init__(
        self,
        secret_of: Callable[[UUID], str],
        heard: Callable[[UUID, str], Awaitable[bool] | bool],
        *,
        patience: float = PATIENCE,
        retry: tuple[float, float] = RETRY,
    ) -> None:
        self._secret_of = secret_of
        self._heard = heard
        self._patience = patience
        self._retry = retry
        self._where: Where | None = None
        self._moved = asyncio.Event()
        self._clients: set[asyncio.Task[None]] = set()
        self._places = ConnectionLimits[asyncio.Task[None]]()
        self._rates = PeerRates()
        self.problem = ""

    def listen(self, where: Where | None) -> None:
        """From now on there, or nowhere; conversations that have begun go on."""
        if where != self._where:
            self._where = where
            self._moved.set()

    async def run(self) -> None:
        """Until it is cancelled."""
        try:
            while True:
                self._moved.clear()
                moved = asyncio.create_task(self._moved.wait())
                serving = asyncio.create_task(self._serve(self._where))
                try:
                    await asyncio.wait({moved, serving}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for task in (moved, serving):
                        task.cancel()
                    await asyncio.wait({moved, serving})
                if not serving.cancelled():
                    serving.result()
        finally:
            for client in self._clients:
                client.cancel()
            await asyncio.gather(*self._clients, return_exceptions=True)

    async def _serve(self, where: Where | None) -> None:
        self.problem = ""
        if where is None:
            await asyncio.Event().wait()
            return
        pause, most = self._retry
        while True:
            try:
                listening = _bound(where)
            except OSError as error:
                problem = f"cannot listen for guests at {shown(where)}: {error.strerror or error}"
                if not self.problem:
                    log.warning("%s; it is tried again", problem)
                self.problem = problem
                await asyncio.sleep(pause)
                pause = min(2 * pause, most)
                continue
            if self.problem:
                log.info("guests are heard at %s now", shown(where))
                self.problem = ""
            with listening:
                await self._accept(listening)

    async def _accept(self, listening: socket.socket) -> None:
        """Whoever connects too often is hung up on as fast as the kernel gives it: what waits for
        that waits in one queue with all others."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                self._take(*await loop.sock_accept(listening))
                for _ in range(TOGETHER):
                    self._take(*listening.accept())
            except BlockingIOError:
                await asyncio.sleep(0)
                continue
            except OSError as error:  # no file descriptors, or a client that is gone already
                log.debug("a guest's connection failed: %s", error)
                await asyncio.sleep(0.1)
                continue
            await asyncio.sleep(BETWEEN)

    def _take(self, connection: socket.socket, where: tuple[str, int]) -> None:
        peer = peer_of(where[0])
        why = self._rates.refusal(peer, time.monotonic())
        if why:
            _reset(connection)
            self._complain(peer, why)
            return
        if (left := self._places.make_room(peer)) is not None:
            task, whose = left
            task.cancel()
            self._complain(whose, "it made room for another, as the longest silent")
        connection.setblocking(False)
        task = asyncio.create_task(self._converse(connection, peer), name=f"guest {where[0]}")
        self._clients.add(task)
        self._places.take(task, peer)
        task.add_done_callback(partial(self._left, connection))

    def _left(self, connection: socket.socket, task: asyncio.Task[None]) -> None:
        connection.close()  # a task that was cancelled before it began has not done so
        self._clients.discard(task)
        self._places.leave(task)

    async def _converse(self, connection: socket.socket, peer: Peer) -> None:
        writer = None
        try:
            async with asyncio.timeout(self._patience):
                reader, writer = await asyncio.open_connection(sock=connection, limit=LINE_LIMIT)
                uuid, word = await self._ask(reader, writer)
                answer = self._heard(uuid, word)
                if not (await answer if isawaitable(answer) else answer):
                    raise _Refused(f"no guest {uuid} runs here")
                writer.write(b"ok\n")
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except TimeoutError:
            self._complain(peer, "it took too long")
        except _Refused as refused:
            self._complain(peer, str(refused))
        except OSError as error:
            self._complain(peer, error.strerror or str(error))
        except Exception as error:  # a fault of ours with one guest must not end the others
            if self._rates.complaint(peer, time.monotonic()) is not None:
                log.exception("the word of the guest at %s was not taken", peer.address)
            log.debug("the word of the guest at %s was not taken: %r", peer.address, error)
        finally:
            if writer is not None:
                writer.transport.abort()

    async def _ask(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> tuple[UUID, str]:
        nonce = secrets.token_hex(16)
        writer.write(f"xenlb 1 {nonce}\n".encode())
        await writer.drain()
        try:
            line = await reader.readuntil(b"\n")
        except asyncio.IncompleteReadError:
            raise _Refused("it hung up") from None
        except asyncio.LimitOverrunError:
            raise _Refused("its answer is too long") from None
        try:
            uuid_text, word, checksum = line.decode("ascii").removesuffix("\n").split(" ")
            uuid = UUID(uuid_text)
        except ValueError:
            raise _Refused("its answer is not understood") from None
        if word not in WORDS or str(uuid) != uuid_text:
            raise _Refused("its answer is not understood")
        try:
            right = answer_to(nonce, secret=self._secret_of(uuid), word=word)
        except KeyFileError as error:
            raise _Refused(f"this host's key cannot be used: {error.message}") from None
        if not hmac.compare_digest(right.encode(), checksum.encode()):
            raise _Refused(f"it has not the secret of guest {uuid}; render that guest anew")
        return uuid, word

    def _complain(self, peer: Peer, why: str) -> None:
        """Into the log now and then: a guest must not fill it, nor hide what is told of others."""
        log.debug("the guest at %s was refused: %s", peer.address, why)
        left_out = self._rates.complaint(peer, time.monotonic())
        if left_out is not None:
            more = f" ({left_out} others of it since the last such line)" * (left_out > 0)
            log.warning("the guest at %s was refused: %s%s", peer.address, why, more)


def shown(where: Where) -> str:
    """As the configuration writes it."""
    address, port = where
    return f"[{address}]:{port}" if isinstance(address, IPv6Address) else f"{address}:{port}"


def _bound(where: Where) -> socket.socket:
    """A listening socket, also at an address that is not there yet: bridges come up late, and a
    socket bound so serves from the moment that its address is there, however often it goes."""
    address, port = where
    six = isinstance(address, IPv6Address)
    listening = socket.socket(
        socket.AF_INET6 if six else socket.AF_INET,
        socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC,
    )
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with suppress(OSError):
            if six:
                listening.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)
            else:
                listening.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)
        listening.bind((str(address), port))
        listening.listen(BACKLOG)
    except BaseException:
        listening.close()
        raise
    return listening


def _reset(connection: socket.socket) -> None:
    """Ends it by a reset: the kernel remembers nothing of it."""
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
