"""What this host sees of its own network, for all who look at about the same time.

Who has which address by the neighbour table, and which of them are no guests; the model is told of
what it judges metadata by. How the tables are read: host_network.py.
"""

import asyncio
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace

from xenlb.hypervisor.addresses.host_network import HostView
from xenlb.hypervisor.threads import in_thread
from xenlb.ipvs.table import IPAddress
from xenlb.model.reserved_addresses import HostNetwork, HostNetworkChanged

SHORTEST = 0.1  # seconds between two readings
CALL = 10.0  # seconds
MOST_ASKED = 16  # addresses of a guest in a boot


class HostNetworkCache:
    """`emit` is called in the loop's thread, `look` in another. `written`: the addresses that
    metadata gives."""

    def __init__(
        self,
        emit: Callable[[HostNetworkChanged], None],
        clock: Callable[[], float],
        look: Callable[[], HostView],
        nudge: Callable[[IPAddress], None],
    ) -> None:
        self._emit = emit
        self._clock = clock
        self._look = look
        self._nudge = nudge
        self.written: frozenset[IPAddress] = frozenset()
        self._looking = asyncio.Lock()
        self._view: tuple[float, HostView] | None = None
        self._having: dict[IPAddress, set[str]] = {}
        self._judged: tuple[HostView, frozenset[str], HostNetwork] | None = None
        self._told: HostNetwork | None = None

    async def view(self) -> HostView:
        """The tables, now. Raises OSError, Stuck."""
        wanted = self._clock()
        async with self._looking:
            if self._view is None or self._view[0] < wanted - SHORTEST:
                begun = self._clock()
                view = await in_thread(self._look, limit=CALL)
                self._view = (begun, view)
                self._having = {}
                for mac, addresses in view.neighbours.items():
                    for address in addresses:
                        self._having.setdefault(address, set()).add(mac)
            return self._view[1]

    def is_elsewhere(self, address: IPAddress, macs: Collection[str]) -> bool:
        """Is it seen, and at none of these MAC addresses?"""
        having = self._having.get(address)
        return having is not None and having.isdisjoint(macs)

    def judged_by(self, view: HostView, known: frozenset[str]) -> HostNetwork:
        """`known`: the MAC addresses of guests."""
        if self._judged is None or self._judged[0] is not view or self._judged[1] != known:
            strangers = frozenset(each for each in self._having if self.is_elsewhere(each, known))
            host = HostNetwork(own=view.own, gateways=view.gateways, strangers=strangers)
            self._judged = (view, known, host)
        return self._judged[2]

    def tell(self, view: HostView, known: frozenset[str], *, complete: bool) -> None:
        """The model, where anything has changed for it. `complete`: are the MAC addresses of all
        guests known? Before that a guest would be taken for a stranger."""
        host = self.judged_by(view, known)
        if not complete:
            host = replace(
                host, strangers=frozenset() if self._told is None else self._told.strangers
            )
        host = replace(host, strangers=host.strangers & self.written)
        if host != self._told:
            self._told = host
            self._emit(HostNetworkChanged(at=self._clock(), host=host))

    def find_out(self, addresses: Collection[IPAddress], asked: set[IPAddress]) -> bool:
        """Has the kernel find out who has the addresses that a guest reports and of which nothing
        is seen yet: each once, by what was `asked` for that guest, and not more than so many. True:
        an answer is on its way, and a report that it contradicts is better not believed till then.
        """
        new = [each for each in addresses if each not in self._having and each not in asked]
        new = new[: MOST_ASKED - len(asked)]
        asked.update(new)
        for address in new:
            self._nudge(address)
        return bool(new)

    def nudge(self, addresses: Iterable[IPAddress], macs: Collection[str]) -> None:
        """The neighbour table remembers machines that are gone: has the kernel look again where it
        contradicts that a machine with these MAC addresses has the addresses."""
        for address in addresses:
            if self.is_elsewhere(address, macs):
                self._nudge(address)
