"""One time of being connected to libvirt: callbacks, the listing, one guest looked at.

The theory (why nothing is lost between listing and events) stands in source.py, which makes one
session after the other. Calls block and are made in threads, each on a connection that is its own
meanwhile (connections.py); callbacks come in the loop's thread and read of a domain only what is
local.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar
from uuid import UUID

import libvirt

from xenlb.hypervisor.libvirt import qmp, queries
from xenlb.hypervisor.libvirt.connections import CALL, Connections
from xenlb.hypervisor.libvirt.metadata import NAMESPACE, Metadata
from xenlb.hypervisor.libvirt.queries import (
    CallFailed,
    Connection,
    Domain,
    Unreachable,
    libvirt_errors,
)
from xenlb.hypervisor.threads import CallTimeout
from xenlb.model.domain import DomainState, GuestId, StopReason
from xenlb.model.events import (
    Crashed,
    Died,
    GuestsListed,
    HypervisorEvent,
    MetadataChanged,
    Paused,
    Rebooted,
    Resumed,
    ShutdownCancelled,
    Started,
    Stopped,
    Undefined,
)
from xenlb.untrusted.printable import printable

log = logging.getLogger(__name__)

T = TypeVar("T")

# Seconds.
TOGETHER = 0.5  # new guests within so much time are listed once
LISTING = 300.0  # what holds up a listing, a domain's start or end, never takes so long
# A look at a domain that is being started waits for it; see connections.CALLS.
LOOKS = 2

_STOPS = {
    libvirt.VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN: StopReason.SHUTDOWN,
    libvirt.VIR_DOMAIN_EVENT_STOPPED_DESTROYED: StopReason.DESTROYED,
    libvirt.VIR_DOMAIN_EVENT_STOPPED_CRASHED: StopReason.CRASHED,
    libvirt.VIR_DOMAIN_EVENT_STOPPED_MIGRATED: StopReason.MIGRATED,
    libvirt.VIR_DOMAIN_EVENT_STOPPED_SAVED: StopReason.SAVED,
    libvirt.VIR_DOMAIN_EVENT_STOPPED_FAILED: StopReason.FAILED,
    libvirt.VIR_DOMAIN_EVENT_STOPPED_FROM_SNAPSHOT: StopReason.FROM_SNAPSHOT,
}
_CLOSED = {
    libvirt.VIR_CONNECT_CLOSE_REASON_ERROR: "the connection broke",
    libvirt.VIR_CONNECT_CLOSE_REASON_EOF: "libvirtd has ended",
    libvirt.VIR_CONNECT_CLOSE_REASON_KEEPALIVE: "libvirtd does not answer (keepalive)",
    libvirt.VIR_CONNECT_CLOSE_REASON_CLIENT: "closed here",
}


@dataclass(slots=True)
class Known:
    """What outlives a session: the kind of hypervisor, guests that were told of, ids of domains
    that were told as running (or paused), and metadata as last read."""

    hypervisor_type: str = ""
    named: set[UUID] = field(default_factory=set)
    running: set[int] = field(default_factory=set)
    metadata: dict[UUID, Metadata] = field(default_factory=dict)


class Session:
    """`lost` is done, with the reason, when the connections are of no more use."""

    def __init__(
        self,
        connections: Connections,
        *,
        uri: str,
        emit: Callable[[HypervisorEvent], None],
        clock: Callable[[], float],
        known: Known,
    ) -> None:
        self._connections = connections
        self._uri = uri
        self._emit = emit
        self._clock = clock
        self._known = known
        self._loop = asyncio.get_running_loop()
        self.lost: asyncio.Future[str] = self._loop.create_future()
        self.listed = False
        self._closing = False
        self._listing = asyncio.Lock()
        self._slots = asyncio.Semaphore(LOOKS)
        self._held: list[HypervisorEvent] = []
        self._recent: set[int] = set()  # ids that started since the last listing began
        self._numbers: list[int] = []
        self._monitor: tuple[int, ...] = ()
        self._tasks: dict[UUID, asyncio.Task[None]] = {}
        self._closed: dict[UUID, asyncio.TimerHandle] = {}
        self._newcomers: asyncio.Task[None] | None = None
        self._look_again: set[UUID] = set()
        self._started: set[UUID] = set()  # looked at because they started
        self._heard: dict[UUID, int] = {}  # how many life cycle events

    # --- the life of the connections -------------------------------------------------------------

    async def begin(self) -> None:
        """Registers the callbacks, then lists. Raises CallFailed, Stuck, or Unreachable with the
        reason where the connections were lost meanwhile: a listing that hangs does not end by
        itself."""
        beginning = asyncio.create_task(self._begin(), name=f"begin with libvirt {self._uri}")
        either: set[asyncio.Future[Any]] = {beginning, self.lost}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not beginning.done():
                beginning.cancel()
                await asyncio.wait({beginning})
        if beginning.cancelled():
            raise Unreachable(self.lost.result())
        beginning.result()

    async def _begin(self) -> None:
        await self._connections.begin(self._on_close, self._deregister)
        await self._connections.ask_main(self._register)
        await self.list()

    def _register(self, connection: Connection) -> None:
        with libvirt_errors():
            self._known.hypervisor_type = connection.getType()
            for event, call in (
                (libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._on_lifecycle),
                (libvirt.VIR_DOMAIN_EVENT_ID_REBOOT, self._on_reboot),
                (libvirt.VIR_DOMAIN_EVENT_ID_METADATA_CHANGE, self._on_metadata),
            ):
                number = connection.domainEventRegisterAny(None, event, call, None)
                self._numbers.append(number)
        if self._known.hypervisor_type == "QEMU":
            self._monitor = qmp.register(connection, self._on_monitor)

    def _deregister(self, connection: Connection) -> None:
        # close() waits for ever while a callback is registered.
        qmp.deregister(connection, self._monitor)
        for number in self._numbers:
            with suppress(libvirt.libvirtError):
                connection.domainEventDeregisterAny(number)

    @property
    def listing(self) -> bool:
        """Is a listing under way?"""
        return self._listing.locked()

    async def list(self) -> None:
        """Emits Listed. Raises CallFailed, Stuck, or Unreachable where the end came first.

        A domain that is being started or destroyed holds the listing up, on a busy Dom0 for half a
        minute. A daemon that hangs is keepalive's to tell; but where the way to it lets this
        connection alone die, without a word, nothing tells, nor do events come any more.
        """
        async with self._listing:
            asked = self._clock()
            self._recent.clear()
            everything = partial(queries.list_domains, uri=self._uri)
            try:
                guests = await self._connections.ask_main(everything, limit=LISTING)
            except CallTimeout:
                self.lose(f"a listing did not end within {LISTING:g} s")
                raise
            self._known.named = {each.guest.uuid for each in guests}
            listed = {each.incarnation for each in guests if each.incarnation is not None}
            self._known.running = listed | self._recent
            self._known.metadata = {
                each.guest.uuid: (each.metadata, each.metadata_problems) for each in guests
            }
            self._emit(
                GuestsListed(at=self._clock(), uri=self._uri, requested_at=asked, guests=guests)
            )
            self.listed = True
            held, self._held = self._held, []
            for event in held:
                self._emit(event)

    def _list_soon(self) -> None:
        """For a guest that nobody knows yet: it can be spoken of before it is started."""
        if self._closing or not self.listed or (self._newcomers and not self._newcomers.done()):
            return
        self._newcomers = self._loop.create_task(self._list_newcomers(), name="list newcomers")

    async def _list_newcomers(self) -> None:
        await asyncio.sleep(TOGETHER)
        try:
            await self.list()
        except (Unreachable, CallFailed, CallTimeout) as error:
            log.debug("libvirt %s: new guests cannot be listed now: %s", self._uri, error)

    async def ask(self, call: Callable[[Connection], T], *, limit: float | None = CALL) -> T:
        """A blocking call, on another connection than the listing's; raises Unreachable,
        CallFailed or Stuck."""
        return await self._connections.ask(call, limit=limit)

    def lose(self, reason: str) -> None:
        if not self.lost.done():
            self.lost.set_result(reason)

    def _lose_soon(self, reason: str) -> None:
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self.lose, reason)

    async def close(self) -> None:
        """Ends it; callbacks that still come are ignored. Never takes longer than
        connections.CLOSE."""
        self._closing = True
        for closed in self._closed.values():
            closed.cancel()
        tasks = [*self._tasks.values(), *([self._newcomers] if self._newcomers else [])]
        for task in tasks:
            task.cancel()
        try:
            await self._connections.end(lost=self.lost.done())
        finally:
            await asyncio.gather(*tasks, return_exceptions=True)

    # --- callbacks, in the loop's thread ---------------------------------------------------------

    def _on_close(self, _connection: Connection, reason: int, _opaque: object) -> None:
        # This one may come in a thread whose call met the end of the connection.
        self._lose_soon(_CLOSED.get(reason, f"closed (reason {reason})"))

    def _on_lifecycle(
        self, _connection: Connection, domain: Domain, event: int, detail: int, _opaque: object
    ) -> None:
        guest, incarnation, at = self._guest(domain), _incarnation(domain), self._clock()
        log.debug("libvirt %s: %s: event %d/%d", self._uri, queries.name_of(domain), event, detail)
        self._heard[guest.uuid] = self._heard.get(guest.uuid, 0) + 1
        match event:
            case libvirt.VIR_DOMAIN_EVENT_STARTED:
                self._on_started(queries.name_of(domain), guest, incarnation, at)
            case libvirt.VIR_DOMAIN_EVENT_SUSPENDED | libvirt.VIR_DOMAIN_EVENT_PMSUSPENDED:
                self._tell(guest, Paused(at=at, guest=guest, incarnation=incarnation))
            case libvirt.VIR_DOMAIN_EVENT_RESUMED:
                self._tell(guest, Resumed(at=at, guest=guest, incarnation=incarnation))
            case libvirt.VIR_DOMAIN_EVENT_SHUTDOWN:
                # QEMU: the guest is gone, its process ends later. See qmp.py.
                self._tell(guest, Died(at=at, guest=guest, incarnation=incarnation))
            case libvirt.VIR_DOMAIN_EVENT_STOPPED:
                self._known.running.discard(domain.ID())
                why = _STOPS.get(detail, StopReason.UNKNOWN)
                self._tell(guest, Stopped(at=at, guest=guest, incarnation=incarnation, reason=why))
            case libvirt.VIR_DOMAIN_EVENT_CRASHED:
                self._tell(guest, Crashed(at=at, guest=guest, incarnation=incarnation))
            case libvirt.VIR_DOMAIN_EVENT_UNDEFINED:
                self._known.named.discard(guest.uuid)
                self._tell(guest, Undefined(at=at, guest=guest))
            case libvirt.VIR_DOMAIN_EVENT_DEFINED if guest.uuid not in self._known.named:
                self._list_soon()
            case _:
                pass

    def _on_started(self, name: str, guest: GuestId, incarnation: int | None, at: float) -> None:
        if incarnation is None:
            return  # no driver does this; a guest without an id does not run
        services, problems = self._known.metadata.get(guest.uuid, ((), ()))
        self._known.named.add(guest.uuid)
        self._known.running.add(incarnation)
        self._recent.add(incarnation)
        self._tell(
            guest,
            Started(
                at=at,
                guest=guest,
                name=name,
                incarnation=incarnation,
                metadata=services,
                metadata_problems=problems,
            ),
        )
        # On Xen a guest that is started paused says so by its state only, and metadata is read
        # by a call: both follow.
        self._started.add(guest.uuid)
        self._look(guest)

    def _on_reboot(self, _connection: Connection, domain: Domain, _opaque: object) -> None:
        guest = self._guest(domain)
        event = Rebooted(at=self._clock(), guest=guest, incarnation=_incarnation(domain))
        self._tell(guest, event)

    def _on_metadata(
        self,
        _connection: Connection,
        domain: Domain,
        kind: int,
        namespace: str | None,
        _opaque: object,
    ) -> None:
        if kind == libvirt.VIR_DOMAIN_METADATA_ELEMENT and namespace == NAMESPACE:
            self._look(self._guest(domain))

    def _on_monitor(self, domain: Domain, event: str, details: str | None) -> None:
        guest, incarnation = self._guest(domain), _incarnation(domain)
        log.debug(
            "libvirt %s: %s: QMP %s %s",
            self._uri,
            queries.name_of(domain),
            event,
            printable(details or "", 200),
        )
        at = self._clock()
        told = qmp.read(event, details, guest=guest, incarnation=incarnation, at=at)
        if event == "VSERPORT_CHANGE" and told is not None:
            closed = self._closed.pop(guest.uuid, None)
            if closed is not None:
                closed.cancel()
        if isinstance(told, ShutdownCancelled):
            self._closed[guest.uuid] = self._loop.call_later(qmp.CLOSED, self._tell, guest, told)
        elif told is not None:
            self._tell(guest, told)

    def _guest(self, domain: Domain) -> GuestId:
        return GuestId(uri=self._uri, uuid=UUID(domain.UUIDString()))

    def _tell(self, guest: GuestId, event: HypervisorEvent) -> None:
        if self._closing:
            return
        if self.listed or guest.uuid in self._known.named:
            self._emit(event)
        else:
            self._held.append(event)

    # --- one guest looked at more closely --------------------------------------------------------

    def _look(self, guest: GuestId) -> None:
        """Reads state and metadata; once more if asked to while it is reading."""
        if self._closing:
            return
        if guest.uuid in self._tasks:
            self._look_again.add(guest.uuid)
            return
        task = self._loop.create_task(self._look_at(guest), name=f"look at {guest}")
        self._tasks[guest.uuid] = task
        task.add_done_callback(lambda _: self._tasks.pop(guest.uuid, None))

    async def _look_at(self, guest: GuestId) -> None:
        while True:
            self._look_again.discard(guest.uuid)
            heard = self._heard.get(guest.uuid)
            try:
                async with self._slots:
                    look = partial(queries.describe_domain, uuid=guest.uuid)
                    snapshot = await self.ask(look, limit=None)
            except (Unreachable, CallFailed, CallTimeout) as error:
                log.debug("libvirt %s: %s cannot be read: %s", self._uri, guest.uuid, error)
                self._started.discard(guest.uuid)
                return
            self._known.metadata[guest.uuid] = snapshot.metadata
            services, problems = snapshot.metadata
            at = self._clock()
            self._tell(
                guest, MetadataChanged(at=at, guest=guest, services=services, problems=problems)
            )
            started = guest.uuid in self._started
            self._started.discard(guest.uuid)
            # Not if anything was heard meanwhile: what was read may be older than that.
            if (
                started
                and snapshot.power is DomainState.PAUSED
                and heard == self._heard[guest.uuid]
            ):
                paused = Paused(at=at, guest=guest, incarnation=snapshot.incarnation)
                self._tell(guest, paused)
            if guest.uuid not in self._look_again:
                return


def _incarnation(domain: Domain) -> int | None:
    number = domain.ID()
    return number if number >= 0 else None
