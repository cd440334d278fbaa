"""Finds the addresses of running guests that nobody has written down for us.

Sources, best first: <ip address=…> in the interface's XML, the DHCP lease of a libvirt network,
what the guest itself reports (xenstore, QEMU agent), the neighbour table by the MAC addresses of
its interfaces. All are asked each time; judge.py says which answers may be used, and the model
takes the first. While nothing usable is known a guest is looked at every second, then every ten;
a neighbour that appears wakes it at once. A source that falls silent keeps its last word while
the guest runs: the neighbour table forgets who is idle, leases run out, agents restart, and none
of that is a reason to take a server out.

A guest may report whatever it likes: it is cut, counted, and written down with ascii() only.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from uuid import UUID

import libvirt

from xenlb.hypervisor.domainxml import Interface, interfaces
from xenlb.hypervisor.hostnet import HostView, NeighbourWatch, look
from xenlb.hypervisor.judge import Context, judge_all
from xenlb.hypervisor.libvirt import LibvirtSource
from xenlb.hypervisor.listing import CallFailed, Connection, Domain, Unreachable, asking
from xenlb.hypervisor.threads import Stuck, in_thread
from xenlb.hypervisor.xenstore import XenstoreSource
from xenlb.hypervisor.xenstore_client import Refused as XenstoreRefused
from xenlb.hypervisor.xenstore_client import Unavailable
from xenlb.hypervisor.xmltext import Malformed
from xenlb.ipvs.table import IPAddress
from xenlb.model.events import AddressesFound, Found, GuestId, HypervisorEvent, Refused, Source
from xenlb.model.settings import IPNetwork

log = logging.getLogger(__name__)

# Seconds.
SEARCHING, SETTLED = 1.0, 10.0
SHORTEST = 0.1  # between two looks that neighbours asked for
CALL, AGENT = 10.0, 1.0
MOST = 16  # texts of one source
AT_ONCE = 4  # guests


@dataclass(slots=True, kw_only=True)
class _Search:
    incarnation: int | None
    due: float
    macs: frozenset[str] = frozenset()
    said: dict[Source, tuple[str, ...]] = field(default_factory=dict)
    found: tuple[Found, ...] = ()
    refused: tuple[Refused, ...] = ()
    agent: "asyncio.Task[list[str]] | None" = None

    def keep(self, source: Source, texts: Sequence[str]) -> None:
        """A source that falls silent keeps its last word."""
        if texts:
            self.said[source] = tuple(texts[:MOST])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Host:
    interfaces: tuple[Interface, ...] = ()
    leases: tuple[str, ...] = ()


@dataclass(slots=True)
class AddressFinder:
    """`libvirts` and `xenstores` by libvirt URI; they may be filled later.

    `emit` is called in the loop's thread.
    """

    emit: Callable[[HypervisorEvent], None]
    clock: Callable[[], float]
    libvirts: Mapping[str, LibvirtSource] = field(default_factory=dict)
    xenstores: Mapping[str, XenstoreSource] = field(default_factory=dict)
    _searches: dict[GuestId, _Search] = field(default_factory=dict)
    _services: frozenset[IPAddress] = frozenset()
    _networks: tuple[IPNetwork, ...] = ()
    _wake: asyncio.Event = field(default_factory=asyncio.Event)

    def interest(self, guests: Mapping[GuestId, int | None]) -> None:
        """Which guests to look for, with the incarnation each has now. Cheap to call again."""
        for guest in self._searches.keys() - guests.keys():
            self._forget(guest)
        for guest, incarnation in guests.items():
            search = self._searches.get(guest)
            if search is not None and search.incarnation == incarnation:
                continue
            self._forget(guest)
            self._searches[guest] = _Search(incarnation=incarnation, due=float("-inf"))
            self._wake.set()

    def context(
        self, service_addresses: Iterable[IPAddress], networks: Iterable[IPNetwork]
    ) -> None:
        """What the configuration adds to the judgement."""
        services, configured = frozenset(service_addresses), tuple(networks)
        if (services, configured) != (self._services, self._networks):
            self._services, self._networks = services, configured
            self._look_soon()

    async def run(self) -> None:
        """Until cancelled."""
        watch = NeighbourWatch(self._look_soon)
        try:
            watch.open()
        except OSError as error:
            log.warning("neighbours are looked up only now and then: %s", error.strerror)
        try:
            while True:
                self._wake.clear()
                await self._round()
                watch.follow(frozenset(m for s in self._searches.values() for m in s.macs))
                await asyncio.sleep(SHORTEST)
                due = min((s.due for s in self._searches.values()), default=float("inf"))
                pause = max(0.0, due - self.clock())
                try:
                    async with asyncio.timeout(pause if self._searches else None):
                        await self._wake.wait()
                except TimeoutError:
                    pass
        finally:
            watch.close()
            agents = [s.agent for s in self._searches.values() if s.agent is not None]
            for guest in tuple(self._searches):
                self._forget(guest)
            await asyncio.gather(*agents, return_exceptions=True)

    def _look_soon(self) -> None:
        for search in self._searches.values():
            search.due = float("-inf")
        self._wake.set()

    def _forget(self, guest: GuestId) -> None:
        search = self._searches.pop(guest, None)
        if search is not None and search.agent is not None:
            search.agent.add_done_callback(_heed)
            search.agent.cancel()

    async def _round(self) -> None:
        now = self.clock()
        due = [guest for guest, search in self._searches.items() if search.due <= now]
        if not due:
            return
        try:
            host = await in_thread(look, limit=CALL)
        except (OSError, Stuck) as error:
            log.warning("this host's addresses and neighbours cannot be read: %s", error)
            for guest in due:
                self._searches[guest].due = now + SETTLED
            return
        context = Context(
            networks=(*host.networks, *self._networks), own=host.own, services=self._services
        )
        slots = asyncio.Semaphore(AT_ONCE)

        async def one(guest: GuestId) -> None:
            async with slots:
                search = self._searches.get(guest)
                if search is not None:
                    await self._search(guest, search, host, context)

        async with asyncio.TaskGroup() as group:
            for guest in due:
                group.create_task(one(guest))

    async def _search(
        self, guest: GuestId, search: _Search, host: HostView, context: Context
    ) -> None:
        complete = await self._ask_sources(guest, search, host)
        if self._searches.get(guest) is not search:
            return  # of no interest any more, or started anew meanwhile
        if not complete:
            search.due = self.clock() + SEARCHING
            return
        candidates = [(text, source) for source, texts in search.said.items() for text in texts]
        found, refused = judge_all(candidates, context)
        search.due = self.clock() + (SETTLED if found else SEARCHING)
        if (found, refused) == (search.found, search.refused):
            return
        search.found, search.refused = found, refused
        log.debug("%s: found %s, refused %s", guest, found, refused)
        self.emit(
            AddressesFound(
                at=self.clock(),
                guest=guest,
                incarnation=search.incarnation,
                found=found,
                refused=refused,
            )
        )

    async def _ask_sources(self, guest: GuestId, search: _Search, host: HostView) -> bool:
        """Into `said`; False where libvirt cannot be asked, which tells nothing of the guest."""
        source = self.libvirts.get(guest.uri)
        if source is None:
            return False
        try:
            seen = await source.ask(partial(_look_at, uuid=guest.uuid), limit=CALL)
        except (Unreachable, CallFailed, Stuck) as error:
            log.debug("%s: its XML cannot be read: %s", guest, error)
            return False
        search.macs = frozenset(each.mac for each in seen.interfaces if each.mac is not None)
        search.said[Source.INTERFACE_XML] = tuple(
            text for each in seen.interfaces for text in each.addresses
        )
        search.keep(Source.LEASE, seen.leases)
        search.keep(Source.REPORTED, await self._reported(guest, search, source))
        self._neighbours(search, host)
        return True

    def _neighbours(self, search: _Search, host: HostView) -> None:
        texts = [
            str(address)
            for mac in sorted(search.macs)
            for address in host.neighbours.get(mac, ())
            if not address.is_link_local  # each IPv6 neighbour has one; nothing to tell of it
        ]
        others = {
            str(address)
            for mac, addresses in host.neighbours.items()
            if mac not in search.macs
            for address in addresses
        }
        kept = search.said.get(Source.NEIGHBOUR, ())
        search.said[Source.NEIGHBOUR] = tuple(text for text in kept if text not in others)
        search.keep(Source.NEIGHBOUR, texts)

    async def _reported(
        self, guest: GuestId, search: _Search, source: LibvirtSource
    ) -> Sequence[str]:
        xenstore = self.xenstores.get(guest.uri)
        if xenstore is not None and search.incarnation is not None:
            try:
                return await xenstore.reported(search.incarnation, MOST)
            except (Unavailable, XenstoreRefused) as error:
                log.debug("%s: xenstore: %s", guest, error)
                return ()
        if source.hypervisor_type != "QEMU":
            return ()
        # An agent that hangs holds its call for long: it is waited for a moment, and asked again
        # only after it has answered.
        if search.agent is None:
            call = source.ask(partial(_ask_agent, uuid=guest.uuid))
            search.agent = asyncio.create_task(call, name=f"agent of {guest}")
        done, _ = await asyncio.wait({search.agent}, timeout=AGENT)
        if not done:
            return ()
        task, search.agent = search.agent, None
        if task.cancelled() or task.exception() is not None:
            return ()
        return task.result()


def _heed(task: "asyncio.Task[list[str]]") -> None:
    """Nobody waits for this one: its failure is no news."""
    if not task.cancelled():
        task.exception()


# --- calls of libvirt, in a thread ---------------------------------------------------------------


def _look_at(connection: Connection, uuid: UUID) -> _Host:
    """Interfaces and leases; raises CallFailed."""
    with asking():
        domain = connection.lookupByUUIDString(str(uuid))
        try:
            found = interfaces(domain.XMLDesc(0))
        except Malformed as error:
            log.debug("%s: %s", uuid, error)
            return _Host()
    leases = _texts(domain, libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_LEASE)
    return _Host(interfaces=found, leases=tuple(leases))


def _ask_agent(connection: Connection, uuid: UUID) -> list[str]:
    with asking():
        domain = connection.lookupByUUIDString(str(uuid))
    return _texts(domain, libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_AGENT)


def _texts(domain: Domain, source: int) -> list[str]:
    """Addresses that libvirt knows from that source; none where the driver has no such source."""
    try:
        with asking():
            answer = domain.interfaceAddresses(source, 0)
    except CallFailed as error:
        if error.gone:
            raise
        return []  # unsupported by the driver, or no agent connected
    texts: list[str] = []
    for name, interface in (answer or {}).items():
        addresses = interface.get("addrs") if isinstance(interface, dict) else None
        if name == "lo" or not isinstance(addresses, list):
            continue
        for each in addresses:
            text = each.get("addr") if isinstance(each, dict) else None
            if isinstance(text, str) and not text.lower().startswith("fe80:"):
                texts.append(text)
    return texts
