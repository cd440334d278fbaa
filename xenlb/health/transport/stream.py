"""A conversation with a server over TCP, in plain or with TLS: what the probes that talk share.

Everything a server says is bounded: a line, and by the budget of its answer all of it. After a few
pieces the loop gets its turn, whether there is something to wait for or not.

Sockets and not asyncio's streams: a transport is closed some time after it was told so, and reads
on while a server says STARTTLS.

FACTS

- A socket that is closed while something is unread sends a reset, which servers log as an error.
  With TLS 1.3 there always is something: tickets that follow the handshake. So it is said that
  nothing more comes, and read until the server hangs up as well, for FAREWELL at most. What was
  answered by then stands, however long that takes.
- A server that closes before it has read all sends a reset behind its answer, as scripts behind
  inetd do. What came before the reset can be read all the same, also after a send that failed of
  it. So a reset is the end of the answer; it is an error where nothing came before it.
- sock_recv does not give way while there is something to read. The loop gets its turn before each
  read, so that a server that floods does not hold it.
- The server chooses what a handshake costs: by its key, its chain of certificates, its group. A
  group of 8,192 bits takes 0.15 s. OpenSSL lets go of the interpreter meanwhile, so what answers
  the server is reckoned in a thread; a few at a time, as the threads are also others'.
"""

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from weakref import WeakKeyDictionary

from xenlb.health.transport.certificates import context_of, refused
from xenlb.health.transport.pattern import SearchTooLong, matches
from xenlb.health.transport.result import Answer, failed
from xenlb.health.transport.sockets import connect, unconnected
from xenlb.model.checks import Tls
from xenlb.model.target import Target
from xenlb.untrusted.budget import Budget, BudgetSpent
from xenlb.untrusted.printable import first_line

PIECE = 4 * 1024
LONGEST_LINE = 2048
# Pieces of an answer between two turns of the loop, each some 15 µs.
IN_A_ROW = 32
HANDSHAKES = 2  # in threads, at once
FAREWELL = 1.0  # s


class Unexpected(Exception):
    """The server does not serve; the message is the answer's detail."""


class NotAsked(Exception):
    """This host could not ask; the message says why."""


@dataclass(slots=True, kw_only=True, eq=False)
class _Sealed:
    """TLS between us and the socket: OpenSSL reads from and writes to memory."""

    layer: ssl.SSLObject
    incoming: ssl.MemoryBIO
    outgoing: ssl.MemoryBIO


class Stream:
    """See the module's docstring. Made by `converse`."""

    def __init__(self, target: Target, budget: Budget, connection: socket.socket) -> None:
        self.target = target
        self.budget = budget
        self.where = f"{target.address} port {target.port}"
        self._loop = asyncio.get_running_loop()
        # A goodbye ends well before the runner's timeout, which would take the answer with it: a
        # busy host may come to it late.
        self._until = self._loop.time() + 0.75 * target.check.timeout
        self._connection = connection
        self._sealed: _Sealed | None = None
        self._unread = bytearray()
        self._taken = False  # something has come
        self._in_a_row = 0  # pieces since the loop had its turn
        self._ended = False
        self._broken: ConnectionError | None = None

    @property
    def ended(self) -> bool:
        """Nothing more will come."""
        return self._ended

    async def connect(self) -> None:
        with waiting_for("connection"):
            await connect(self._connection, self.target)

    # What is said-

    async def send(self, data: bytes) -> None:
        if self._sealed is None:
            await self._write(data)
        else:
            self._sealed.layer.write(data)
            await self._flush(self._sealed)

    async def line(self, what: str, *, longest: int = LONGEST_LINE) -> bytes:
        """The next line, without its end; `what` it is, for messages."""
        with waiting_for(what):
            while (end := self._unread.find(b"\n")) < 0:
                if len(self._unread) > longest or not await self._more():
                    raise self.unexpected(f"a whole line as {what}", bytes(self._unread))
            await self._piece()
        if end > longest:
            raise self.unexpected(f"a line of at most {longest} bytes as {what}", "a longer one")
        line = bytes(self._unread[:end])
        del self._unread[: end + 1]
        return line.removesuffix(b"\r")

    async def exactly(self, count: int, what: str) -> bytes:
        with waiting_for(what):
            while len(self._unread) < count:
                if not await self._more():
                    raise self.unexpected(what, bytes(self._unread))
            await self._piece()
        data = bytes(self._unread[:count])
        del self._unread[:count]
        return data

    async def piece(self, what: str, *, most: int = PIECE) -> bytes:
        """What has come, at least a byte and `most` at most; nothing at the connection's end."""
        with waiting_for(what):
            if not self._unread:
                await self._more()
            await self._piece()
        data = bytes(self._unread[:most])
        del self._unread[:most]
        return data

    def nothing_unread(self, after: str) -> None:
        """What came before TLS does not count as said in it (CVE-2011-0411 and its like)."""
        if self._unread:
            raise self.unexpected(f"nothing after {after} but TLS", bytes(self._unread))

    async def seal(self, tls: Tls, made: _Sealed | None = None) -> None:
        """Shakes hands."""
        sealed = made or await _seal_of(tls)
        with waiting_for("TLS handshake"):
            try:
                done = await self._step(sealed, sealed.layer.do_handshake)  # says hello
                while not done:
                    error, seconds = await _in_thread(sealed.layer)
                    self.budget.took(seconds)
                    done = await self._step(sealed, partial(_raise, error))
            except ssl.SSLError as error:
                if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
                    raise self.unexpected("a TLS handshake", b"") from error
                with contextlib.suppress(OSError):  # it may hear why
                    await self._flush(sealed)
                expected, got = refused(error, tls)
                raise self.unexpected(expected, got, quote=False) from error
        self._sealed = sealed

    def tls_version(self) -> str:
        assert self._sealed is not None
        return self._sealed.layer.version() or "TLS"

    async def part(self, words: bytes = b"") -> None:
        """Says goodbye, and waits for the other side to hang up: see above. Never raises."""
        limit = min(FAREWELL, self._until - self._loop.time())
        if limit <= 0 or self._ended:
            return
        with contextlib.suppress(OSError, TimeoutError, Unexpected, BudgetSpent):
            async with asyncio.timeout(limit):
                if words:
                    await self.send(words)
                else:
                    await self._nothing_more()
                while await self._more():
                    self._unread.clear()
                if words:
                    await self._nothing_more()

    # Words for it---

    def unexpected(self, expected: str, got: bytes | str, *, quote: bool = True) -> Unexpected:
        said = first_line(got)
        if not said:
            said = "an empty line"
            if self._ended:
                said = f"{'a reset' if self._broken else 'the end'} of the connection"
        elif quote:
            said = f'"{said}"'
        return Unexpected(f"expected {expected} from {self.where}, got {said}")

    async def matches(self, pattern: str, *texts: str) -> bool:
        """In any of the texts."""
        try:
            return await matches(pattern, *texts, budget=self.budget)
        except SearchTooLong:
            raise Unexpected(
                f"expected {first_line(pattern)} from {self.where},"
                " got what takes too long to search"
            ) from None

    # Bytes----------

    async def _piece(self) -> None:
        """Counts a piece that was taken, or is about to be. Raises BudgetSpent."""
        self.budget.take()
        self._in_a_row += 1
        if self._in_a_row >= IN_A_ROW:
            self._in_a_row = 0
            await asyncio.sleep(0)

    async def _more(self) -> bool:
        """Takes what has come into `_unread`; False at the end of the connection."""
        if self._ended:
            return False
        if self._sealed is None:
            data = await self._receive()
            self._unread += data
            return bool(data)
        got = False
        while not got and not self._ended:
            await self._piece()
            try:
                got = await self._step(self._sealed, self._read_sealed)
            except ssl.SSLZeroReturnError:
                self._ended = True
            except ssl.SSLEOFError:
                self._ended = True  # without a word, as many do
            except ssl.SSLError as error:
                raise self.unexpected("TLS", refused(error, Tls())[1], quote=False) from error
        return got

    def _read_sealed(self) -> None:
        assert self._sealed is not None
        data = self._sealed.layer.read(PIECE)
        if not data:
            raise ssl.SSLZeroReturnError
        self._unread += data

    async def _step(self, sealed: _Sealed, act: Callable[[], None]) -> bool:
        """Whether it could be done, else once more has come from the server."""
        try:
            act()
        except ssl.SSLWantReadError:
            await self._flush(sealed)
            data = await self._receive()
            if data:
                sealed.incoming.write(data)
            else:
                sealed.incoming.write_eof()
            return False
        await self._flush(sealed)
        return True

    async def _receive(self) -> bytes:
        self._in_a_row = 0
        await asyncio.sleep(0)
        data = b""
        try:
            data = await self._loop.sock_recv(self._connection, PIECE)
        except ConnectionError as error:
            self._broken = error
        if not data and self._broken and not self._taken:
            raise self._broken
        self.budget.take(size=len(data))
        self._taken = True
        self._ended = not data
        return data

    async def _flush(self, sealed: _Sealed) -> None:
        if sealed.outgoing.pending:
            await self._write(sealed.outgoing.read())

    async def _write(self, data: bytes) -> None:
        """A reset is left to the next read: the answer may have come before it."""
        try:
            await self._loop.sock_sendall(self._connection, data)
        except ConnectionError as error:
            self._broken = error

    async def _nothing_more(self) -> None:
        if self._sealed is not None:
            with contextlib.suppress(ssl.SSLError):  # it wants to read the server's word, too
                self._sealed.layer.unwrap()
            await self._flush(self._sealed)
        self._connection.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def waiting_for(what: str) -> Iterator[None]:
    """Leaves word for `answer.too_late` of what the server did not say in time."""
    try:
        yield
    except asyncio.CancelledError as cancelled:
        cancelled.add_note(what)
        raise


def _shake(layer: ssl.SSLObject) -> tuple[ssl.SSLError | None, float]:
    """What came of it, and the time of the processor (s)."""
    began = time.thread_time()
    error = None
    try:
        layer.do_handshake()
    except ssl.SSLError as raised:
        error = raised
    return error, time.thread_time() - began


def _raise(error: ssl.SSLError | None) -> None:
    if error is not None:
        raise error


_places: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()


async def _in_thread(layer: ssl.SSLObject) -> tuple[ssl.SSLError | None, float]:
    """As _shake(). Its place is free when the thread is, also where the probe is cancelled."""
    loop = asyncio.get_running_loop()
    places = _places.setdefault(loop, asyncio.Semaphore(HANDSHAKES))
    await places.acquire()
    shaking = loop.run_in_executor(None, _shake, layer)
    shaking.add_done_callback(lambda _: places.release())
    return await asyncio.shield(shaking)


async def session(
    target: Target,
    budget: Budget,
    talk: Callable[[Stream], Awaitable[Answer]],
    *,
    tls: Tls | None = None,
) -> Answer:
    """Connects, shakes hands if `tls` is set, and talks; closed whatever happens. Raises
    BudgetSpent."""
    try:
        # Before the server hears of it: where that fails, this host cannot ask.
        made = None if tls is None else await _seal_of(tls)
        with unconnected(target.address, socket.SOCK_STREAM) as connection:
            stream = Stream(target, budget, connection)
            await stream.connect()
            if tls is not None:
                await stream.seal(tls, made)
            return await talk(stream)
    except Unexpected as unexpected:
        return Answer(up=False, detail=str(unexpected))
    except NotAsked as why:
        where = f"{target.address} port {target.port}"
        return Answer(up=None, detail=f"this host cannot probe {where}: {why}")
    except ssl.SSLError as error:
        got = refused(error, Tls())[1]
        return Answer(
            up=False, detail=f"expected TLS from {target.address} port {target.port}, got {got}"
        )
    except OSError as error:
        return failed(target, error)


async def _seal_of(tls: Tls) -> _Sealed:
    try:
        context = await context_of(tls)
    except OSError as error:
        raise NotAsked(_unreadable(tls, error)) from error
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    try:
        layer = context.wrap_bio(incoming, outgoing, server_hostname=tls.name)
    except ValueError as error:
        raise NotAsked(f'"{tls.name}" cannot be a server\'s name in TLS') from error
    return _Sealed(layer=layer, incoming=incoming, outgoing=outgoing)


def _unreadable(tls: Tls, error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return f"{tls.ca_file} holds no certificate that can be read (ca-file: PEM is expected)"
    return f"{tls.ca_file} cannot be read: {(error.strerror or str(error)).lower()} (ca-file)"
