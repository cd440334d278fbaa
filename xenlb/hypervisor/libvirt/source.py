"""One libvirt: listing, life cycle events, reconnecting, shutdown and reboot.

No blocking call is made in the loop's thread: a daemon that hangs would block the agent for good.

No event is lost between listing and events. Callbacks are registered before the listing begins, and
libvirtd answers and reports on one stream, so everything that happens after the listing was
requested arrives as an event. An event may repeat what the listing contains already, as the listing
is many calls long. Events of one guest keep their order, so the last one describes its state, and
`GuestsListed.requested_at` lets the model prefer events that arrived later. An event for a guest
that is not listed yet waits for the listing. libvirt never reports what happened while the
connection was away; the next listing shows the result.

That stream belongs to one connection. Other calls run on connections of their own, in no order with
the events; code that uses their results compares them with what was known before the call.
"""

import asyncio
import logging
import random
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TypeVar

from xenlb.hypervisor.libvirt import event_loop, queries
from xenlb.hypervisor.libvirt.connections import (
    CALL,
    CLOSE,
    Connections,
    ExclusiveConnection,
    close_all,
    open_initial,
)
from xenlb.hypervisor.libvirt.queries import CallFailed, Connection, Unreachable
from xenlb.hypervisor.libvirt.session import DomainMemory, Session
from xenlb.hypervisor.threads import CallTimeout, in_thread
from xenlb.model.domain import GuestId
from xenlb.model.events import Disconnected, HypervisorEvent
from xenlb.model.settings import KEEPALIVE, to_open

log = logging.getLogger(__name__)

T = TypeVar("T")

# Seconds.
CONNECT = 15.0
SHORTEST_PAUSE, LONGEST_PAUSE = 0.5, 15.0


class LibvirtSource:
    """Source of events of one libvirt.

    `uri`: as in the configuration and in its guests' ids, or OWN_CHOICE. A daemon that is silent
    for `keepalive` seconds counts as lost; a change takes effect with the next connection, as
    libvirt sets it once for each. `emit` is called in the loop's thread.
    """

    def __init__(
        self,
        uri: str,
        emit: Callable[[HypervisorEvent], None],
        clock: Callable[[], float],
        *,
        keepalive: float = KEEPALIVE,
    ) -> None:
        self.uri = uri
        self._emit = emit
        self._clock = clock
        self.keepalive = keepalive
        self._memory = DomainMemory()
        self._session: Session | None = None
        self._opening: asyncio.Task[list[ExclusiveConnection]] | None = None
        self._pause = SHORTEST_PAUSE
        self._loss_reported = False
        self._retry = asyncio.Event()

    @property
    def connected(self) -> bool:
        """Whether libvirt is connected and has been listed since."""
        return self._session is not None and self._session.listed

    @property
    def hypervisor_type(self) -> str:
        """The name by libvirt: Xen, QEMU, LXC or TEST; empty before the first connection."""
        return self._memory.hypervisor_type

    async def run(self) -> None:
        """Connect, report and reconnect until cancelled."""
        event_loop.install(asyncio.get_running_loop())
        try:
            while True:
                try:
                    reason = await self._serve(await self._open())
                except (Unreachable, CallFailed, CallTimeout) as error:
                    reason = str(error)
                self._report_loss(reason)
                self._retry.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._pause * random.uniform(0.8, 1.2)):
                        await self._retry.wait()
                self._pause = min(self._pause * 2, LONGEST_PAUSE)
        finally:
            await self._cancel_opening()

    def reconnect_now(self) -> None:
        """End the pause before the next attempt: libvirtd is known to run."""
        self._retry.set()

    async def relist(self) -> None:
        """List again (a resync), unless there is no connection or a listing is running."""
        session = self._session
        if session is None or not session.listed or session.listing:
            return
        try:
            await session.list()
        except Unreachable:
            return  # the loss of the connection is reported by run()
        except (CallFailed, CallTimeout) as error:
            log.warning("libvirt %s cannot be listed now: %s", self.uri, error)

    async def shutdown(self, guest: GuestId) -> None:
        """Request a power-off; raises Unreachable, CallFailed or CallTimeout."""
        await self._request(guest, reboot=False)

    async def reboot(self, guest: GuestId) -> None:
        """Request a reboot; raises Unreachable, CallFailed or CallTimeout."""
        await self._request(guest, reboot=True)

    async def _request(self, guest: GuestId, *, reboot: bool) -> None:
        # A thread that hangs may go on long after the caller has given up: it must not send the
        # request then.
        cancelled = threading.Event()
        request = partial(
            queries.request_shutdown, uuid=guest.uuid, reboot=reboot, cancelled=cancelled.is_set
        )
        try:
            await self.call(request)
        finally:
            cancelled.set()

    async def find_dead(self) -> frozenset[int]:
        """Return the ids of dead domains whose end was not reported.

        They were reported as running. Raises Unreachable, CallFailed or CallTimeout.
        """
        before = set(self._memory.running)
        alive = await self.call(queries.live_ids, limit=None)
        return frozenset(before & self._memory.running - alive)

    async def call(self, function: Callable[[Connection], T], *, limit: float | None = CALL) -> T:
        """Run a blocking call; raises Unreachable, CallFailed or CallTimeout."""
        session = self._session
        if session is None:
            raise Unreachable(f"libvirt {self.uri} is not connected")
        return await session.connections.call(function, limit=limit)

    async def _open(self) -> list[ExclusiveConnection]:
        """Connect; raises CallFailed or CallTimeout.

        After CallTimeout the attempt goes on, and the next call waits for it. A daemon that hangs
        accepts connections and never answers: a new attempt every few seconds would leave a thread
        behind each time.
        """
        if self._opening is None:
            opening = in_thread(
                partial(open_initial, to_open(self.uri)), limit=None, late=close_all
            )
            self._opening = asyncio.create_task(opening, name=f"connect to libvirt {self.uri}")
        done, _ = await asyncio.wait({self._opening}, timeout=CONNECT)
        if not done:
            raise CallTimeout(f"it takes the connection but does not answer within {CONNECT:g} s")
        opened, self._opening = self._opening, None
        return opened.result()

    async def _cancel_opening(self) -> None:
        opening, self._opening = self._opening, None
        if opening is None:
            return
        opening.cancel()  # its thread closes a connection that is opened too late
        await asyncio.wait({opening})
        if not opening.cancelled() and opening.exception() is None:
            with suppress(CallTimeout):
                await in_thread(partial(close_all, opening.result()), limit=CLOSE)

    async def _serve(self, initial: list[ExclusiveConnection]) -> str:
        """Report until the connection is lost and return the reason. Raises as Session.start()."""
        session = Session(
            Connections(to_open(self.uri), initial, keepalive=self.keepalive),
            uri=self.uri,
            emit=self._emit,
            clock=self._clock,
            memory=self._memory,
        )
        try:
            self._session = session
            await session.start()
            log.info("libvirt %s: connected (%s)", self.uri, self.hypervisor_type)
            self._pause, self._loss_reported = SHORTEST_PAUSE, False
            return await session.lost
        finally:
            self._session = None
            await session.close()

    def _report_loss(self, reason: str) -> None:
        if self._loss_reported:  # one event for a loss, none for the attempts after it
            log.debug("libvirt %s: %s", self.uri, reason)
            return
        self._loss_reported = True
        log.debug("libvirt %s cannot be reached: %s", self.uri, reason)
        self._emit(Disconnected(at=self._clock(), uri=self.uri, reason=reason))
