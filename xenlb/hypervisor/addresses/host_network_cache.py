"""The network tables of this host, read once for all searches at about the same time.

They give the owners of each address by the neighbour table, and tell guests from other machines.
The part by which the model judges metadata is reported to it.
"""

import asyncio
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace

from xenlb.hypervisor.addresses.host_network import HostNetworkTables
from xenlb.hypervisor.threads import in_thread
from xenlb.ipvs.table import IPAddress
from xenlb.model.reserved_addresses import HostNetwork, HostNetworkChanged

SHORTEST = 0.1  # seconds between two readings
CALL = 10.0  # seconds
MOST_PROBED = 16  # addresses of a guest in one incarnation


class HostNetworkCache:
    """The tables as last read, and the part of them that the model has.

    `emit` is called in the loop's thread, `read` in another; `probe` has the kernel resolve an
    address. `metadata_addresses`: the addresses in the guests' metadata.
    """

    def __init__(
        self,
        emit: Callable[[HostNetworkChanged], None],
        clock: Callable[[], float],
        read: Callable[[], HostNetworkTables],
        probe: Callable[[IPAddress], None],
    ) -> None:
        self._emit = emit
        self._clock = clock
        self._read = read
        self._probe = probe
        self.metadata_addresses: frozenset[IPAddress] = frozenset()
        self._lock = asyncio.Lock()
        self._tables: tuple[float, HostNetworkTables] | None = None
        self._owners: dict[IPAddress, set[str]] = {}
        self._network: tuple[HostNetworkTables, frozenset[str], HostNetwork] | None = None
        self._reported: HostNetwork | None = None

    async def tables(self) -> HostNetworkTables:
        """Return the tables, at most SHORTEST seconds old. Raises OSError, CallTimeout."""
        requested_at = self._clock()
        async with self._lock:
            if self._tables is None or self._tables[0] < requested_at - SHORTEST:
                read_at = self._clock()
                tables = await in_thread(self._read, limit=CALL)
                self._tables = (read_at, tables)
                self._owners = {}
                for mac, addresses in tables.neighbours.items():
                    for address in addresses:
                        self._owners.setdefault(address, set()).add(mac)
            return self._tables[1]

    def is_elsewhere(self, address: IPAddress, macs: Collection[str]) -> bool:
        """Whether the address is in the neighbour table, and with none of these MAC addresses."""
        owners = self._owners.get(address)
        return owners is not None and owners.isdisjoint(macs)

    def host_network(self, tables: HostNetworkTables, guests: frozenset[str]) -> HostNetwork:
        """Return what addresses are checked against; `guests`: the guests' MAC addresses."""
        if self._network is None or self._network[0] is not tables or self._network[1] != guests:
            strangers = frozenset(
                address for address in self._owners if self.is_elsewhere(address, guests)
            )
            network = HostNetwork(own=tables.own, gateways=tables.gateways, strangers=strangers)
            self._network = (tables, guests, network)
        return self._network[2]

    def report(self, tables: HostNetworkTables, guests: frozenset[str], *, complete: bool) -> None:
        """Report changes to the model.

        `complete`: the MAC addresses of all guests are known; before that a guest would count as a
        stranger.
        """
        host = self.host_network(tables, guests)
        if not complete:
            strangers = frozenset() if self._reported is None else self._reported.strangers
            host = replace(host, strangers=strangers)
        host = replace(host, strangers=host.strangers & self.metadata_addresses)
        if host != self._reported:
            self._reported = host
            self._emit(HostNetworkChanged(at=self._clock(), host=host))

    def probe_unknown(self, addresses: Collection[IPAddress], probed: set[IPAddress]) -> bool:
        """Have the kernel resolve those addresses that the neighbour table does not have.

        Each is probed once, and at most MOST_PROBED in all; `probed` is the guest's record of them.
        True: replies are on their way, and until then a guest's report is better not used.
        """
        new = [a for a in addresses if a not in self._owners and a not in probed]
        new = new[: MOST_PROBED - len(probed)]
        probed.update(new)
        for address in new:
            self._probe(address)
        return bool(new)

    def probe_contradicted(self, addresses: Iterable[IPAddress], macs: Collection[str]) -> None:
        """Have the kernel resolve again the addresses that the table has with other MAC addresses.

        The neighbour table also contains machines that are gone.
        """
        for address in addresses:
            if self.is_elsewhere(address, macs):
                self._probe(address)
