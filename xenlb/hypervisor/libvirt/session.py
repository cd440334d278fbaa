"""One connected period of a libvirt: callbacks, listings, refreshes of single guests.

LibvirtSource makes one session after the other. Calls block and run in threads. Callbacks run in
the loop's thread and use only those attributes of a domain that need no call to the daemon.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from uuid import UUID

import libvirt

from xenlb.hypervisor.libvirt import qmp, queries
from xenlb.hypervisor.libvirt.connections import Connections
from xenlb.hypervisor.libvirt.metadata import NAMESPACE, NOTHING, Metadata
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

# Seconds.
RELIST_DELAY = 0.5  # guests defined within this time share one listing
LISTING = 300.0  # a domain's start or end, which delays a listing, never takes so long
# A refresh of a domain that is being started waits for it and occupies a connection meanwhile.
REFRESHES = 2

_STOP_REASONS = {
    libvirt.VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN: StopReason.SHUTDOWN,
    libvirt.VIR_DOMAIN_EVENT_STOPPED_DESTROYED: StopReason.DESTROYED,
    libvirt.VIR_DOMAIN_EVENT_STOPPED_CRASHED: StopReason.CRASHED,
    libvirt.VIR_DOMAIN_EVENT_STOPPED_MIGRATED: StopReason.MIGRATED,
    libvirt.VIR_DOMAIN_EVENT_STOPPED_SAVED: StopReason.SAVED,
    libvirt.VIR_DOMAIN_EVENT_STOPPED_FAILED: StopReason.FAILED,
    libvirt.VIR_DOMAIN_EVENT_STOPPED_FROM_SNAPSHOT: StopReason.FROM_SNAPSHOT,
}
_CLOSE_REASONS = {
    libvirt.VIR_CONNECT_CLOSE_REASON_ERROR: "the connection broke",
    libvirt.VIR_CONNECT_CLOSE_REASON_EOF: "libvirtd has ended",
    libvirt.VIR_CONNECT_CLOSE_REASON_KEEPALIVE: "libvirtd does not answer (keepalive)",
    libvirt.VIR_CONNECT_CLOSE_REASON_CLIENT: "closed here",
}


@dataclass(slots=True)
class DomainMemory:
    """Facts that outlive a session.

    They are libvirt's name of the hypervisor, guests that were reported, ids of domains that were
    reported as running or paused, and metadata as last read.
    """

    hypervisor_type: str = ""
    reported: set[UUID] = field(default_factory=set)
    running: set[int] = field(default_factory=set)
    metadata: dict[UUID, Metadata] = field(default_factory=dict)


class Session:
    """`lost` is done, with the reason, once the connections are unusable."""

    def __init__(
        self,
        connections: Connections,
        *,
        uri: str,
        emit: Callable[[HypervisorEvent], None],
        clock: Callable[[], float],
        memory: DomainMemory,
    ) -> None:
        self.connections = connections
        self._uri = uri
        self._emit = emit
        self._clock = clock
        self._memory = memory
        self._loop = asyncio.get_running_loop()
        self.lost: asyncio.Future[str] = self._loop.create_future()
        self.listed = False
        self._closing = False
        self._list_lock = asyncio.Lock()
        self._deferred: list[HypervisorEvent] = []  # of guests that are not listed yet
        self._started_since_listing: set[int] = set()  # ids
        self._callbacks: list[int] = []
        self._monitor_callbacks: tuple[int, ...] = ()
        self._cancellations: dict[UUID, asyncio.TimerHandle] = {}  # reported after qmp.CLOSED
        self._relisting: asyncio.Task[None] | None = None
        self._refresh_slots = asyncio.Semaphore(REFRESHES)
        self._refreshes: dict[UUID, asyncio.Task[None]] = {}
        self._refresh_again: set[UUID] = set()
        self._just_started: set[UUID] = set()  # refreshed because they started
        self._event_counts: dict[UUID, int] = {}  # life cycle events

    # --- the life of the connections -------------------------------------------------------------

    async def start(self) -> None:
        """Register the callbacks and list. Raises CallFailed, CallTimeout or Unreachable.

        Unreachable has the reason why the connections are lost: a listing that hangs never returns.
        """
        starting = asyncio.create_task(self._start(), name=f"start with libvirt {self._uri}")
        either: set[asyncio.Future[Any]] = {starting, self.lost}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not starting.done():
                starting.cancel()
                await asyncio.wait({starting})
        if starting.cancelled():
            raise Unreachable(self.lost.result())
        starting.result()

    async def _start(self) -> None:
        await self.connections.start(self._on_close, self._deregister)
        await self.connections.call_main(self._register)
        await self.list()

    def _register(self, connection: Connection) -> None:
        with libvirt_errors():
            self._memory.hypervisor_type = connection.getType()
            for event, callback in (
                (libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._on_lifecycle),
                (libvirt.VIR_DOMAIN_EVENT_ID_REBOOT, self._on_reboot),
                (libvirt.VIR_DOMAIN_EVENT_ID_METADATA_CHANGE, self._on_metadata),
            ):
                number = connection.domainEventRegisterAny(None, event, callback, None)
                self._callbacks.append(number)
        if self._memory.hypervisor_type == "QEMU":
            self._monitor_callbacks = qmp.register(connection, self._on_monitor)

    def _deregister(self, connection: Connection) -> None:
        # close() waits for ever while a callback is registered.
        qmp.deregister(connection, self._monitor_callbacks)
        for number in self._callbacks:
            with suppress(libvirt.libvirtError):
                connection.domainEventDeregisterAny(number)

    @property
    def listing(self) -> bool:
        """Whether a listing is running."""
        return self._list_lock.locked()

    async def list(self) -> None:
        """Emit GuestsListed. Raises CallFailed, CallTimeout, or Unreachable if the session ends.

        A domain that is being started or destroyed delays the listing, on a busy Dom0 by half a
        minute. Keepalive detects a daemon that hangs. A network that silently drops only this
        connection, and so its events, is detected by LISTING alone.
        """
        async with self._list_lock:
            requested_at = self._clock()
            self._started_since_listing.clear()
            list_domains = partial(queries.list_domains, uri=self._uri)
            try:
                guests = await self.connections.call_main(list_domains, limit=LISTING)
            except CallTimeout:
                self._lose(f"a listing did not end within {LISTING:g} s")
                raise
            self._memory.reported = {guest.guest.uuid for guest in guests}
            listed = {guest.incarnation for guest in guests if guest.incarnation is not None}
            self._memory.running = listed | self._started_since_listing
            self._memory.metadata = {
                guest.guest.uuid: (guest.metadata, guest.metadata_problems) for guest in guests
            }
            self._emit(
                GuestsListed(
                    at=self._clock(), uri=self._uri, requested_at=requested_at, guests=guests
                )
            )
            self.listed = True
            deferred, self._deferred = self._deferred, []
            for event in deferred:
                self._emit(event)

    def _relist_soon(self) -> None:
        """List for a new guest: it can be mentioned in commands before it is started."""
        if self._closing or not self.listed or (self._relisting and not self._relisting.done()):
            return
        self._relisting = self._loop.create_task(self._relist(), name="list new guests")

    async def _relist(self) -> None:
        await asyncio.sleep(RELIST_DELAY)
        try:
            await self.list()
        except (Unreachable, CallFailed, CallTimeout) as error:
            log.debug("libvirt %s: new guests cannot be listed now: %s", self._uri, error)

    def _lose(self, reason: str) -> None:
        if not self.lost.done():
            self.lost.set_result(reason)

    async def close(self) -> None:
        """End the session within connections.CLOSE seconds; later callbacks are ignored."""
        self._closing = True
        for cancellation in self._cancellations.values():
            cancellation.cancel()
        tasks = [*self._refreshes.values(), *([self._relisting] if self._relisting else [])]
        for task in tasks:
            task.cancel()
        try:
            await self.connections.end(lost=self.lost.done())
        finally:
            await asyncio.gather(*tasks, return_exceptions=True)

    # --- callbacks, in the loop's thread ---------------------------------------------------------

    def _on_close(self, _connection: Connection, reason: int, _opaque: object) -> None:
        # This one may run in the thread whose call met the end of the connection.
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(
                self._lose, _CLOSE_REASONS.get(reason, f"closed (reason {reason})")
            )

    def _on_lifecycle(
        self, _connection: Connection, domain: Domain, event: int, detail: int, _opaque: object
    ) -> None:
        guest, incarnation, at = self._guest(domain), _incarnation(domain), self._clock()
        name = queries.domain_name(domain)
        log.debug("libvirt %s: %s: event %d/%d", self._uri, name, event, detail)
        self._event_counts[guest.uuid] = self._event_counts.get(guest.uuid, 0) + 1
        match event:
            case libvirt.VIR_DOMAIN_EVENT_STARTED:
                self._on_started(name, guest, incarnation, at)
            case libvirt.VIR_DOMAIN_EVENT_SUSPENDED | libvirt.VIR_DOMAIN_EVENT_PMSUSPENDED:
                self._report(guest, Paused(at=at, guest=guest, incarnation=incarnation))
            case libvirt.VIR_DOMAIN_EVENT_RESUMED:
                self._report(guest, Resumed(at=at, guest=guest, incarnation=incarnation))
            case libvirt.VIR_DOMAIN_EVENT_SHUTDOWN:
                # QEMU: the guest has ended, its process ends later.
                self._report(guest, Died(at=at, guest=guest, incarnation=incarnation))
            case libvirt.VIR_DOMAIN_EVENT_STOPPED:
                self._memory.running.discard(domain.ID())
                reason = _STOP_REASONS.get(detail, StopReason.UNKNOWN)
                self._report(
                    guest, Stopped(at=at, guest=guest, incarnation=incarnation, reason=reason)
                )
            case libvirt.VIR_DOMAIN_EVENT_CRASHED:
                self._report(guest, Crashed(at=at, guest=guest, incarnation=incarnation))
            case libvirt.VIR_DOMAIN_EVENT_UNDEFINED:
                self._memory.reported.discard(guest.uuid)
                self._report(guest, Undefined(at=at, guest=guest))
            case libvirt.VIR_DOMAIN_EVENT_DEFINED if guest.uuid not in self._memory.reported:
                self._relist_soon()
            case _:
                pass

    def _on_started(self, name: str, guest: GuestId, incarnation: int | None, at: float) -> None:
        if incarnation is None:
            return  # no driver does this; a guest without an id does not run
        services, problems = self._memory.metadata.get(guest.uuid, NOTHING)
        self._memory.reported.add(guest.uuid)
        self._memory.running.add(incarnation)
        self._started_since_listing.add(incarnation)
        self._report(
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
        # On Xen no event reports that a guest was started paused, and metadata needs a call.
        self._just_started.add(guest.uuid)
        self._refresh(guest)

    def _on_reboot(self, _connection: Connection, domain: Domain, _opaque: object) -> None:
        guest = self._guest(domain)
        event = Rebooted(at=self._clock(), guest=guest, incarnation=_incarnation(domain))
        self._report(guest, event)

    def _on_metadata(
        self,
        _connection: Connection,
        domain: Domain,
        kind: int,
        namespace: str | None,
        _opaque: object,
    ) -> None:
        if kind == libvirt.VIR_DOMAIN_METADATA_ELEMENT and namespace == NAMESPACE:
            self._refresh(self._guest(domain))

    def _on_monitor(self, domain: Domain, name: str, details: str | None) -> None:
        guest = self._guest(domain)
        log.debug(
            "libvirt %s: %s: QMP %s %s",
            self._uri,
            queries.domain_name(domain),
            name,
            printable(details or "", 200),
        )
        event = qmp.hypervisor_event(
            name, details, guest=guest, incarnation=_incarnation(domain), at=self._clock()
        )
        if event is None:
            return
        if name == "VSERPORT_CHANGE" and guest.uuid in self._cancellations:
            self._cancellations.pop(guest.uuid).cancel()
        if isinstance(event, ShutdownCancelled):
            self._cancellations[guest.uuid] = self._loop.call_later(
                qmp.CLOSED, self._report, guest, event
            )
        else:
            self._report(guest, event)

    def _guest(self, domain: Domain) -> GuestId:
        return GuestId(uri=self._uri, uuid=UUID(domain.UUIDString()))

    def _report(self, guest: GuestId, event: HypervisorEvent) -> None:
        if self._closing:
            return
        if self.listed or guest.uuid in self._memory.reported:
            self._emit(event)
        else:
            self._deferred.append(event)

    # --- refreshes of single guests --------------------------------------------------------------

    def _refresh(self, guest: GuestId) -> None:
        """Read state and metadata; once more if called while that is running."""
        if self._closing:
            return
        if guest.uuid in self._refreshes:
            self._refresh_again.add(guest.uuid)
            return
        task = self._loop.create_task(self._run_refresh(guest), name=f"refresh {guest}")
        self._refreshes[guest.uuid] = task
        task.add_done_callback(lambda _: self._refreshes.pop(guest.uuid, None))

    async def _run_refresh(self, guest: GuestId) -> None:
        while True:
            self._refresh_again.discard(guest.uuid)
            events_before = self._event_counts.get(guest.uuid)
            try:
                async with self._refresh_slots:
                    describe = partial(queries.describe_domain, guest=guest)
                    domain = await self.connections.call(describe, limit=None)
            except (Unreachable, CallFailed, CallTimeout) as error:
                log.debug("libvirt %s: %s cannot be read: %s", self._uri, guest.uuid, error)
                self._just_started.discard(guest.uuid)
                return
            services, problems = domain.metadata, domain.metadata_problems
            self._memory.metadata[guest.uuid] = (services, problems)
            at = self._clock()
            self._report(
                guest, MetadataChanged(at=at, guest=guest, services=services, problems=problems)
            )
            # Not after another event: the state that was read may be older than that event.
            if (
                guest.uuid in self._just_started
                and domain.domain_state is DomainState.PAUSED
                and events_before == self._event_counts[guest.uuid]
            ):
                self._report(guest, Paused(at=at, guest=guest, incarnation=domain.incarnation))
            self._just_started.discard(guest.uuid)
            if guest.uuid not in self._refresh_again:
                return


def _incarnation(domain: Domain) -> int | None:
    domid = domain.ID()
    return domid if domid >= 0 else None
