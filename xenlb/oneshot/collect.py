"""Runs the agent's sources until each has reported once, for `plan`, `apply` and `guest`.

`plan` and `apply` need the guests, their addresses and the results of checks; `guest` needs no
checks.
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
ADDRESSES = 3.0  # seconds; leases and neighbours are read at once, a guest's agent within a second
SPARE = 1.0  # seconds on top of what the slowest check may take


class Probing(Enum):
    """Which targets are probed."""

    ALL = auto()
    NONE = auto()


class _Collector:
    def __init__(self, state: State) -> None:
        self.state = state
        self._changed = asyncio.Event()
        self._lost: Disconnected | None = None

    def emit(self, event: Event) -> None:
        self.state = reduce(self.state, event).state
        if isinstance(event, Disconnected):
            self._lost = event
        self._changed.set()

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
                    await self._changed.wait()
                    self._changed.clear()
        except TimeoutError:
            return False
        return True

    async def _until_listed(self) -> None:
        if not await self.until(lambda: self.state.synced, LISTING):
            raise SourceUnavailable(
                f"libvirt did not list its guests within {LISTING:g} s", "try virsh list --all"
            )

    async def run(self, *, probe: Probing) -> State:
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
            finder.set_policy(
                addresses_in_use(settings.services),
                settings.networks,
                metadata_addresses(self.state),
            )
            finder.search_for(guests_needing_address(self.state))
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
        """Whether every target passes, or has failed as often as its check allows."""
        health.set_targets(self.state.remembered.health)
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
    """Return the state with the guests of every libvirt, and their addresses.

    Raises SourceUnavailable.
    """
    return asyncio.run(_Collector(state).run(probe=Probing.NONE))


def collect(state: State) -> State:
    """Return the state with guests, addresses and results of checks. Raises SourceUnavailable."""
    return asyncio.run(_Collector(state).run(probe=Probing.ALL))
