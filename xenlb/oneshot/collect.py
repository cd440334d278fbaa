"""Asks the sources one time, for `plan` and `apply`: who runs, at which address, and who answers;
for `guest` the first two.

The same sources as the agent's, run until each has said what it has to say.
"""

import asyncio
from collections.abc import Callable, Sequence
from enum import Enum, auto

from xenlb import clock
from xenlb.health.runner import HealthRunner
from xenlb.hypervisor.addresses.finder import AddressFinder
from xenlb.hypervisor.libvirt.source import LibvirtSource
from xenlb.hypervisor.uri import SourceUnavailable, is_local_xen
from xenlb.hypervisor.xenstore.source import XenstoreSource
from xenlb.model.events import Disconnected, Event
from xenlb.model.membership import (
    guests_needing_address,
    metadata_addresses,
    needs_address,
    services_of,
)
from xenlb.model.reducer import reduce
from xenlb.model.reserved_addresses import addresses_in_use
from xenlb.model.state import State

LISTING = 20.0  # seconds
ADDRESSES = 3.0  # the neighbour table and leases know at once, a guest's agent within a second
SPARE = 1.0  # on top of the time that the slowest check may take


class Probing(Enum):
    ALL = auto()
    NOBODY = auto()


class _Asker:
    def __init__(self, state: State) -> None:
        self.state = state
        self._news = asyncio.Event()
        self._lost: Disconnected | None = None

    def emit(self, event: Event) -> None:
        self.state = reduce(self.state, event).state
        if isinstance(event, Disconnected):
            self._lost = event
        self._news.set()

    async def until(self, done: Callable[[], bool], limit: float) -> bool:
        """Waits until `done`, at most `limit` seconds. Raises SourceUnavailable without libvirt."""
        try:
            async with asyncio.timeout(limit):
                while not done():
                    if self._lost is not None:
                        raise SourceUnavailable(
                            f"libvirt {self._lost.uri} cannot be reached: {self._lost.reason}",
                            "is libvirtd running? systemctl status libvirtd",
                        )
                    await self._news.wait()
                    self._news.clear()
        except TimeoutError:
            return False
        return True

    async def _until_listed(self) -> None:
        if not await self.until(lambda: self.state.synced, LISTING):
            raise SourceUnavailable(
                f"libvirt did not list its guests within {LISTING:g} s", "try virsh list --all"
            )

    async def ask(self, *, probe: Probing) -> State:
        libvirts = {
            uri: LibvirtSource(uri, self.emit, clock.now, keepalive=self.state.settings.keepalive)
            for uri in self.state.observed.links
        }
        xenstores = {
            uri: XenstoreSource(uri, self.emit, clock.now)
            for uri in self.state.observed.links
            if is_local_xen(uri)
        }
        finder = AddressFinder(self.emit, clock.now, libvirts, xenstores)
        health = HealthRunner(self.emit, clock.now)
        runs = [*(s.run for s in libvirts.values()), *(s.run for s in xenstores.values())]
        runs += [finder.run, *([health.run] if probe is Probing.ALL else [])]
        tasks = [asyncio.create_task(run()) for run in runs]
        try:
            await self._until_listed()
            settings = self.state.settings
            finder.context(
                addresses_in_use(settings.services),
                settings.networks,
                metadata_addresses(self.state),
            )
            finder.interest(guests_needing_address(self.state))
            await self.until(self._addresses_known, ADDRESSES)
            if probe is Probing.ALL:
                await self.until(lambda: self._answered(health), self._patience())
        finally:
            await _end(tasks)
        return self.state

    def _addresses_known(self) -> bool:
        return all(
            guest.candidates
            for guest in (self.state.guests[key] for key in guests_needing_address(self.state))
            if any(needs_address(each, guest) for each in services_of(self.state, guest))
        )

    def _answered(self, health: HealthRunner) -> bool:
        """Has every target a verdict, or failed as often as would take it out of service?"""
        health.targets(self.state.remembered.health)
        return all(
            verdict.up is not None or (verdict.detail and not verdict.streak)
            for verdict in self.state.remembered.health.values()
        )

    def _patience(self) -> float:
        checks = [target.check for target in self.state.remembered.health]
        return max((check.timeout * check.rise for check in checks), default=0.0) + SPARE


async def _end(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def collect_addresses(state: State) -> State:
    """The state after every libvirt of its configuration has listed its guests, and their addresses
    were looked for; nobody is probed. Raises SourceUnavailable."""
    return asyncio.run(_Asker(state).ask(probe=Probing.NOBODY))


def collect(state: State) -> State:
    """The state after every source of its configuration was heard; raises SourceUnavailable."""
    return asyncio.run(_Asker(state).ask(probe=Probing.ALL))
