"""The TCP port at which guests report their shutdown, if they have no other way to report it.

One conversation a connection, in lines:

    agent   xenlb 1 NONCE               32 hexadecimal digits, never used again
    guest   UUID WORD CHECKSUM          leaving or staying; report_checksum()
    agent   ok                          or it closes the connection

Guests are not trusted. The secret of a guest permits reports about that guest only. Connections,
the length and time of a conversation, and lines of the log are limited for each peer.
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

from xenlb.control.accept import accept_connections
from xenlb.control.guest_limits import ConnectionSlots, GuestPeer, PeerRates, parse_peer
from xenlb.control.guest_secrets import KeyFileError, report_checksum
from xenlb.ipvs import text
from xenlb.ipvs.table import IPAddress

log = logging.getLogger(__name__)

WORDS = frozenset({"leaving", "staying"})
TIMEOUT = 5.0  # seconds for a whole conversation
LINE_LIMIT = 256  # bytes; a report has 110
BACKLOG = 4096  # the kernel limits it to net.core.somaxconn
# Some twenty thousand connections a second at most, at a third of the loop's time.
BATCH, PAUSE = 64, 0.002
RETRY = (1.0, 30.0)  # seconds until the next attempt to listen: at first, at most
# <linux/in6.h>; Python has a name for neither.
IP_FREEBIND, IPV6_FREEBIND = 15, 78

Endpoint = tuple[IPAddress, int]


class _RefusedReport(Exception):
    """The report is refused; the message is the reason, for the log."""


class GuestReportServer:
    """Serves at the endpoint given to `listen()`, while `run()` runs.

    `secret_of` returns the secret of any UUID's guest, or raises KeyFileError. `on_report` is
    called with an authenticated guest and its word; false means that no such guest runs here.
    `problem` is why reports cannot be received now, or "".
    """

    def __init__(
        self,
        secret_of: Callable[[UUID], str],
        on_report: Callable[[UUID, str], Awaitable[bool] | bool],
        *,
        timeout: float = TIMEOUT,
        retry: tuple[float, float] = RETRY,
    ) -> None:
        self._secret_of = secret_of
        self._on_report = on_report
        self._timeout = timeout
        self._retry = retry
        self._endpoint: Endpoint | None = None
        self._endpoint_changed = asyncio.Event()
        self._clients: set[asyncio.Task[None]] = set()
        self._slots = ConnectionSlots[asyncio.Task[None]]()
        self._rates = PeerRates()
        self.problem = ""

    def listen(self, endpoint: Endpoint | None) -> None:
        """Listen at another endpoint, or at none; conversations that have begun continue."""
        if endpoint != self._endpoint:
            self._endpoint = endpoint
            self._endpoint_changed.set()

    async def run(self) -> None:
        """Serve until cancelled."""
        try:
            while True:
                self._endpoint_changed.clear()
                changed = asyncio.create_task(self._endpoint_changed.wait())
                serving = asyncio.create_task(self._serve(self._endpoint))
                try:
                    await asyncio.wait({changed, serving}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for task in (changed, serving):
                        task.cancel()
                    await asyncio.wait({changed, serving})
                if not serving.cancelled():
                    serving.result()
        finally:
            for client in self._clients:
                client.cancel()
            await asyncio.gather(*self._clients, return_exceptions=True)

    async def _serve(self, endpoint: Endpoint | None) -> None:
        self.problem = ""
        if endpoint is None:
            await asyncio.Event().wait()
            return
        where = text.endpoint(*endpoint)
        pause, longest_pause = self._retry
        while True:
            try:
                listening = _listening_socket(endpoint)
            except OSError as error:
                problem = f"cannot listen for guests at {where}: {error.strerror or error}"
                if not self.problem:
                    log.warning("%s; trying again", problem)
                self.problem = problem
                await asyncio.sleep(pause)
                pause = min(2 * pause, longest_pause)
                continue
            if self.problem:
                log.info("listening for guests at %s", where)
                self.problem = ""
            with listening:
                # Refused connections are accepted and reset at once: the queue is shared by all.
                await accept_connections(listening, self._take, batch=BATCH, pause=PAUSE)

    def _take(self, connection: socket.socket, address: tuple[str, int]) -> None:
        peer = parse_peer(address[0])
        refusal = self._rates.refusal(peer, time.monotonic())
        if refusal:
            _reset(connection)
            self._log_refusal(peer, refusal)
            return
        if (evicted := self._slots.make_room(peer)) is not None:
            task, evicted_peer = evicted
            task.cancel()
            self._log_refusal(evicted_peer, "it was silent longest when another guest needed room")
        connection.setblocking(False)
        task = asyncio.create_task(self._converse(connection, peer), name=f"guest {address[0]}")
        self._clients.add(task)
        self._slots.take(task, peer)
        task.add_done_callback(partial(self._forget, connection))

    def _forget(self, connection: socket.socket, task: asyncio.Task[None]) -> None:
        connection.close()  # a task that was cancelled before it began has not closed it
        self._clients.discard(task)
        self._slots.release(task)

    async def _converse(self, connection: socket.socket, peer: GuestPeer) -> None:
        writer = None
        try:
            async with asyncio.timeout(self._timeout):
                reader, writer = await asyncio.open_connection(sock=connection, limit=LINE_LIMIT)
                uuid, word = await self._receive_report(reader, writer)
                known = self._on_report(uuid, word)
                if not (await known if isawaitable(known) else known):
                    raise _RefusedReport(f"no guest {uuid} runs here")
                writer.write(b"ok\n")
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except TimeoutError:
            self._log_refusal(peer, "it took too long")
        except _RefusedReport as refusal:
            self._log_refusal(peer, str(refusal))
        except OSError as error:
            self._log_refusal(peer, error.strerror or str(error))
        except Exception as error:  # a bug that one guest triggers must not end the others
            if self._rates.complaint(peer, time.monotonic()) is not None:
                log.exception("the report of the guest at %s failed", peer.address)
            log.debug("the report of the guest at %s failed: %r", peer.address, error)
        finally:
            if writer is not None:
                writer.transport.abort()

    async def _receive_report(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> tuple[UUID, str]:
        nonce = secrets.token_hex(16)
        writer.write(f"xenlb 1 {nonce}\n".encode())
        await writer.drain()
        try:
            line = await reader.readuntil(b"\n")
        except asyncio.IncompleteReadError:
            raise _RefusedReport("it closed the connection") from None
        except asyncio.LimitOverrunError:
            raise _RefusedReport("its report is too long") from None
        try:
            uuid_text, word, checksum = line.decode("ascii").removesuffix("\n").split(" ")
            uuid = UUID(uuid_text)
        except ValueError:
            raise _RefusedReport("its report is malformed") from None
        if word not in WORDS or str(uuid) != uuid_text:
            raise _RefusedReport("its report is malformed")
        try:
            expected = report_checksum(nonce, secret=self._secret_of(uuid), word=word)
        except KeyFileError as error:
            raise _RefusedReport(f"this host's key cannot be used: {error.message}") from None
        if not hmac.compare_digest(expected.encode(), checksum.encode()):
            raise _RefusedReport(
                f"it does not have the secret of guest {uuid}; render that guest's files again"
            )
        return uuid, word

    def _log_refusal(self, peer: GuestPeer, reason: str) -> None:
        """Log at a limited rate: a guest must neither fill the log nor hide other guests' lines."""
        log.debug("the guest at %s was refused: %s", peer.address, reason)
        left_out = self._rates.complaint(peer, time.monotonic())
        if left_out is not None:
            more = f" ({left_out} more refusals since its last such line)" * (left_out > 0)
            log.warning("the guest at %s was refused: %s%s", peer.address, reason, more)


def _listening_socket(endpoint: Endpoint) -> socket.socket:
    """A listening socket, also at an address that does not exist yet.

    Bridges come up late. With FREEBIND the socket serves whenever its address exists.
    """
    address, port = endpoint
    is_ipv6 = isinstance(address, IPv6Address)
    listening = socket.socket(
        socket.AF_INET6 if is_ipv6 else socket.AF_INET,
        socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC,
    )
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with suppress(OSError):
            if is_ipv6:
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
    """Close with a reset, so that the kernel keeps no state of the connection."""
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
