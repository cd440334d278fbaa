"""The connections to one libvirt: which call is made on which, and how they end.

One connection carries one call at a time, always. libvirt's client before 10.4 (CVE-2024-4418)
does not bear more: a thread that waits for its reply sits in a main loop of its connection, with a
source whose data lies on that thread's stack. Whoever else uses the connection meanwhile ends that
main loop (a second call does, the keepalive timer's ping does, and so does a close), the source
stays, and later writes to a stack that is gone: SIGSEGV, seen when libvirtd was slow for 8 s. So

main
    carries the callbacks and the listing, which must be one stream (source.py). Should it die
    alone, without a word, the next listing finds out (session.LISTING).
watch
    carries nothing but keepalive, which tells that the daemon hangs. Its pings are sent by the
    loop's thread and nobody ever waits for a reply there. Keepalive is switched on and off in the
    loop's thread, where its timer runs: off before the connection is closed, which is a call.
the others, up to CALLS
    are opened when every one that is open is busy, so that no call waits for another's domain.
    (By ssh each connection is a process: a quiet host has main, watch, and one more.)

Everything that asks the daemon, closing included, takes the connection's turn (Line). The loop's
thread reads events from a connection while a call waits on it, and may: libvirt locks the client,
sees that a thread has «the buck», and leaves the socket to that thread; it wakes nobody. The
daemon's own keepalive is answered by whoever reads. Neither touches the waiting thread's main loop.
(Watched with 9.0: of 5,443 main loops run, beside listings, events and a daemon that stood still,
none was ended by another thread than its own; before, 34 within two such stops.)

A call that nobody waits for any more, or whose daemon hangs, is not ended by closing its
connection, then, but by hanging up: shutdown(2) of the socket, which the waiting thread reads as
the end of the stream. It returns with an error, and the connection is closed after it.

A driver without a daemon (test:///) runs in this process and has no socket, no keepalive, and
perhaps no second connection that shows the same guests: there main carries the calls too.
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import libvirt

from xenlb.hypervisor.libvirt import event_loop
from xenlb.hypervisor.libvirt.queries import (
    CallFailed,
    Connection,
    Unreachable,
    is_alive,
    libvirt_errors,
)
from xenlb.hypervisor.threads import CallTimeout, in_thread

log = logging.getLogger(__name__)

T = TypeVar("T")

# Seconds. A ping each INTERVAL; CALL is the last resort.
INTERVAL = 2
CALL, CLOSE = 30.0, 2.0
# A call about a domain that is being started waits for it, half a minute on a busy Dom0. The kinds
# that ask about single domains keep to two places (session.LOOKS, addresses.AT_ONCE) and to one of
# find_dead or three of guest agents (guest_agents.py): one is left for what is urgent.
CALLS = 8
LOST = "the connection to libvirt was lost"


class Line:
    """One connection, and whose turn it is; for any thread where nothing else is said."""

    def __init__(self, connection: Connection, sockets: event_loop.Sockets) -> None:
        self._connection = connection
        self._sockets = sockets
        self._turn = threading.Lock()
        self._closed = False
        self._at_end: list[Callable[[Connection], None]] = []

    @property
    def local(self) -> bool:
        """Is there no daemon behind it?"""
        return not self._sockets

    @property
    def busy(self) -> bool:
        return self._turn.locked()

    @property
    def alive(self) -> bool:
        """Asks nobody."""
        return not self._closed and is_alive(self._connection)

    def use(self, call: Callable[[Connection], T]) -> T:
        """Blocks, also while another call is under way. Raises what `call` raises, Unreachable."""
        with self._turn:
            if self._closed:
                raise Unreachable("the connection to libvirt has been closed")
            return call(self._connection)

    def at_end(self, call: Callable[[Connection], None]) -> None:
        """`call` is made before the connection is closed, in the same turn."""
        self._at_end.append(call)

    def close(self) -> None:
        """Blocks, also while a call is under way; quietly, and the second time nothing."""
        with self._turn:
            if self._closed:
                return
            self._closed = True
            for call in self._at_end:
                with suppress(libvirt.libvirtError):
                    call(self._connection)
            with suppress(libvirt.libvirtError):
                self._connection.close()

    def hang_up(self) -> None:
        """In the loop's thread: a call under way fails at once, and every other."""
        self._sockets.hang_up()

    def keep_alive(self, interval: int, count: int) -> None:
        """In the loop's thread, while nobody has the turn; asks nobody. `interval` 0: no more.
        Raises CallFailed."""
        with libvirt_errors():
            self._connection.setKeepAlive(interval, count)


def unanswered(keepalive: float) -> int:
    """How many pings may stay without an answer where a daemon may be silent for so many seconds:
    it is lost when the next one would be due (with 2 s and 3 pings after 7.7 s)."""
    return max(1, round(keepalive / INTERVAL) - 1)


def open_line(uri: str | None, sockets: event_loop.Sockets) -> Line:
    """Blocks. A read-write connection; raises CallFailed. `sockets` gets its socket at once, so
    that an opening that hangs can be ended."""
    with libvirt_errors(), sockets.collect():
        connection: Connection = libvirt.open(uri)
    return Line(connection, sockets)


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """What a session begins with; `watch` None: there is no daemon."""

    main: Line
    watch: Line | None

    def close(self) -> None:
        """Blocks."""
        self.main.close()
        if self.watch is not None:
            self.watch.close()


class Connections:
    """All that is open to one libvirt, from the opening to the end; used in the loop's thread."""

    def __init__(self, uri: str | None, opened: Opened, *, keepalive: float) -> None:
        self._uri = uri
        self._keepalive = keepalive
        self._main = opened.main
        self._watch = opened.watch
        self._watching = False
        self._open = {line for line in (opened.main, opened.watch) if line is not None}
        self._free: list[Line] = []  # the last used is the next: the others may never be needed
        self._places = asyncio.Semaphore(CALLS)
        self._openings: set[event_loop.Sockets] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self._end: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    # --- calls -----------------------------------------------------------------------------------

    async def ask(self, call: Callable[[Connection], T], *, limit: float | None = CALL) -> T:
        """A blocking call on a connection that is its own meanwhile; raises Unreachable,
        CallFailed or Stuck. `limit` counts from now."""
        if self._main.local:
            return await self.ask_main(call, limit=limit)
        try:
            async with asyncio.timeout(limit) as scope, self._places:
                line = await self._line()
                with self._told_as_lost():
                    return await self._ask_on(line, call)
        except TimeoutError:
            if not scope.expired():
                raise  # the call's own
            raise CallTimeout(f"no answer within {limit} s") from None

    async def ask_main(self, call: Callable[[Connection], T], *, limit: float | None = CALL) -> T:
        """The same on the connection that carries the events."""
        with self._told_as_lost():
            return await in_thread(partial(self._main.use, call), limit=limit)

    @contextmanager
    def _told_as_lost(self) -> Iterator[None]:
        """What a call says that was hung up on is of no use to anybody."""
        try:
            yield
        except CallFailed:
            if self._end.done():
                raise Unreachable(LOST) from None
            raise

    async def _ask_on(self, line: Line, call: Callable[[Connection], T]) -> T:
        left = False
        try:
            return await in_thread(partial(line.use, call), limit=None)
        except asyncio.CancelledError:
            left = True  # it goes on in its thread
            raise
        finally:
            if self._end.done():
                pass  # end() closes it
            elif left or not line.alive:
                self._retire(line)
            else:
                self._free.append(line)

    async def _line(self) -> Line:
        while self._free and not self._end.done():
            line = self._free.pop()
            if line.alive:
                return line
            self._retire(line)
        if self._end.done():
            raise Unreachable(LOST)
        return await self._open_another()

    async def _open_another(self) -> Line:
        sockets = event_loop.Sockets()
        self._openings.add(sockets)
        opening = asyncio.create_task(
            in_thread(partial(open_line, self._uri, sockets), limit=None, late=Line.close)
        )
        try:
            either: set[asyncio.Future[Any]] = {opening, self._end}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._openings.discard(sockets)
            if not opening.done():
                opening.cancel()  # its thread closes what it may still open
                sockets.hang_up()
            elif opening.exception() is None:
                self._keep(opening.result())  # also if nobody waits any more
        if self._end.done():
            raise Unreachable(LOST)
        opening.result()  # raises what the opening did
        return self._free.pop()

    def _keep(self, line: Line) -> None:
        self._open.add(line)
        if self._end.done():
            self._retire(line)
        else:
            self._free.append(line)

    def _retire(self, line: Line) -> None:
        """Out of use, whatever may still go on on it."""
        self._open.discard(line)
        line.hang_up()
        closing = asyncio.create_task(_close(line), name="close a connection to libvirt")
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    # --- the watch, and the end ------------------------------------------------------------------

    async def begin(
        self,
        on_close: Callable[[Connection, int, object], None],
        at_end: Callable[[Connection], None],
    ) -> None:
        """`on_close` is called, in some thread, with libvirt's reason when a connection ends;
        `at_end` in a thread before main is closed. Raises CallFailed or Stuck."""

        def register(connection: Connection) -> None:
            with suppress(libvirt.libvirtError):  # a driver without a daemon
                connection.registerCloseCallback(on_close, None)

        def deregister(connection: Connection) -> None:
            connection.unregisterCloseCallback()

        self._main.at_end(at_end)
        if self._watch is not None:  # first: from now on no call hangs for good
            self._watch.at_end(deregister)
            await in_thread(partial(self._watch.use, register), limit=CALL)
            self._watching = True
            self._watch.keep_alive(INTERVAL, unanswered(self._keepalive))
        self._main.at_end(deregister)
        await self.ask_main(register)

    async def end(self, *, lost: bool) -> None:
        """Ends all, once; `lost`: the daemon does not answer. Never takes longer than CLOSE."""
        self._end.set_result(None)
        if self._watch is not None and self._watching:
            with suppress(CallFailed):  # it has ended
                self._watch.keep_alive(0, 0)
        for line in self._open:
            if lost or line.busy:
                line.hang_up()
        for sockets in self._openings:
            sockets.hang_up()
        await asyncio.gather(*(_close(line) for line in self._open))
        while self._closing:
            await asyncio.gather(*self._closing)


async def _close(line: Line) -> None:
    try:
        await in_thread(line.close, limit=CLOSE)
    except CallTimeout:
        log.debug("a connection to libvirt cannot be closed; it is hung up")
    finally:
        line.hang_up()  # of no effect on what is closed


def open_main(uri: str | None) -> Opened:
    """Blocks. What is needed from the beginning; raises CallFailed."""
    main = open_line(uri, event_loop.Sockets())
    if main.local:
        return Opened(main=main, watch=None)
    try:
        return Opened(main=main, watch=open_line(uri, event_loop.Sockets()))
    except CallFailed:
        main.close()
        raise
