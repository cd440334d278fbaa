"""Events of Xen's domains that xenstore shows seconds before libvirt: requests and deaths.

A request (`virsh shutdown`, `xl reboot`, save, migration) is a word written to a domain's
control/shutdown, which the guest's kernel reads and clears within 8 to 110 ms. A watch reports that
the node was written, not its value: so the read is sent from within the watch's callback, before
anything else. If the guest was quicker all the same (the agent was busy), the watch has fired
twice, for the word and for its clearing, and both reads are empty. Nothing else does that to a
running domain, so it is reported as a request of unknown kind. libxl itself writes '' twice when it
creates a domain, but before the domain is introduced; domains are watched only from then on.

A death fires @releaseDomain, which names no domain: when the guest has shut down or crashed, and
again when its remains are destroyed. Only the second shows in xenstore (the domain is no longer
«introduced»). For the first, libvirt is asked (`find_dead`): its domain state shows the death some
50 ms later, its event seconds later.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from uuid import UUID

from xenlb.hypervisor.libvirt.queries import CallFailed, Unreachable
from xenlb.hypervisor.threads import CallTimeout
from xenlb.hypervisor.xenstore.client import XenstoreClient, XenstoreError, XenstoreUnavailable
from xenlb.hypervisor.xenstore.guest_messages import HOLD, SHUTDOWN, GuestNodeWatch
from xenlb.hypervisor.xenstore.guest_settings import Connection
from xenlb.hypervisor.xenstore.reported_addresses import read_reported_addresses
from xenlb.model.domain import GuestId, RequestKind
from xenlb.model.events import Died, HypervisorEvent, ShutdownCancelled, ShutdownRequested

log = logging.getLogger(__name__)

# Seconds.
SHORTEST_PAUSE, LONGEST_PAUSE = 0.5, 15.0
MISSED_REQUEST = 1.0  # the two firings of one missed request are milliseconds apart
# Pauses before each question to libvirt after a @releaseDomain, four seconds in all. libvirt's
# state followed after 50 ms on an idle host, after 150 to 850 ms on a busy one.
FIND_DEAD_PAUSES = (0.0, 0.02, 0.03, *(0.05,) * 19, *(0.1,) * 10, *(0.25,) * 8)

_REQUEST_KINDS = {
    "poweroff": RequestKind.POWEROFF,
    "halt": RequestKind.POWEROFF,
    "reboot": RequestKind.REBOOT,
    "suspend": RequestKind.SUSPEND,
    "s3": RequestKind.SUSPEND,
}
INTRODUCED, RELEASED = "introduced", "released"


@dataclass(slots=True, kw_only=True)
class _Domain:
    domid: int
    guest: GuestId
    watched: bool = False
    initial_read: bool = False  # the first read follows the registration of the watch, not a write
    request: str = ""
    empty_read_at: float = float("-inf")
    dead: bool = False


class XenstoreSource:
    """Source of events of the local Xen.

    `uri`: the libvirt URI of its guests. `find_dead` returns the domain ids that libvirt has
    reported as running and that are not alive. `emit` is called in the loop's thread.
    """

    def __init__(
        self,
        uri: str,
        emit: Callable[[HypervisorEvent], None],
        clock: Callable[[], float],
        *,
        socket_path: str | None = None,
        find_dead: Callable[[], Awaitable[frozenset[int]]] | None = None,
    ) -> None:
        self.uri = uri
        self._emit = emit
        self._clock = clock
        self._path = socket_path
        self._find_dead = find_dead
        self._domains: dict[int, _Domain] = {}
        self._client: XenstoreClient | None = None
        self._watches: tuple[GuestNodeWatch, ...] = ()
        self._hold_values: dict[int, str] = {}
        self._changed = asyncio.Event()
        self._released = asyncio.Event()
        self.connected = False
        self.missed_requests = 0  # whose word the guest cleared before it was read

    async def run(self) -> None:
        """Connect, report and reconnect until cancelled."""
        pause, warned = SHORTEST_PAUSE, False
        while True:
            client = XenstoreClient(self._on_watch)
            try:
                client.connect(self._path)
                self._client = client
                self._watches = (
                    GuestNodeWatch(client, SHUTDOWN, self._on_shutdown_node, self._clock, {}),
                    GuestNodeWatch(
                        client, HOLD, self._on_hold_node, self._clock, self._hold_values
                    ),
                )
                await self._start(client)
                pause, warned = SHORTEST_PAUSE, False
                reason = await self._run_until_lost(client)
            except (XenstoreUnavailable, XenstoreError) as error:
                reason = str(error)
            finally:
                self.connected, self._client = False, None
                client.close()
                for watch in self._watches:
                    await watch.close()
            if not warned:
                warned = True
                log.warning(
                    "xenstore: %s; until it is back libvirt reports requests and deaths, late"
                    " (is this Dom0, and does xenstored run?)",
                    reason,
                )
            await asyncio.sleep(pause * random.uniform(0.8, 1.2))
            pause = min(pause * 2, LONGEST_PAUSE)

    async def _start(self, client: XenstoreClient) -> None:
        for domain in self._domains.values():
            domain.watched = domain.initial_read = False
        await client.watch("@introduceDomain", INTRODUCED)
        await client.watch("@releaseDomain", RELEASED)
        await self._scan(client)
        self.connected = True
        log.info("xenstore: connected, %d domains", len(self._domains))

    async def _run_until_lost(self, client: XenstoreClient) -> str:
        """Run until the connection is lost; return the reason."""
        tasks = (
            asyncio.create_task(self._scan_on_change(client), name="xenstore: domains"),
            asyncio.create_task(self._find_deaths(), name="xenstore: deaths"),
        )
        waited: tuple[asyncio.Future[None] | asyncio.Future[str], ...] = (client.lost, *tasks)
        try:
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()  # raises: neither ends by itself
            return await client.lost
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _connection(self) -> XenstoreClient:
        if self._client is None:
            raise XenstoreUnavailable("not connected")
        return self._client

    async def reported_addresses(self, domid: int, most: int) -> tuple[str, ...]:
        """Read at most `most` addresses of a guest, unchecked. Raises XenstoreUnavailable."""
        return await read_reported_addresses(self._connection(), domid, most)

    async def write_settings(self, domid: int, text: str) -> str:
        """Write the settings of a guest that configures itself; return their serial.

        Raises XenstoreUnavailable or XenstoreError.
        """
        return await Connection(self._connection()).write_settings(domid, text)

    async def wait_for_answer(self, domid: int, serial: str) -> str:
        """Wait for the guest's result of these settings and return it: `ok` or `failed`.

        Raises XenstoreUnavailable or XenstoreError.
        """
        return await Connection(self._connection()).wait_for_answer(domid, serial)

    # --- watches, in the loop's thread -----------------------------------------------------------

    def _on_watch(self, _path: str, token: str) -> None:
        if token in {INTRODUCED, RELEASED}:
            self._changed.set()
            if token == RELEASED:
                log.debug("xenstore: @releaseDomain")
                self._released.set()
            return
        for watch in self._watches:
            if token.startswith(watch.node.token):
                watch.fired(token)
                return

    def _on_shutdown_node(self, domid: int, _guest: GuestId, request: str) -> None:
        """Handle a read of control/shutdown, after its watch has fired."""
        domain = self._domains.get(domid)
        if domain is None or domain.dead:
            return
        before, domain.request = domain.request, request
        initial, domain.initial_read = not domain.initial_read, True
        now = self._clock()
        if request:
            kind = _REQUEST_KINDS.get(request, RequestKind.POWERDOWN)
        elif initial or before:
            return  # the guest has taken its request, or there was none
        elif now - domain.empty_read_at > MISSED_REQUEST:
            domain.empty_read_at = now
            return
        else:
            kind = RequestKind.POWERDOWN
            domain.empty_read_at = float("-inf")
            self.missed_requests += 1
            log.debug("xenstore: domain %d took a request before it was read", domain.domid)
        self._emit(
            ShutdownRequested(at=now, guest=domain.guest, incarnation=domain.domid, kind=kind)
        )

    def _on_hold_node(self, domid: int, guest: GuestId, value: str) -> None:
        at = self._clock()
        if value == "leaving":
            kind = RequestKind.INSIDE
            self._emit(ShutdownRequested(at=at, guest=guest, incarnation=domid, kind=kind))
        else:
            self._emit(ShutdownCancelled(at=at, guest=guest, incarnation=domid))

    # --- domains ---------------------------------------------------------------------------------

    async def _scan_on_change(self, client: XenstoreClient) -> None:
        while True:
            await self._changed.wait()
            await self._scan(client)

    async def _scan(self, client: XenstoreClient) -> None:
        self._changed.clear()
        names = await client.directory("/local/domain")
        domids = sorted({int(name) for name in names if name.isdecimal() and name != "0"})
        states = await asyncio.gather(*(client.is_introduced(domid) for domid in domids))
        introduced = [domid for domid, state in zip(domids, states, strict=True) if state]
        for domid in [known for known in self._domains if known not in introduced]:
            domain = self._domains.pop(domid)
            self._report_death(domain)
            if domain.watched:
                for watch in self._watches:
                    await watch.remove(domid)
        for domid in introduced:
            await self._watch(client, domid)

    async def _watch(self, client: XenstoreClient, domid: int) -> None:
        domain = self._domains.get(domid)
        if domain is None:
            uuid = _uuid(await client.read(f"/local/domain/{domid}/vm"))
            if uuid is None:
                return
            domain = _Domain(domid=domid, guest=GuestId(uri=self.uri, uuid=uuid))
            self._domains[domid] = domain
        if not domain.watched:
            domain.watched = True
            for watch in self._watches:
                await watch.add(domid, domain.guest)

    # --- deaths ----------------------------------------------------------------------------------

    async def _find_deaths(self) -> None:
        pauses: list[float] = []
        while True:
            if not pauses:
                await self._released.wait()
            if self._released.is_set():  # start again
                self._released.clear()
                pauses = list(FIND_DEAD_PAUSES)
            await asyncio.sleep(pauses.pop(0))
            await self._report_deaths()

    async def _report_deaths(self) -> None:
        if self._find_dead is None:
            return
        try:
            dead = await self._find_dead()
        except (Unreachable, CallFailed, CallTimeout) as error:
            log.debug("xenstore: libvirt's domain states cannot be read: %s", error)
            return
        for domid in dead & self._domains.keys():
            self._report_death(self._domains[domid])

    def _report_death(self, domain: _Domain) -> None:
        if not domain.dead:
            domain.dead = True
            self._emit(Died(at=self._clock(), guest=domain.guest, incarnation=domain.domid))


def _uuid(vm: str | None) -> UUID | None:
    """Return the UUID in a domain's `vm`, which reads /vm/UUID."""
    if vm is None or not vm.startswith("/vm/"):
        return None
    try:
        return UUID(vm.removeprefix("/vm/")[:36])
    except ValueError:
        return None
