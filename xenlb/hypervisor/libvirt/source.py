"""One libvirt: listing, life cycle events, reconnecting, and the two requests to a guest.

No call that can block is made in the loop's thread: a daemon that hangs would hold the agent up
for good.

Nothing is lost between listing and events. Callbacks are registered before the listing begins,
and libvirtd answers and reports on one stream, so whatever happens after the listing was asked
for is told as an event. An event may tell what the listing contains already (the listing is many
calls long): events of one guest keep their order, the last one describes the guest's state, and
`Listed.asked` lets the model prefer what it has heard later. An event for a guest that has not
been named yet waits until the listing has named it. What happened while the connection was away
is never told by libvirt; the listing after it tells the result.

That stream is one connection's; the other calls are made on connections of their own, in no order
with the events (connections.py, which says why). What is made of their answers bears that: it
compares with what was told before the question.

What the events mean for a guest is decided in model/guest.py. The time between connecting and
losing the connection: session.py.
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
from xenlb.hypervisor.libvirt.connections import CALL, CLOSE, Connections, Opened, open_main
from xenlb.hypervisor.libvirt.queries import CallFailed, Connection, Unreachable
from xenlb.hypervisor.libvirt.session import Known, Session
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
    """`uri`: as in the configuration, which its guests bear; or OWN_CHOICE. A daemon that is
    silent for `keepalive` seconds counts as lost; a change counts from the next connection on
    (libvirt sets it once for each).

    `emit` is called in the loop's thread.
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
        self._known = Known()
        self._session: Session | None = None
        self._opening: asyncio.Task[Opened] | None = None
        self._pause = SHORTEST_PAUSE
        self._told = False
        self._hurry = asyncio.Event()

    @property
    def connected(self) -> bool:
        """Connected, and everything listed once since."""
        return self._session is not None and self._session.listed

    @property
    def hypervisor_type(self) -> str:
        """As libvirt says: Xen, QEMU, LXC, TEST; empty until it was connected."""
        return self._known.hypervisor_type

    async def run(self) -> None:
        """Connects, reports, reconnects; until cancelled."""
        event_loop.install(asyncio.get_running_loop())
        try:
            while True:
                try:
                    reason = await self._serve(await self._open())
                except (Unreachable, CallFailed, CallTimeout) as error:
                    reason = str(error)
                self._tell_lost(reason)
                self._hurry.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._pause * random.uniform(0.8, 1.2)):
                        await self._hurry.wait()
                self._pause = min(self._pause * 2, LONGEST_PAUSE)
        finally:
            await self._forget_opening()

    def hurry(self) -> None:
        """libvirtd is known to be there: it need not be waited for any longer."""
        self._hurry.set()

    async def relist(self) -> None:
        """Lists again (a resync). Nothing while there is no connection, or while it still lists."""
        session = self._session
        if session is None or not session.listed or session.listing:
            return
        try:
            await session.list()
        except Unreachable:
            return  # lost meanwhile, which is told where it is noticed
        except (CallFailed, CallTimeout) as error:
            log.warning("libvirt %s cannot be listed now: %s", self.uri, error)

    async def shutdown(self, guest: GuestId) -> None:
        """Asks the guest to power off; raises Unreachable, CallFailed or Stuck."""
        await self._order(queries.request_shutdown, guest)

    async def reboot(self, guest: GuestId) -> None:
        """Asks the guest to reboot; raises Unreachable, CallFailed or Stuck."""
        await self._order(queries.request_reboot, guest)

    async def _order(self, ask: Callable[..., None], guest: GuestId) -> None:
        """A thread that is stuck, in another call or while its connection is made, may go on when
        this has long been given up: it must not ask the guest then."""
        given_up = threading.Event()
        try:
            await self.ask(partial(ask, uuid=guest.uuid, given_up=given_up.is_set))
        finally:
            given_up.set()

    async def live_ids(self) -> frozenset[int]:
        """Ids of the domains that run or are paused; raises Unreachable, CallFailed or Stuck."""
        return await self.ask(queries.live_ids)

    async def find_dead(self) -> frozenset[int]:
        """Ids of domains that were told as running and are not alive any more, though their end
        has not been told yet; raises what live_ids raises."""
        told = set(self._known.running)
        alive = await self.ask(queries.live_ids, limit=None)
        return frozenset(told & self._known.running - alive)

    async def ask(self, call: Callable[[Connection], T], *, limit: float | None = CALL) -> T:
        """A blocking call; raises Unreachable, CallFailed or Stuck."""
        session = self._session
        if session is None:
            raise Unreachable(f"libvirt {self.uri} is not connected")
        return await session.ask(call, limit=limit)

    async def _open(self) -> Opened:
        """Raises CallFailed, or Stuck; then the attempt goes on and the next call waits for it.

        A daemon that hangs takes connections and never answers: a new attempt every few seconds
        would leave a thread behind each time.
        """
        if self._opening is None:
            opening = in_thread(
                partial(open_main, to_open(self.uri)), limit=None, late=Opened.close
            )
            self._opening = asyncio.create_task(opening, name=f"connect to libvirt {self.uri}")
        done, _ = await asyncio.wait({self._opening}, timeout=CONNECT)
        if not done:
            raise CallTimeout(f"it takes the connection but does not answer within {CONNECT:g} s")
        opened, self._opening = self._opening, None
        return opened.result()

    async def _forget_opening(self) -> None:
        opening, self._opening = self._opening, None
        if opening is None:
            return
        opening.cancel()  # its thread closes what it may still open
        await asyncio.wait({opening})
        if not opening.cancelled() and opening.exception() is None:
            with suppress(CallTimeout):
                await in_thread(opening.result().close, limit=CLOSE)

    async def _serve(self, opened: Opened) -> str:
        """Until the connection is lost; why. Raises CallFailed or Stuck."""
        session = Session(
            Connections(to_open(self.uri), opened, keepalive=self.keepalive),
            uri=self.uri,
            emit=self._emit,
            clock=self._clock,
            known=self._known,
        )
        try:
            self._session = session
            await session.begin()
            log.info("libvirt %s: connected (%s)", self.uri, self.hypervisor_type)
            self._pause, self._told = SHORTEST_PAUSE, False
            return await session.lost
        finally:
            self._session = None
            await session.close()

    def _tell_lost(self, reason: str) -> None:
        if self._told:  # once for each time it goes away, not for each attempt
            log.debug("libvirt %s: %s", self.uri, reason)
            return
        self._told = True
        log.debug("libvirt %s cannot be reached: %s", self.uri, reason)
        self._emit(Disconnected(at=self._clock(), uri=self.uri, reason=reason))
