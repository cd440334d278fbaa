"""The TCP port where guests say that they leave or stay, which have no other way to say it.

One conversation a connection, in lines:

    agent   xenlb 1 NONCE               32 hexadecimal digits, never used again
    guest   UUID WORD CHECKSUM          leaving or staying; secrets.answer_to()
    agent   ok                          or it closes

Guests are not trusted: who has a guest's secret can say a word of that guest, and nothing else.
Everything they may use of the agent is bounded: connections at a time, conversations a second,
length and time of each, lines of the log. What a word means is not known here.
"""

import asyncio
import hmac
import logging
import secrets
import socket
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from inspect import isawaitable
from ipaddress import IPv6Address
from uuid import UUID

from xenlb.control.secrets import answer_to
from xenlb.ipvs.table import IPAddress

log = logging.getLogger(__name__)

WORDS = frozenset({"leaving", "staying"})
PATIENCE = 5.0  # seconds for a whole conversation
LINE_LIMIT = 256  # bytes; an answer has 110
CLIENTS = 64
CLIENTS_OF_PEER = 4
BACKLOG = 128
# Conversations: so many at once, then so many a second. A guest that finds nobody tries again
# every half second for three.
PEER_BURST, PEER_RATE = 20, 2.0
BURST, RATE = 200, 100.0
PEERS = 1024  # addresses whose rate is remembered
COMPLAINT = 60.0  # seconds between two lines of the log about what was refused
RETRY = (1.0, 30.0)  # seconds until it is tried again to listen: at first, at most
# <linux/in6.h>; Python has a name for neither.
IP_FREEBIND, IPV6_FREEBIND = 15, 78

Where = tuple[IPAddress, int]


class Rate:
    """A token bucket: `burst` at once, then `rate` a second."""

    def __init__(self, burst: float, rate: float) -> None:
        self._burst, self._rate = burst, rate
        self._tokens, self._at = burst, 0.0

    def take(self, now: float) -> bool:
        """Is there one, and was it taken?"""
        self._refill(now)
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def borrow(self, now: float) -> float:
        """Takes one, also where there is none: seconds until it is paid back."""
        self._refill(now)
        self._tokens -= 1
        return max(0.0, -self._tokens / self._rate)

    def _refill(self, now: float) -> None:
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now


class _Refused(Exception):
    """The guest is not heard; says why, for the log."""


class GuestListener:
    """Listens where `listen()` was told to, while `run()` runs.

    `secret_of` gives the secret of a guest, any UUID's. `heard` is called with a guest and its
    word once it has proved to be that guest; False means that no such guest runs here.
    `problem` is why nobody can be heard now, "" if there is nothing wrong.
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
        self._clients: dict[asyncio.Task[None], str] = {}
        self._overall = Rate(BURST, RATE)
        self._peers: OrderedDict[str, Rate] = OrderedDict()
        self._refused = 0
        self._complained = -COMPLAINT
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
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, (host, *_) = await loop.sock_accept(listening)
            except OSError as error:  # no file descriptors, or a client that is gone already
                log.debug("a guest's connection failed: %s", error)
                await asyncio.sleep(0.1)
                continue
            connection.setblocking(False)
            why = self._too_much(host)
            if why:
                connection.close()
                self._complain(host, why)
            else:
                task = asyncio.create_task(self._converse(connection, host), name=f"guest {host}")
                self._clients[task] = host
                task.add_done_callback(self._clients.pop)
            # Whoever connects faster than this waits in the kernel, not in the agent's loop.
            await asyncio.sleep(self._overall.borrow(time.monotonic()))

    def _too_much(self, host: str) -> str:
        """Why this peer gets no conversation now; "" if it does."""
        rate = self._peers.pop(host, None) or Rate(PEER_BURST, PEER_RATE)
        self._peers[host] = rate
        if len(self._peers) > PEERS:
            self._peers.popitem(last=False)
        if not rate.take(time.monotonic()):
            return "too many conversations"
        if len(self._clients) >= CLIENTS:
            return "too many guests at a time"
        if sum(each == host for each in self._clients.values()) >= CLIENTS_OF_PEER:
            return "too many connections of it at a time"
        return ""

    async def _converse(self, connection: socket.socket, host: str) -> None:
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
            self._complain(host, "it took too long")
        except _Refused as refused:
            self._complain(host, str(refused))
        except OSError as error:
            self._complain(host, error.strerror or str(error))
        except Exception:  # a fault of ours with one guest must not end the others
            log.exception("the word of the guest at %s was not taken", host)
        finally:
            if writer is not None:
                writer.transport.abort()
            connection.close()

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
        right = answer_to(nonce, secret=self._secret_of(uuid), word=word)
        if not hmac.compare_digest(right.encode(), checksum.encode()):
            raise _Refused(f"it has not the secret of guest {uuid}; render that guest anew")
        return uuid, word

    def _complain(self, host: str, why: str) -> None:
        """Into the log now and then: a guest must not fill it."""
        log.debug("the guest at %s was refused: %s", host, why)
        self._refused += 1
        now = time.monotonic()
        if now - self._complained < COMPLAINT:
            return
        more = f" ({self._refused - 1} others since the last such line)" * (self._refused > 1)
        log.warning("the guest at %s was refused: %s%s", host, why, more)
        self._complained = now
        self._refused = 0


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
