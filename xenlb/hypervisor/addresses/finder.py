"""Finds the addresses of running guests that nobody has written down for us.

Sources, best first: <ip address=…> in the interface's XML, the DHCP lease of a libvirt network, the
neighbour table by the MAC addresses of its interfaces, what the guest itself reports (xenstore,
QEMU agent). All are asked each time; address_policy.py says which answers may be used, and the
model whose they are and which is taken. While nothing usable is known a guest is looked at every
second, and ever more rarely (searching()), then every ten; a neighbour that appears wakes it at
once. A source that falls silent keeps its last word while the guest runs: the neighbour table
forgets who is idle, leases run out, agents restart, and none of that is a reason to take a server
out.

A guest may report whatever it likes: it is cut, counted, and written down with ascii() only.
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
from xenlb.hypervisor.addresses.guest_agents import AgentRecord, GuestAgents, texts_of
from xenlb.hypervisor.addresses.host_network import (
    HostView,
    NeighbourWatch,
    carriers,
    probe_neighbour,
    read_host_network,
)
from xenlb.hypervisor.addresses.host_network_cache import SHORTEST, HostNetworkCache
from xenlb.hypervisor.libvirt.domain_xml import Interface, interfaces
from xenlb.hypervisor.libvirt.queries import CallFailed, Connection, Unreachable, libvirt_errors
from xenlb.hypervisor.libvirt.source import LibvirtSource
from xenlb.hypervisor.libvirt.xml_text import Malformed
from xenlb.hypervisor.threads import CallTimeout
from xenlb.hypervisor.xenstore.client import XenstoreError, XenstoreUnavailable
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
SEARCHING, RAREST, SETTLED = 1.0, 60.0, 10.0
WAKES = 10  # looks at once that neighbours ask for, which a guest can make appear at will
AGENT = 1.0
MOST = 16  # texts of one source
AT_ONCE = 2  # questions to libvirt


@dataclass(eq=False, slots=True, kw_only=True)
class _Search:
    """What is known of one guest in one incarnation, and the task that looks."""

    guest: GuestId
    incarnation: int | None
    looked_at: bool = False
    macs: frozenset[str] = frozenset()
    carriers: frozenset[str] | None = None
    problem: str = ""
    asked: set[IPAddress] = field(default_factory=set)
    said: dict[AddressSource, tuple[str, ...]] = field(default_factory=dict)
    found: tuple[AddressCandidate, ...] = ()
    refused: tuple[RejectedAddress, ...] = ()
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    task: "asyncio.Task[None] | None" = None
    agent: "asyncio.Task[list[str]] | None" = None
    record: AgentRecord = field(default_factory=AgentRecord)
    wakes: TokenBucket = field(default_factory=lambda: TokenBucket(WAKES, 1 / SEARCHING))

    def keep(self, source: AddressSource, texts: Sequence[str]) -> None:
        """A source that falls silent keeps its last word."""
        if texts:
            self.said[source] = tuple(texts[:MOST])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """`carriers`: this host's interfaces by which the guest is reached; None: of another host they
    are not known. `problem`: why its XML tells nothing."""

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
        read_host_network: Callable[[], HostView] = read_host_network,
        probe_neighbour: Callable[[IPAddress], None] = probe_neighbour,
    ) -> None:
        self._emit = emit
        self._clock = clock
        self._libvirts = libvirts
        self._xenstores = xenstores
        self._searches: dict[GuestId, _Search] = {}
        self._taken = AddressesInUse()
        self._within: tuple[IPNetwork, ...] = ()
        self._sight = HostNetworkCache(emit, clock, read_host_network, probe_neighbour)
        self._host_soon = asyncio.Event()
        self._group: asyncio.TaskGroup | None = None
        self._watch: NeighbourWatch | None = None
        # A guest that starts holds up every question about it, and there are only so many
        # connections to ask on (connections.CALLS).
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._agents = GuestAgents(clock)

    def interest(self, guests: Mapping[GuestId, int | None]) -> None:
        """Which guests to look for, with the incarnation each has now. Cheap to call again."""
        for guest in self._searches.keys() - guests.keys():
            self._forget(guest)
        for guest, incarnation in guests.items():
            search = self._searches.get(guest)
            if search is not None and search.incarnation == incarnation:
                continue
            self._forget(guest)
            search = self._searches[guest] = _Search(guest=guest, incarnation=incarnation)
            self._begin(search)

    def context(
        self, taken: AddressesInUse, within: Iterable[IPNetwork], written: Iterable[IPAddress] = ()
    ) -> None:
        """What the configuration adds to the judgement; `written`: addresses of metadata, which the
        model judges by what is seen of the host."""
        now = (taken, tuple(within), frozenset(written))
        if now != (self._taken, self._within, self._sight.written):
            self._taken, self._within, self._sight.written = now
            self._look_soon(None)

    async def run(self) -> None:
        """Until cancelled."""
        self._watch = NeighbourWatch(self._look_soon)
        try:
            self._watch.open()
        except OSError as error:
            log.warning("neighbours are looked up only now and then: %s", error.strerror)
        try:
            async with asyncio.TaskGroup() as self._group:
                for search in self._searches.values():
                    self._begin(search)
                await self._follow_host()
        finally:
            self._group = None
            self._watch.close()
            agents = [s.agent for s in self._searches.values() if s.agent is not None]
            for agent in agents:
                agent.cancel()
            await asyncio.gather(*agents, return_exceptions=True)

    def _begin(self, search: _Search) -> None:
        if self._group is not None:
            name = f"address of {search.guest}"
            search.task = self._group.create_task(self._follow(search), name=name)

    def _forget(self, guest: GuestId) -> None:
        search = self._searches.pop(guest, None)
        if search is None:
            return
        if search.task is not None:
            search.task.cancel()
        if search.agent is not None:
            search.agent.add_done_callback(_heed)
            search.agent.cancel()

    def _look_soon(self, mac: str | None) -> None:
        """At every guest, or at the one with that MAC address if it is still searched for: the
        entries of one that is known change all the time (reachable, stale, probe)."""
        if mac is None:
            self._host_soon.set()
        for search in self._searches.values():
            if mac is None or (mac in search.macs and not search.found):
                search.wake.set()

    async def _follow_host(self) -> None:
        """Tells the model of this host's network, now and whenever it has changed."""
        while True:
            self._host_soon.clear()
            with suppress(OSError, CallTimeout):  # told where a guest is looked at
                self._tell_host(await self._sight.view())
            await asyncio.sleep(SHORTEST)
            with suppress(TimeoutError):
                async with asyncio.timeout(SETTLED):
                    await self._host_soon.wait()

    def _tell_host(self, view: HostView) -> None:
        complete = all(search.looked_at for search in self._searches.values())
        self._sight.tell(view, self._known(), complete=complete)

    def _known(self) -> frozenset[str]:
        """The MAC addresses of the guests that were looked at."""
        return frozenset(mac for search in self._searches.values() for mac in search.macs)

    async def _follow(self, search: _Search) -> None:
        begun = self._clock()
        while True:
            search.wake.clear()
            await self._look(search)
            if self._watch is not None:
                self._watch.follow(self._known())
            search.wakes.take(self._clock())
            await asyncio.sleep(max(SHORTEST, search.wakes.wait(self._clock())))
            with suppress(TimeoutError):
                async with asyncio.timeout(
                    SETTLED if search.found else search_interval(self._clock() - begun)
                ):
                    await search.wake.wait()

    async def _look(self, search: _Search) -> None:
        try:
            host = await self._sight.view()
        except (OSError, CallTimeout) as error:
            log.warning("this host's addresses and neighbours cannot be read: %s", error)
            return
        if not await self._ask_sources(search, host):
            return
        self._tell_host(host)
        context = PolicyContext(
            host=self._sight.judged_by(host, self._known()),
            taken=self._taken,
            networks=tuple(
                network
                for name, networks in host.networks.items()
                if search.carriers is None or name in search.carriers
                for network in networks
            ),
            within=self._within,
        )
        candidates = [(text, source) for source, texts in search.said.items() for text in texts]
        found, refused = check_addresses(candidates, context)
        if search.problem:
            text, source = "the domain's XML", AddressSource.INTERFACE_XML
            refused += (RejectedAddress(text=text, source=source, reason=search.problem),)
        said = {each.address for each in found if each.source is AddressSource.REPORTED}
        if self._sight.find_out(said, search.asked):
            search.wake.set()
            return
        given = [each.address for each in found]
        given += [ip_address(each.text) for each in refused if each.reason == STRANGER]
        self._sight.nudge(given[:MOST], search.macs)
        if (found, refused) == (search.found, search.refused):
            return
        search.found, search.refused = found, refused
        told = [*map(str, found), *(f"refused {each}" for each in refused)]
        log.debug("guest %s: addresses: %s", search.guest, ", ".join(told) or "none")
        self._emit(
            AddressesFound(
                at=self._clock(),
                guest=search.guest,
                incarnation=search.incarnation,
                candidates=found,
                rejected=refused,
            )
        )

    async def _ask_sources(self, search: _Search, host: HostView) -> bool:
        """Into `said`; False where libvirt cannot be asked, which tells nothing of the guest."""
        guest = search.guest
        source = self._libvirts.get(guest.uri)
        if source is None:
            return False
        try:
            async with self._slots:
                look = partial(_look_at, uuid=guest.uuid, local=is_local(guest.uri))
                seen = await source.ask(look, limit=None)
        except (Unreachable, CallFailed, CallTimeout) as error:
            log.debug("%s: its XML cannot be read: %s", guest, error)
            return False
        search.macs = frozenset(each.mac for each in seen.interfaces if each.mac is not None)
        search.looked_at, search.carriers, search.problem = True, seen.carriers, seen.problem
        search.said[AddressSource.INTERFACE_XML] = tuple(
            text for each in seen.interfaces for text in each.addresses
        )
        search.keep(AddressSource.LEASE, seen.leases)
        search.keep(AddressSource.REPORTED, await self._reported(search, source))
        self._neighbours(search, host)
        return True

    def _neighbours(self, search: _Search, host: HostView) -> None:
        texts = [
            str(address)
            for mac in sorted(search.macs)
            for address in host.neighbours.get(mac, ())
            if not address.is_link_local  # each IPv6 neighbour has one; nothing to tell of it
        ]
        kept = search.said.get(AddressSource.NEIGHBOUR, ())
        search.said[AddressSource.NEIGHBOUR] = tuple(
            text for text in kept if not self._sight.is_elsewhere(ip_address(text), search.macs)
        )
        search.keep(AddressSource.NEIGHBOUR, texts)

    async def _reported(self, search: _Search, source: LibvirtSource) -> Sequence[str]:
        guest = search.guest
        xenstore = self._xenstores.get(guest.uri)
        if xenstore is not None and search.incarnation is not None:
            try:
                return await xenstore.reported(search.incarnation, MOST)
            except (XenstoreUnavailable, XenstoreError) as error:
                log.debug("%s: xenstore: %s", guest, error)
                return ()
        if source.hypervisor_type != "QEMU":
            return ()
        # An agent that hangs holds its call for long: it is waited for a moment, and asked again
        # only after it has answered.
        if search.agent is None:
            search.agent = asyncio.create_task(
                self._agents.addresses(search.record, source, guest.uuid), name=f"agent of {guest}"
            )
        done, _ = await asyncio.wait({search.agent}, timeout=AGENT)
        if not done:
            return ()
        task, search.agent = search.agent, None
        if task.cancelled() or task.exception() is not None:
            return ()
        return task.result()


def search_interval(age: float) -> float:
    """Seconds until the next look at a guest of which nothing usable is known for so long: what
    comes late is found late by a tenth, and one that never has an address costs ever less."""
    return min(max(SEARCHING, age / 10), RAREST)


def _heed(task: "asyncio.Task[list[str]]") -> None:
    """Nobody waits for this one: its failure is no news."""
    if not task.cancelled():
        task.exception()


# --- calls of libvirt, in a thread ---------------------------------------------------------------


def _look_at(connection: Connection, uuid: UUID, *, local: bool) -> _Seen:
    """Interfaces and leases; raises CallFailed. `local`: is it a guest of this host?"""
    with libvirt_errors():
        domain = connection.lookupByUUIDString(str(uuid))
        try:
            found = interfaces(domain.XMLDesc(0))
        except Malformed as error:
            return _Seen(problem=str(error), carriers=frozenset())
    leases = texts_of(domain, libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_LEASE)
    if len(leases) > 1:  # of one MAC address, perhaps, by two client identifiers
        expiry = _expiry(connection, found)
        leases.sort(key=lambda text: -expiry.get(text, 0))
    devices = [device for each in found for device in each.devices]
    return _Seen(
        interfaces=found,
        leases=tuple(leases),
        carriers=carriers(devices) if local else None,
    )


def _expiry(connection: Connection, found: Iterable[Interface]) -> dict[str, int]:
    """When each lease of these interfaces runs out, by its address: the newest is the last to."""
    times: dict[str, int] = {}
    for each in found:
        if each.network is None or each.mac is None:
            continue
        try:
            with libvirt_errors():
                leases = connection.networkLookupByName(each.network).DHCPLeases(each.mac)
        except CallFailed as error:
            log.debug("the leases of network %s cannot be read: %s", each.network, error)
            continue
        for lease in leases:
            text, at = lease.get("ipaddr"), lease.get("expirytime")
            if isinstance(text, str) and isinstance(at, int):
                times[text] = at
    return times
