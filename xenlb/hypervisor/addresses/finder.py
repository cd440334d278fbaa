"""Finds the addresses of running guests for which the configuration and metadata give none.

Sources, best first: <ip address=…> in the interface's XML, the DHCP lease of a libvirt network, the
neighbour table by the MAC addresses of the guest's interfaces, reports of the guest itself
(xenstore, QEMU agent). All are read each time; which texts are usable is checked here, and the
model decides which guest may use an address.

A guest without a usable address is looked at every second, later ever more rarely; one with an
address every ten seconds. A new neighbour causes a look at once. A source that has no addresses any
more keeps its last ones while the guest runs: the neighbour table forgets idle machines, leases
expire, agents restart, and none of that may remove a server.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from ipaddress import ip_address
from uuid import UUID

import libvirt

from xenlb.hypervisor.address_policy import PolicyContext, check_addresses
from xenlb.hypervisor.addresses.guest_agents import AgentHistory, GuestAgents, interface_addresses
from xenlb.hypervisor.addresses.host_network import (
    HostNetworkTables,
    NeighbourWatch,
    carrier_interfaces,
    probe_neighbour,
    read_host_network,
)
from xenlb.hypervisor.addresses.host_network_cache import SHORTEST, HostNetworkCache
from xenlb.hypervisor.libvirt.domain_xml import Interface, interfaces
from xenlb.hypervisor.libvirt.queries import CallFailed, Connection, Unreachable, libvirt_errors
from xenlb.hypervisor.libvirt.source import LibvirtSource
from xenlb.hypervisor.libvirt.xml_text import Malformed
from xenlb.hypervisor.threads import CallTimeout
from xenlb.hypervisor.xenstore.client import XenstoreUnavailable
from xenlb.hypervisor.xenstore.source import XenstoreSource
from xenlb.ipvs.table import IPAddress
from xenlb.model.addresses import AddressCandidate, AddressSource, RejectedAddress
from xenlb.model.domain import GuestId
from xenlb.model.events import AddressesFound, HypervisorEvent
from xenlb.model.host_drain import is_local
from xenlb.model.reserved_addresses import STRANGER, AddressesInUse
from xenlb.model.settings import IPNetwork
from xenlb.untrusted.rate import TokenBucket

log = logging.getLogger(__name__)

# Seconds.
FASTEST, SLOWEST, SETTLED = 1.0, 60.0, 10.0
AGENT = 1.0
WAKES = 10  # looks in a row that neighbours may cause, as a guest can make them appear at will
MOST = 16  # texts of one source
MAX_QUERIES = 2  # to libvirt


@dataclass(eq=False, slots=True, kw_only=True)
class _GuestSearch:
    """The search for one guest's addresses in one incarnation."""

    guest: GuestId
    incarnation: int | None
    inspected: bool = False  # its XML was read
    macs: frozenset[str] = frozenset()
    carriers: frozenset[str] | None = None
    problem: str = ""
    probed: set[IPAddress] = field(default_factory=set)
    texts: dict[AddressSource, tuple[str, ...]] = field(default_factory=dict)
    usable: tuple[AddressCandidate, ...] = ()
    rejected: tuple[RejectedAddress, ...] = ()
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    task: "asyncio.Task[None] | None" = None
    agent: "asyncio.Task[list[str]] | None" = None
    agent_history: AgentHistory = field(default_factory=AgentHistory)
    wakes: TokenBucket = field(default_factory=lambda: TokenBucket(WAKES, 1 / FASTEST))

    def update(self, source: AddressSource, texts: Sequence[str]) -> None:
        """Set the texts of a source; an empty one keeps its last texts."""
        if texts:
            self.texts[source] = tuple(texts[:MOST])


@dataclass(frozen=True, slots=True, kw_only=True)
class _DomainNetwork:
    """Interfaces and leases of a domain.

    `carriers`: this host's interfaces through which it reaches the guest; None for guests of other
    hosts. `problem`: why its XML cannot be used.
    """

    interfaces: tuple[Interface, ...] = ()
    leases: tuple[str, ...] = ()
    carriers: frozenset[str] | None = None
    problem: str = ""


class AddressFinder:
    """`libvirts` and `xenstores` by libvirt URI; they may be filled later.

    `emit` is called in the loop's thread.
    """

    def __init__(
        self,
        emit: Callable[[HypervisorEvent], None],
        clock: Callable[[], float],
        libvirts: Mapping[str, LibvirtSource],
        xenstores: Mapping[str, XenstoreSource],
        *,
        read_host_network: Callable[[], HostNetworkTables] = read_host_network,
        probe_neighbour: Callable[[IPAddress], None] = probe_neighbour,
    ) -> None:
        self._emit = emit
        self._clock = clock
        self._libvirts = libvirts
        self._xenstores = xenstores
        self._searches: dict[GuestId, _GuestSearch] = {}
        self._taken = AddressesInUse()
        self._within: tuple[IPNetwork, ...] = ()
        self._host = HostNetworkCache(emit, clock, read_host_network, probe_neighbour)
        self._wake_host = asyncio.Event()
        self._group: asyncio.TaskGroup | None = None
        self._watch: NeighbourWatch | None = None
        # A guest that starts delays every call about it, and connections are limited.
        self._slots = asyncio.Semaphore(MAX_QUERIES)
        self._agents = GuestAgents(clock)

    def search_for(self, guests: Mapping[GuestId, int | None]) -> None:
        """Set the guests to search for, with their present incarnations. Cheap if unchanged."""
        for guest in self._searches.keys() - guests.keys():
            self._stop_search(guest)
        for guest, incarnation in guests.items():
            search = self._searches.get(guest)
            if search is not None and search.incarnation == incarnation:
                continue
            self._stop_search(guest)
            search = self._searches[guest] = _GuestSearch(guest=guest, incarnation=incarnation)
            self._start_search(search)

    def set_policy(
        self, taken: AddressesInUse, within: Iterable[IPNetwork], written: Iterable[IPAddress] = ()
    ) -> None:
        """Set what the configuration adds to the checks.

        `written`: addresses of metadata, which the model checks against the reported host network.
        """
        policy = (taken, tuple(within), frozenset(written))
        if policy != (self._taken, self._within, self._host.metadata_addresses):
            self._taken, self._within, self._host.metadata_addresses = policy
            self._wake(None)

    async def run(self) -> None:
        """Search until cancelled."""
        self._watch = NeighbourWatch(self._wake)
        try:
            self._watch.open()
        except OSError as error:
            log.warning("neighbours are looked up only now and then: %s", error.strerror)
        try:
            async with asyncio.TaskGroup() as self._group:
                for search in self._searches.values():
                    self._start_search(search)
                await self._report_host()
        finally:
            self._group = None
            self._watch.close()
            agents = [s.agent for s in self._searches.values() if s.agent is not None]
            for agent in agents:
                agent.cancel()
            await asyncio.gather(*agents, return_exceptions=True)

    def _start_search(self, search: _GuestSearch) -> None:
        if self._group is not None:
            name = f"address of {search.guest}"
            search.task = self._group.create_task(self._search(search), name=name)

    def _stop_search(self, guest: GuestId) -> None:
        search = self._searches.pop(guest, None)
        if search is None:
            return
        if search.task is not None:
            search.task.cancel()
        if search.agent is not None:
            # Retrieves the exception, so that asyncio does not log it.
            search.agent.add_done_callback(lambda task: task.cancelled() or task.exception())
            search.agent.cancel()

    def _wake(self, mac: str | None) -> None:
        """Look at all guests at once, or at the one with that MAC address if it has no address yet.

        Entries of known neighbours change all the time (reachable, stale, probe).
        """
        if mac is None:
            self._wake_host.set()
        for search in self._searches.values():
            if mac is None or (mac in search.macs and not search.usable):
                search.wake.set()

    async def _report_host(self) -> None:
        """Report this host's network to the model, now and after each change."""
        while True:
            self._wake_host.clear()
            with suppress(OSError, CallTimeout):  # logged when a guest is looked at
                self._report_host_network(await self._host.tables())
            await asyncio.sleep(SHORTEST)
            with suppress(TimeoutError):
                async with asyncio.timeout(SETTLED):
                    await self._wake_host.wait()

    def _report_host_network(self, tables: HostNetworkTables) -> None:
        complete = all(search.inspected for search in self._searches.values())
        self._host.report(tables, self._guest_macs(), complete=complete)

    def _guest_macs(self) -> frozenset[str]:
        return frozenset(mac for search in self._searches.values() for mac in search.macs)

    async def _search(self, search: _GuestSearch) -> None:
        started = self._clock()
        while True:
            search.wake.clear()
            await self._look(search)
            if self._watch is not None:
                self._watch.set_macs(self._guest_macs())
            search.wakes.take(self._clock())
            await asyncio.sleep(max(SHORTEST, search.wakes.wait(self._clock())))
            with suppress(TimeoutError):
                async with asyncio.timeout(
                    SETTLED if search.usable else search_interval(self._clock() - started)
                ):
                    await search.wake.wait()

    async def _look(self, search: _GuestSearch) -> None:
        try:
            tables = await self._host.tables()
        except (OSError, CallTimeout) as error:
            log.warning("this host's addresses and neighbours cannot be read: %s", error)
            return
        if not await self._read_sources(search, tables):
            return
        self._report_host_network(tables)
        context = PolicyContext(
            host=self._host.host_network(tables, self._guest_macs()),
            taken=self._taken,
            networks=tuple(
                network
                for name, networks in tables.networks.items()
                if search.carriers is None or name in search.carriers
                for network in networks
            ),
            within=self._within,
        )
        candidates = [(text, source) for source, texts in search.texts.items() for text in texts]
        usable, rejected = check_addresses(candidates, context)
        if search.problem:
            text, source = "the domain's XML", AddressSource.INTERFACE_XML
            rejected += (RejectedAddress(text=text, source=source, reason=search.problem),)
        reported = {c.address for c in usable if c.source is AddressSource.REPORTED}
        if self._host.probe_unknown(reported, search.probed):
            search.wake.set()
            return
        addresses = [candidate.address for candidate in usable]
        addresses += [ip_address(r.text) for r in rejected if r.reason == STRANGER]
        self._host.probe_contradicted(addresses[:MOST], search.macs)
        if (usable, rejected) == (search.usable, search.rejected):
            return
        search.usable, search.rejected = usable, rejected
        summary = [*map(str, usable), *(f"refused {rejection}" for rejection in rejected)]
        log.debug("guest %s: addresses: %s", search.guest, ", ".join(summary) or "none")
        self._emit(
            AddressesFound(
                at=self._clock(),
                guest=search.guest,
                incarnation=search.incarnation,
                candidates=usable,
                rejected=rejected,
            )
        )

    async def _read_sources(self, search: _GuestSearch, tables: HostNetworkTables) -> bool:
        """Update the search's texts; False if libvirt does not answer."""
        guest = search.guest
        source = self._libvirts.get(guest.uri)
        if source is None:
            return False
        try:
            async with self._slots:
                read = partial(_domain_network, uuid=guest.uuid, local=is_local(guest.uri))
                domain = await source.call(read, limit=None)
        except (Unreachable, CallFailed, CallTimeout) as error:
            log.debug("%s: its XML cannot be read: %s", guest, error)
            return False
        search.macs = frozenset(i.mac for i in domain.interfaces if i.mac is not None)
        search.inspected, search.carriers, search.problem = True, domain.carriers, domain.problem
        search.texts[AddressSource.INTERFACE_XML] = tuple(
            text for interface in domain.interfaces for text in interface.addresses
        )
        search.update(AddressSource.LEASE, domain.leases)
        search.update(AddressSource.REPORTED, await self._reported_texts(search, source))
        self._update_neighbours(search, tables)
        return True

    def _update_neighbours(self, search: _GuestSearch, tables: HostNetworkTables) -> None:
        kept = search.texts.get(AddressSource.NEIGHBOUR, ())
        search.texts[AddressSource.NEIGHBOUR] = tuple(
            text for text in kept if not self._host.is_elsewhere(ip_address(text), search.macs)
        )
        texts = [
            str(address)
            for mac in sorted(search.macs)
            for address in tables.neighbours.get(mac, ())
            if not address.is_link_local  # each IPv6 neighbour has one
        ]
        search.update(AddressSource.NEIGHBOUR, texts)

    async def _reported_texts(self, search: _GuestSearch, source: LibvirtSource) -> Sequence[str]:
        guest = search.guest
        xenstore = self._xenstores.get(guest.uri)
        if xenstore is not None and search.incarnation is not None:
            try:
                return await xenstore.reported_addresses(search.incarnation, MOST)
            except XenstoreUnavailable as error:
                log.debug("%s: xenstore: %s", guest, error)
                return ()
        if source.hypervisor_type != "QEMU":
            return ()
        # A query of a hung agent takes long: the search goes on after AGENT seconds and uses the
        # result the next time.
        if search.agent is None:
            search.agent = asyncio.create_task(
                self._agents.addresses(search.agent_history, source, guest.uuid),
                name=f"agent of {guest}",
            )
        done, _ = await asyncio.wait({search.agent}, timeout=AGENT)
        if not done:
            return ()
        task, search.agent = search.agent, None
        if task.cancelled() or task.exception() is not None:
            return ()
        return task.result()


def search_interval(age: float) -> float:
    """Return the seconds until the next look at a guest without a usable address for `age` seconds.

    An address that appears late is found with a delay of a tenth of that time, and a guest that
    never has one costs ever less.
    """
    return min(max(FASTEST, age / 10), SLOWEST)


# --- calls of libvirt, in a thread ---------------------------------------------------------------


def _domain_network(connection: Connection, uuid: UUID, *, local: bool) -> _DomainNetwork:
    """Read interfaces and leases; raises CallFailed. `local`: the guest is on this host."""
    with libvirt_errors():
        domain = connection.lookupByUUIDString(str(uuid))
        try:
            parsed = interfaces(domain.XMLDesc(0))
        except Malformed as error:
            return _DomainNetwork(problem=str(error), carriers=frozenset())
    leases = interface_addresses(domain, libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_LEASE)
    if len(leases) > 1:  # perhaps of one MAC address, by two client identifiers
        expiry = _lease_expiry(connection, parsed)
        leases.sort(key=lambda text: -expiry.get(text, 0))
    devices = [device for interface in parsed for device in interface.devices]
    return _DomainNetwork(
        interfaces=parsed,
        leases=tuple(leases),
        carriers=carrier_interfaces(devices) if local else None,
    )


def _lease_expiry(connection: Connection, parsed: Iterable[Interface]) -> dict[str, int]:
    """Return by address when each lease of these interfaces expires: the newest expires last."""
    expiry: dict[str, int] = {}
    for interface in parsed:
        if interface.network is None or interface.mac is None:
            continue
        try:
            with libvirt_errors():
                network = connection.networkLookupByName(interface.network)
                leases = network.DHCPLeases(interface.mac)
        except CallFailed as error:
            log.debug("the leases of network %s cannot be read: %s", interface.network, error)
            continue
        for lease in leases:
            text, expires = lease.get("ipaddr"), lease.get("expirytime")
            if isinstance(text, str) and isinstance(expires, int):
                expiry[text] = expires
    return expiry
