"""The connections to one libvirt: which call runs on which, and how they end.

A connection carries one call at a time. libvirt's client before 10.4 (CVE-2024-4418) crashes on
concurrent calls on one connection: a thread that waits for its reply runs a main loop of its
connection, with a source whose data is on that thread's stack. Any other use of the connection ends
that main loop: a second call, the keepalive timer's ping, or a close. The source stays and later
writes to a stack that is gone: SIGSEGV, seen when libvirtd was slow for 8 s. Hence three kinds:

main
    carries the callbacks and the listing, which must share one stream. If it alone dies without
    notice, the next listing times out (session.LISTING).
watch
    carries only keepalive, which detects a daemon that hangs. The loop's thread sends its pings,
    and no thread waits for a reply there. Keepalive is switched on and off in the loop's thread,
    where its timer runs: off before the connection is closed, because a close is a call.
the others, up to MAX_CONNECTIONS
    are opened when all open ones are busy, so that no call waits for a call about another domain.
    (By ssh each connection is a process: a quiet host has main, watch, and one more.)

Each call to the daemon, including close, takes the connection's lock (ExclusiveConnection). The
loop's thread may read events from a connection while a call waits on it: libvirt locks the client,
sees that a thread has «the buck», leaves the socket to that thread, and wakes no other. The reader
also answers the daemon's own keepalive. Neither touches the waiting thread's main loop.
(Measured with 9.0: of 5,443 main loops, beside listings, events and a daemon that was stopped, none
was ended by another thread; before, 34 within two such stops.)

Closing a connection therefore cannot end an abandoned call, or one on a daemon that hangs. The
socket is shut down instead (shutdown(2)), which the waiting thread reads as the end of the stream.
Its call fails, and the connection is closed after it.

A driver without a daemon (test:///) runs in this process. It has no socket and no keepalive, and a
second connection may show different guests: main carries the calls too.
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, TypeVar

import libvirt

from xenlb.hypervisor.libvirt import event_loop
from xenlb.hypervisor.libvirt.queries import CallFailed, Connection, Unreachable, libvirt_errors
from xenlb.hypervisor.threads import CallTimeout, in_thread

log = logging.getLogger(__name__)

T = TypeVar("T")

# Seconds. CALL is the last resort.
PING_INTERVAL = 2
CALL, CLOSE = 30.0, 2.0
# A call about a domain that is being started waits for it, half a minute on a busy Dom0. Refreshes
# (session.REFRESHES) and address searches (finder.MAX_QUERIES) use two connections each, guest
# agents three and find_dead one: one is left for shutdowns and reboots.
MAX_CONNECTIONS = 8
LOST = "the connection to libvirt was lost"


class ExclusiveConnection:
    """One connection and its lock, for any thread unless a method says otherwise."""

    def __init__(self, connection: Connection, sockets: event_loop.Sockets) -> None:
        self._connection = connection
        self._sockets = sockets
        self._lock = threading.Lock()
        self._closed = False
        self._before_close: list[Callable[[Connection], None]] = []

    @property
    def local(self) -> bool:
        """Whether the driver runs in this process, without a daemon."""
        return not self._sockets

    @property
    def busy(self) -> bool:
        """Whether a call to the daemon runs on the connection, which may be its close."""
        return self._lock.locked()

    @property
    def alive(self) -> bool:
        """Whether libvirt considers the connection usable; makes no call to the daemon."""
        if self._closed:
            return False
        try:
            return bool(self._connection.isAlive())
        except libvirt.libvirtError:  # another thread has closed it
            return False

    def call(self, function: Callable[[Connection], T]) -> T:
        """Call `function` once the connection is free.

        Blocks; raises Unreachable if the connection is closed, and what `function` raises.
        """
        with self._lock:
            if self._closed:
                raise Unreachable("the connection to libvirt has been closed")
            return function(self._connection)

    def before_close(self, function: Callable[[Connection], None]) -> None:
        """Have `function` called before the connection is closed, under the same lock."""
        self._before_close.append(function)

    def close(self) -> None:
        """Close once the connection is free. Blocks; ignores errors; may be repeated."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            for function in self._before_close:
                with suppress(libvirt.libvirtError):
                    function(self._connection)
            with suppress(libvirt.libvirtError):
                self._connection.close()

    def hang_up(self) -> None:
        """Shut the socket down, so that every call fails. In the loop's thread."""
        self._sockets.hang_up()

    def keep_alive(self, interval: int, count: int) -> None:
        """Set keepalive, with `interval` in seconds; 0 ends it. Raises CallFailed.

        In the loop's thread, while no call runs; makes no call to the daemon.
        """
        with libvirt_errors():
            self._connection.setKeepAlive(interval, count)


def missed_pings_allowed(keepalive: float) -> int:
    """Number of unanswered pings for a limit of `keepalive` seconds.

    libvirt gives up when the next ping would be due (with 2 s and 3 pings after 7.7 s).
    """
    return max(1, round(keepalive / PING_INTERVAL) - 1)


def open_connection(uri: str | None, sockets: event_loop.Sockets) -> ExclusiveConnection:
    """Open a read-write connection. Blocks; raises CallFailed.

    `sockets` gets its socket at once, so that an opening that hangs can be ended.
    """
    with libvirt_errors(), sockets.collect():
        connection: Connection = libvirt.open(uri)
    return ExclusiveConnection(connection, sockets)


def open_initial(uri: str | None) -> list[ExclusiveConnection]:
    """Open main and, if there is a daemon, watch. Blocks; raises CallFailed."""
    opened: list[ExclusiveConnection] = []
    try:
        opened.append(open_connection(uri, event_loop.Sockets()))
        if not opened[0].local:
            opened.append(open_connection(uri, event_loop.Sockets()))
    except CallFailed:
        close_all(opened)
        raise
    return opened


def close_all(connections: list[ExclusiveConnection]) -> None:
    """Close connections. Blocks."""
    for connection in connections:
        connection.close()


class Connections:
    """All open connections to one libvirt, for the loop's thread.

    `initial` is from open_initial(); `keepalive`: seconds after which a daemon counts as hung.
    """

    def __init__(
        self, uri: str | None, initial: list[ExclusiveConnection], *, keepalive: float
    ) -> None:
        self._uri = uri
        self._keepalive = keepalive
        self._main = initial[0]
        self._watch = initial[1] if len(initial) > 1 else None
        self._keepalive_on = False
        self._open = set(initial)
        self._free: list[ExclusiveConnection] = []  # a stack: the last used is used next
        self._slots = asyncio.Semaphore(MAX_CONNECTIONS)
        self._openings: set[event_loop.Sockets] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    # --- calls -----------------------------------------------------------------------------------

    async def call(self, function: Callable[[Connection], T], *, limit: float | None = CALL) -> T:
        """Run a blocking call on a connection that no other call uses meanwhile.

        `limit` (seconds) includes the wait for a free connection. Raises Unreachable, CallFailed or
        CallTimeout.
        """
        if self._main.local:
            return await self.call_main(function, limit=limit)
        try:
            async with asyncio.timeout(limit) as scope, self._slots:
                connection = await self._free_connection()
                with self._errors_as_unreachable():
                    return await self._call_on(connection, function)
        except TimeoutError:
            if not scope.expired():
                raise  # the call's own
            raise CallTimeout(f"no answer within {limit} s") from None

    async def call_main(
        self, function: Callable[[Connection], T], *, limit: float | None = CALL
    ) -> T:
        """Run a blocking call on the connection that carries the events; raises as call()."""
        with self._errors_as_unreachable():
            return await in_thread(partial(self._main.call, function), limit=limit)

    @contextmanager
    def _errors_as_unreachable(self) -> Iterator[None]:
        """Replace the error of a call whose socket was shut down."""
        try:
            yield
        except CallFailed:
            if self._ended.done():
                raise Unreachable(LOST) from None
            raise

    async def _call_on(
        self, connection: ExclusiveConnection, function: Callable[[Connection], T]
    ) -> T:
        abandoned = False
        try:
            return await in_thread(partial(connection.call, function), limit=None)
        except asyncio.CancelledError:
            abandoned = True  # it goes on in its thread
            raise
        finally:
            if self._ended.done():
                pass  # end() closes it
            elif abandoned or not connection.alive:
                self._retire(connection)
            else:
                self._free.append(connection)

    async def _free_connection(self) -> ExclusiveConnection:
        while self._free and not self._ended.done():
            connection = self._free.pop()
            if connection.alive:
                return connection
            self._retire(connection)
        if self._ended.done():
            raise Unreachable(LOST)
        return await self._open_another()

    async def _open_another(self) -> ExclusiveConnection:
        sockets = event_loop.Sockets()
        self._openings.add(sockets)
        opening = asyncio.create_task(
            in_thread(
                partial(open_connection, self._uri, sockets),
                limit=None,
                late=ExclusiveConnection.close,
            )
        )
        try:
            either: set[asyncio.Future[Any]] = {opening, self._ended}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._openings.discard(sockets)
            if not opening.done():
                opening.cancel()  # its thread closes a connection that is opened too late
                sockets.hang_up()
            elif opening.exception() is None:  # also if the caller was cancelled
                self._keep(opening.result())
        if self._ended.done():
            raise Unreachable(LOST)
        opening.result()  # raises what the opening did
        return self._free.pop()

    def _keep(self, connection: ExclusiveConnection) -> None:
        self._open.add(connection)
        if self._ended.done():
            self._retire(connection)
        else:
            self._free.append(connection)

    def _retire(self, connection: ExclusiveConnection) -> None:
        """Stop using a connection, whatever call may still run on it."""
        self._open.discard(connection)
        connection.hang_up()
        closing = asyncio.create_task(_close(connection), name="close a connection to libvirt")
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    # --- keepalive, and the end ------------------------------------------------------------------

    async def start(
        self,
        on_close: Callable[[Connection, int, object], None],
        before_close: Callable[[Connection], None],
    ) -> None:
        """Register close callbacks and switch keepalive on.

        `on_close` is called, in some thread, with libvirt's reason when a connection ends;
        `before_close` in a thread before main is closed. Raises CallFailed or CallTimeout.
        """

        def register(connection: Connection) -> None:
            with suppress(libvirt.libvirtError):  # a driver without a daemon
                connection.registerCloseCallback(on_close, None)

        def deregister(connection: Connection) -> None:
            connection.unregisterCloseCallback()

        self._main.before_close(before_close)
        if self._watch is not None:  # first: with keepalive no later call can hang for good
            self._watch.before_close(deregister)
            await in_thread(partial(self._watch.call, register), limit=CALL)
            self._keepalive_on = True
            self._watch.keep_alive(PING_INTERVAL, missed_pings_allowed(self._keepalive))
        self._main.before_close(deregister)
        await self.call_main(register)

    async def end(self, *, lost: bool) -> None:
        """Close all connections, once, within CLOSE seconds; `lost`: the daemon does not answer."""
        self._ended.set_result(None)
        if self._watch is not None and self._keepalive_on:
            with suppress(CallFailed):  # the connection has ended
                self._watch.keep_alive(0, 0)
        for connection in self._open:
            if lost or connection.busy:
                connection.hang_up()
        for sockets in self._openings:
            sockets.hang_up()
        await asyncio.gather(*(_close(connection) for connection in self._open))
        while self._closing:
            await asyncio.gather(*self._closing)


async def _close(connection: ExclusiveConnection) -> None:
    try:
        await in_thread(connection.close, limit=CLOSE)
    except CallTimeout:
        log.debug("a connection to libvirt cannot be closed; its socket is shut down")
    finally:
        connection.hang_up()  # without effect on a closed one
