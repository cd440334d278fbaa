"""A connection to a server over TCP, in plain or with TLS, for the probes of line protocols.

The size of a line is limited here, that of the whole answer by its budget. After a few pieces the
loop runs other tasks, even if more input is there.

Sockets and not asyncio's streams: a transport is closed some time after close(), and reads on while
the server answers to STARTTLS.

FACTS

- A socket that is closed with unread input sends a reset, which servers log as an error. With TLS
  1.3 there always is some: tickets that follow the handshake. So the sending side is shut down, and
  input is read until the server closes as well, for FAREWELL at most. The result of the probe is
  not changed by that.
- A server that closes before it has read all input sends a reset after its answer, as scripts
  behind inetd do. Input before the reset can be read all the same, also after a send that failed
  because of it. So a reset is the end of the answer, and an error only if nothing came before it.
- sock_recv does not yield while there is input. So each read yields first, and a server that floods
  does not block the loop.
- The server determines the cost of a handshake: by its key, its chain of certificates, its group. A
  group of 8,192 bits takes 0.15 s. OpenSSL releases the interpreter's lock meanwhile, so replies to
  the server are computed in threads; a few at a time, as the threads are shared.
"""

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TypeVar
from weakref import WeakKeyDictionary

from xenlb.health.transport.certificates import context_of, handshake_failure
from xenlb.health.transport.pattern import SearchTooLong, matches
from xenlb.health.transport.result import Answer, Probe, failed, where
from xenlb.health.transport.sockets import connect, open_socket
from xenlb.model.checks import Tls
from xenlb.model.target import Target
from xenlb.untrusted.budget import Budget, BudgetSpent
from xenlb.untrusted.printable import first_line

PIECE = 4 * 1024
LONGEST_LINE = 2048
# Pieces of an answer before the loop runs other tasks, each some 15 µs.
IN_A_ROW = 32
HANDSHAKES = 2  # threads
FAREWELL = 1.0  # s

A = TypeVar("A")


class Unexpected(Exception):
    """The server does not serve; the message is the answer's detail."""


class ProbeImpossible(Exception):
    """A request that cannot be sent from this host; the message gives the reason."""


@dataclass(slots=True, kw_only=True, eq=False)
class _TlsLayer:
    """TLS on top of the socket: OpenSSL reads from and writes to memory."""

    session: ssl.SSLObject
    incoming: ssl.MemoryBIO
    outgoing: ssl.MemoryBIO


class Stream:
    """One connection to a server."""

    def __init__(self, target: Target, budget: Budget, connection: socket.socket) -> None:
        self.target = target
        self.budget = budget
        self.where = where(target)
        self._loop = asyncio.get_running_loop()
        # The farewell ends well before the runner's timeout, which would replace the result.
        self._farewell_until = self._loop.time() + 0.75 * target.check.timeout
        self._connection = connection
        self._tls: _TlsLayer | None = None
        self._unread = bytearray()
        self._received = False  # any input
        self._in_a_row = 0  # pieces since the loop ran other tasks
        self.ended = False  # the server has ended the connection
        self._reset: ConnectionError | None = None

    async def connect(self) -> None:
        """Connect. Raises OSError."""
        with timeout_note("connection"):
            await connect(self._connection, self.target)

    # --- requests and replies --------------------------------------------------------------------

    async def send(self, data: bytes) -> None:
        """Send. A reset is left to the next read."""
        if self._tls is None:
            await self._write(data)
        else:
            self._tls.session.write(data)
            await self._flush(self._tls)

    async def read_line(self, what: str, *, longest: int = LONGEST_LINE) -> bytes:
        """Read a line, without its end; `what` names it in messages. Raises Unexpected."""
        with timeout_note(what):
            while (end := self._unread.find(b"\n")) < 0:
                if len(self._unread) > longest or not await self._fill():
                    raise self.unexpected(f"a whole line as {what}", bytes(self._unread))
            await self._count_piece()
        if end > longest:
            raise self.unexpected(f"a line of at most {longest} bytes as {what}", "a longer one")
        return self._take(end + 1)[:-1].removesuffix(b"\r")

    async def read_exactly(self, count: int, what: str) -> bytes:
        """Read so many bytes. Raises Unexpected."""
        with timeout_note(what):
            while len(self._unread) < count:
                if not await self._fill():
                    raise self.unexpected(what, bytes(self._unread))
            await self._count_piece()
        return self._take(count)

    async def read_some(self, what: str, *, most: int = PIECE) -> bytes:
        """Read what is there, between one and `most` bytes; none at the connection's end."""
        with timeout_note(what):
            if not self._unread:
                await self._fill()
            await self._count_piece()
        return self._take(most)

    async def start_tls(
        self, tls: Tls, *, layer: _TlsLayer | None = None, after: str | None = None
    ) -> None:
        """Perform the TLS handshake. `after`: the STARTTLS command of the protocol.

        Raises Unexpected, also for input before the handshake, which TLS does not protect
        (CVE-2011-0411 and others).
        """
        if after is not None and self._unread:
            raise self.unexpected(f"nothing after {after} but TLS", bytes(self._unread))
        layer = layer or await _tls_layer(tls)
        with timeout_note("TLS handshake"):
            try:
                done = await self._tls_step(layer, layer.session.do_handshake)  # the hello
                while not done:
                    error, seconds = await _handshake_in_thread(layer.session)
                    self.budget.add_time(seconds)
                    done = await self._tls_step(layer, partial(_raise, error))
            except ssl.SSLError as error:
                if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
                    raise self.unexpected("a TLS handshake", b"") from error
                with contextlib.suppress(OSError):  # sends the alert
                    await self._flush(layer)
                expected, got = handshake_failure(error, tls)
                raise self.unexpected(expected, got, quote=False) from error
        self._tls = layer

    def tls_version(self) -> str:
        """Return the version of TLS, after start_tls()."""
        assert self._tls is not None
        return self._tls.session.version() or "TLS"

    async def passed(self, detail: str, *, goodbye: bytes = b"") -> Answer:
        """Hang up and return the answer of a server that serves."""
        await self.hang_up(goodbye)
        return Answer(up=True, detail=f"{self.where} {detail}")

    async def hang_up(self, goodbye: bytes = b"") -> None:
        """Send `goodbye` and wait until the server closes the connection. Never raises."""
        limit = min(FAREWELL, self._farewell_until - self._loop.time())
        if limit <= 0 or self.ended:
            return
        with contextlib.suppress(OSError, TimeoutError, Unexpected, BudgetSpent):
            async with asyncio.timeout(limit):
                if goodbye:
                    await self.send(goodbye)
                else:
                    await self._shut_down()
                while await self._fill():
                    self._unread.clear()
                if goodbye:
                    await self._shut_down()

    def unexpected(self, expected: str, got: bytes | str, *, quote: bool = True) -> Unexpected:
        """Return the exception for an unexpected reply, to be raised."""
        text = first_line(got)
        if not text:
            text = "an empty line"
            if self.ended:
                text = f"{'a reset' if self._reset else 'the end'} of the connection"
        elif quote:
            text = f'"{text}"'
        return Unexpected(f"expected {expected} from {self.where}, got {text}")

    async def matches(self, pattern: str, *texts: str) -> bool:
        """Whether the pattern occurs in any of the texts. Raises Unexpected for a slow search."""
        try:
            return await matches(pattern, *texts, budget=self.budget)
        except SearchTooLong:
            raise Unexpected(
                f"expected {first_line(pattern)} from {self.where},"
                " got what takes too long to search"
            ) from None

    # --- bytes -----------------------------------------------------------------------------------

    def _take(self, count: int) -> bytes:
        data = bytes(self._unread[:count])
        del self._unread[:count]
        return data

    async def _count_piece(self) -> None:
        """Take a piece out of the budget. Raises BudgetSpent."""
        self.budget.take()
        self._in_a_row += 1
        if self._in_a_row >= IN_A_ROW:
            self._in_a_row = 0
            await asyncio.sleep(0)

    async def _fill(self) -> bool:
        """Receive input into `_unread`; False at the end of the connection."""
        if self.ended:
            return False
        if self._tls is None:
            data = await self._receive()
            self._unread += data
            return bool(data)
        got = False
        while not got and not self.ended:
            await self._count_piece()
            try:
                got = await self._tls_step(self._tls, self._decrypt)
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):  # many end without a close_notify
                self.ended = True
            except ssl.SSLError as error:
                reason = handshake_failure(error, Tls())[1]
                raise self.unexpected("TLS", reason, quote=False) from error
        return got

    def _decrypt(self) -> None:
        assert self._tls is not None
        data = self._tls.session.read(PIECE)
        if not data:
            raise ssl.SSLZeroReturnError
        self._unread += data

    async def _tls_step(self, layer: _TlsLayer, step: Callable[[], None]) -> bool:
        """Make a step of OpenSSL; False if it needs input, after input was received for it."""
        try:
            step()
        except ssl.SSLWantReadError:
            await self._flush(layer)
            data = await self._receive()
            if data:
                layer.incoming.write(data)
            else:
                layer.incoming.write_eof()
            return False
        await self._flush(layer)
        return True

    async def _receive(self) -> bytes:
        self._in_a_row = 0
        await asyncio.sleep(0)
        data = b""
        try:
            data = await self._loop.sock_recv(self._connection, PIECE)
        except ConnectionError as error:
            self._reset = error
        if not data and self._reset and not self._received:
            raise self._reset
        self.budget.take(size=len(data))
        self._received = True
        self.ended = not data
        return data

    async def _flush(self, layer: _TlsLayer) -> None:
        if layer.outgoing.pending:
            await self._write(layer.outgoing.read())

    async def _write(self, data: bytes) -> None:
        try:
            await self._loop.sock_sendall(self._connection, data)
        except ConnectionError as error:  # the answer may have come before the reset
            self._reset = error

    async def _shut_down(self) -> None:
        if self._tls is not None:
            with contextlib.suppress(ssl.SSLError):  # it wants to read the server's close_notify
                self._tls.session.unwrap()
            await self._flush(self._tls)
        self._connection.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def timeout_note(what: str) -> Iterator[None]:
    """Add a note for result.timed_out() to a cancellation: what the probe was waiting for."""
    try:
        yield
    except asyncio.CancelledError as cancelled:
        cancelled.add_note(what)
        raise


def _handshake(session: ssl.SSLObject) -> tuple[ssl.SSLError | None, float]:
    """Go on with a handshake; return its error and the processor's time (s)."""
    started = time.thread_time()
    error = None
    try:
        session.do_handshake()
    except ssl.SSLError as raised:
        error = raised
    return error, time.thread_time() - started


def _raise(error: ssl.SSLError | None) -> None:
    if error is not None:
        raise error


_slots: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()


async def _handshake_in_thread(session: ssl.SSLObject) -> tuple[ssl.SSLError | None, float]:
    loop = asyncio.get_running_loop()
    slots = _slots.setdefault(loop, asyncio.Semaphore(HANDSHAKES))
    await slots.acquire()
    handshake = loop.run_in_executor(None, _handshake, session)
    # The slot is free when the thread is, also if the probe is cancelled.
    handshake.add_done_callback(lambda _: slots.release())
    return await asyncio.shield(handshake)


def stream_probe(kind: type[A], check: Callable[[Stream, A], Awaitable[Answer]]) -> Probe:
    """Make the probe of checks of one kind from the function that talks to the server.

    The probe connects, with TLS if the check has a setting `tls`, calls the function and closes the
    connection. The function may raise Unexpected, ProbeImpossible, OSError and BudgetSpent.
    """

    async def probe(target: Target, budget: Budget) -> Answer:
        asks = target.check.asks
        assert isinstance(asks, kind)
        tls: Tls | None = getattr(asks, "tls", None)
        try:
            # Before the connection: errors of this host must not show in the server's log.
            layer = None if tls is None else await _tls_layer(tls)
            with open_socket(target.address, socket.SOCK_STREAM) as connection:
                stream = Stream(target, budget, connection)
                await stream.connect()
                if tls is not None:
                    await stream.start_tls(tls, layer=layer)
                return await check(stream, asks)
        except Unexpected as unexpected:
            return Answer(up=False, detail=str(unexpected))
        except ProbeImpossible as reason:
            return Answer(up=None, detail=f"this host cannot probe {where(target)}: {reason}")
        except ssl.SSLError as error:
            got = handshake_failure(error, Tls())[1]
            return Answer(up=False, detail=f"expected TLS from {where(target)}, got {got}")
        except OSError as error:
            return failed(target, error)

    return probe


async def _tls_layer(tls: Tls) -> _TlsLayer:
    """Raises ProbeImpossible."""
    try:
        context = await context_of(tls)
    except ssl.SSLError as error:
        raise ProbeImpossible(
            f"{tls.ca_file} holds no certificate that can be read (ca-file: PEM is expected)"
        ) from error
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ProbeImpossible(f"{tls.ca_file} cannot be read: {reason} (ca-file)") from error
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    try:
        session = context.wrap_bio(incoming, outgoing, server_hostname=tls.name)
    except ValueError as error:
        raise ProbeImpossible(f'"{tls.name}" cannot be a server\'s name in TLS') from error
    return _TlsLayer(session=session, incoming=incoming, outgoing=outgoing)
