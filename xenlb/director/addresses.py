"""Keep the service addresses on the director's interface while the agent runs.

A pass compares the wanted addresses with the kernel's and corrects the difference. It follows a
change of what is wanted, a change that rtnetlink reports, and a failure. Addresses that existed
before are never removed. When the agent stops, all addresses stay, so connections continue.

Only addresses in `owned` are removed later, so the caller must save them across restarts.
"""

import asyncio
import contextlib
import errno
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import inf
from types import MappingProxyType
from typing import Any

from xenlb.director import interface as rtnl
from xenlb.director.announce import announce
from xenlb.director.interface import (
    AddressChange,
    ChangeListener,
    Interface,
    InterfaceAddress,
    InterfaceError,
)
from xenlb.ipvs.table import IPAddress

log = logging.getLogger(__name__)

RECREATED = "the interface was created again"
CAME_UP = "the interface came up"
# All times in seconds. A pass without a cause, in case a change was missed.
RESYNC = 60.0
# Until the next attempt after a failure, doubled each time; at once when the interface changes.
FIRST_RETRY, LAST_RETRY = 1.0, 60.0
# An address that is removed again within this time is put back after a wait, doubled each time.
FIGHT = 10.0
FIRST_WAIT, LAST_WAIT = 0.5, 30.0
# An announcement may get lost (a bridge port that still learns), so two are sent.
ANNOUNCEMENTS, ANNOUNCEMENT_INTERVAL = 2, 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedAddress:
    """An address that xenlb put on an interface."""

    interface: str
    address: IPAddress

    def __str__(self) -> str:
        return f"{self.address}/{self.address.max_prefixlen} on {self.interface}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    interface: str | None
    addresses: frozenset[IPAddress]


@dataclass(slots=True, kw_only=True)
class _Backoff:
    """Until `until` the address is not added again, for `reason`; `delay`: the last wait."""

    until: float = -inf
    delay: float = 0.0
    reason: str = ""

    def set(self, now: float, delay: float, reason: str) -> None:
        self.until, self.delay, self.reason = now + delay, delay, reason


class ServiceAddresses:
    """The service addresses of this host. Nothing is changed before the first set_wanted().

    `owned`: addresses that an earlier agent added. `on_change` is called when `owned` or `problems`
    has changed.
    """

    def __init__(
        self,
        owned: frozenset[PlacedAddress] = frozenset(),
        *,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._owned = set(owned)
        self._on_change = on_change
        self._wanted: _Wanted | None = None
        self._problems: dict[IPAddress, str] = {}
        self._present: frozenset[IPAddress] = frozenset()
        self._seen: set[IPAddress] = set()  # have been present since they are wanted
        self._link: Interface | None = None
        self._cause: str | None = None  # why addresses may have vanished; None: another program
        self._backoffs: dict[IPAddress, _Backoff] = {}
        self._retry_at = inf
        self._unannounced: dict[IPAddress, int] = {}
        self._announce_at = inf
        self._wake = asyncio.Event()

    @property
    def owned(self) -> frozenset[PlacedAddress]:
        """The addresses that xenlb added, for the next agent."""
        return frozenset(self._owned)

    @property
    def problems(self) -> Mapping[IPAddress, str]:
        """The addresses with a problem, and its reason."""
        return MappingProxyType(self._problems)

    @property
    def present(self) -> frozenset[IPAddress]:
        """The wanted addresses that the last pass found or added."""
        return self._present

    def set_wanted(self, interface: str | None, addresses: frozenset[IPAddress]) -> None:
        """Have these addresses on this interface, and remove other addresses that xenlb added."""
        wanted = _Wanted(interface=interface, addresses=addresses)
        if wanted == self._wanted:
            return
        if self._wanted is None or self._wanted.interface != interface:
            self._seen.clear()
        self._seen &= addresses
        self._wanted = wanted
        self._wake.set()

    def disown(self) -> None:
        """Leave all addresses to another program."""
        changed = bool(self._owned or self._problems)
        self._wanted = None
        self._owned.clear()
        self._problems = {}
        self._present = frozenset()
        self._seen.clear()
        self._backoffs.clear()
        self._unannounced.clear()
        if changed:
            self._on_change()

    async def run(self) -> None:
        """Run until cancelled; the addresses stay."""
        with ChangeListener(self._on_interface_change) as changes:
            while True:
                self._wake.clear()
                self._watch(changes)
                delay = await self.reconcile()
                self._watch(changes)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(delay):
                        await self._wake.wait()

    async def reconcile(self) -> float:
        """Make one pass, and return the seconds until the next if nothing happens."""
        wanted = self._wanted
        if wanted is None:
            return RESYNC
        owned, self._retry_at = self.owned, inf
        try:
            async with rtnl.connection() as route:
                problems = await self._correct(route, wanted)
        except (InterfaceError, OSError) as error:
            problems = dict.fromkeys(wanted.addresses, f"the kernel does not answer: {error}")
            self._retry_at = self._announce_at = time.monotonic() + FIRST_RETRY
        if self._wanted is not wanted:  # changed meanwhile
            return 0.0 if self._wanted is not None else RESYNC
        before, self._problems = self._problems, problems
        _log_problems(before, problems)
        if (owned, before) != (self.owned, problems):
            self._on_change()
        due = min(self._retry_at, self._announce_at)
        return min(RESYNC, max(0.0, due - time.monotonic()))

    def _watch(self, changes: ChangeListener) -> None:
        if self._wanted is not None:
            index = 0 if self._link is None else self._link.index
            changes.watch(self._wanted.interface, index, self._wanted.addresses)

    def _on_interface_change(self, change: AddressChange) -> None:
        match change:
            case AddressChange.GONE:
                self._cause = RECREATED
            case AddressChange.WENT_DOWN if self._cause is None:
                self._cause = CAME_UP
        self._wake.set()

    async def _correct(self, route: Any, wanted: _Wanted) -> dict[IPAddress, str]:
        problems: dict[IPAddress, str] = {}
        name = wanted.interface
        link = None if name is None else await rtnl.find_interface(route, name)
        before, self._link = self._link, link
        if link is None or not link.up:
            self._present = frozenset()
            self._backoffs.clear()
            self._cause = RECREATED if link is None else self._cause or CAME_UP
            problems = await self._remove_unwanted(route, wanted)
            reason, old = _missing(wanted.interface, link), self._old_interfaces(wanted)
            return problems | {
                address: f"{reason}; it stays on {old[address]} until then"
                if address in old
                else reason
                for address in wanted.addresses
            }
        cause, self._cause = self._cause, None
        if before is not None and before.name == link.name and before.index != link.index:
            cause = RECREATED
        existing = {
            entry.address: entry for entry in await rtnl.list_addresses(route, index=link.index)
        }
        missing = wanted.addresses - existing.keys()
        self._present = wanted.addresses - missing
        if before is not None and (cause or (link.running and not before.running)):
            self._announce_soon(self._present)
        for address in self._present:
            if existing[address].duplicate:
                problems[address] = (
                    f"another host has it (duplicate address detection on {link.name})"
                )
        elsewhere = await self._addresses_elsewhere(
            route, link, {address.version for address in missing}
        )
        for address in sorted(missing, key=_order):
            if self._wanted is not wanted:
                return problems
            if (other := elsewhere.get(address)) is not None:
                name = await rtnl.interface_name(route, other.index)
                problems[address] = f"it is on interface {name} of this host already"
            elif (problem := await self._add(route, link, wanted, address, cause)) is not None:
                problems[address] = problem
        if self._wanted is wanted:  # else they may belong to another interface
            self._seen |= self._present
        self._announce(link)
        return await self._remove_unwanted(route, wanted) | problems

    async def _add(
        self, route: Any, link: Interface, wanted: _Wanted, address: IPAddress, cause: str | None
    ) -> str | None:
        """Add the address, or return the problem."""
        assert wanted.interface is not None
        placed = PlacedAddress(interface=wanted.interface, address=address)
        again, now = address in self._seen, time.monotonic()
        if cause is not None:
            self._backoffs.pop(address, None)
        backoff = self._backoffs.setdefault(address, _Backoff())
        if backoff.until > now:
            self._retry_at = min(self._retry_at, backoff.until)
            return backoff.reason
        try:
            await rtnl.add_address(route, link, address)
        except InterfaceError as error:
            if error.errno != errno.EEXIST:  # another program was faster
                delay = min(LAST_RETRY, max(FIRST_RETRY, 2 * backoff.delay))
                backoff.set(now, delay, _add_problem(link, address, error))
                self._retry_at = min(self._retry_at, backoff.until)
                return backoff.reason
        else:
            self._owned.add(placed)
        self._present |= {address}
        self._announce_soon({address})
        if not again:
            del self._backoffs[address]
            log.info("added %s", placed)
            return None
        log.info("put back %s: %s", placed, cause or "another program removed it")
        fought = cause is None and now - backoff.until < FIGHT
        delay = min(LAST_WAIT, max(FIRST_WAIT, 2 * backoff.delay)) if fought else 0.0
        backoff.set(now, delay, f"another program keeps removing it from {link.name}")
        return None

    def _old_interfaces(self, wanted: _Wanted) -> dict[IPAddress, str]:
        """The interfaces of wanted addresses that xenlb put on another interface before."""
        return {
            placed.address: placed.interface
            for placed in self._owned
            if placed.interface != wanted.interface and placed.address in wanted.addresses
        }

    async def _remove_unwanted(self, route: Any, wanted: _Wanted) -> dict[IPAddress, str]:
        """Remove addresses that xenlb added and no service needs; return problems.

        An address that moves to another interface stays until it is there: a wrong name, or an
        interface that is down, must not interrupt the service.
        """
        problems: dict[IPAddress, str] = {}
        unwanted: dict[str, set[IPAddress]] = {}
        for placed in self._owned:
            moved = placed.interface != wanted.interface
            if placed.address not in wanted.addresses or (
                moved and placed.address in self._present
            ):
                unwanted.setdefault(placed.interface, set()).add(placed.address)
        for name, addresses in sorted(unwanted.items()):
            link = await rtnl.find_interface(route, name)
            entries = [] if link is None else await rtnl.list_addresses(route, index=link.index)
            # An address with another prefix length is not the one that xenlb added.
            own = {
                entry.address: entry
                for entry in entries
                if entry.prefix == entry.address.max_prefixlen
            }
            for address in sorted(addresses, key=_order):
                placed = PlacedAddress(interface=name, address=address)
                try:
                    if address in own:
                        await rtnl.remove_address(route, own[address])
                        log.info("removed %s: no service needs it there any more", placed)
                except InterfaceError as error:
                    problems[address] = f"it cannot be removed from {name}: {error}"
                    self._retry_at = time.monotonic() + LAST_RETRY
                else:
                    self._owned.discard(placed)
        return problems

    async def _addresses_elsewhere(
        self, route: Any, link: Interface, versions: set[int]
    ) -> dict[IPAddress, InterfaceAddress]:
        """The addresses of this host's other interfaces, except those that xenlb put there."""
        entries: list[InterfaceAddress] = []
        for version in versions:
            entries += await rtnl.list_addresses(route, version=version)
        others = {entry.address: entry for entry in entries if entry.index != link.index}
        for placed in self._owned:
            entry = others.get(placed.address)
            if entry is not None and entry.prefix == entry.address.max_prefixlen:
                old = await rtnl.find_interface(route, placed.interface)
                if old is not None and old.index == entry.index:
                    del others[placed.address]
        return others

    def _announce_soon(self, addresses: Iterable[IPAddress]) -> None:
        self._unannounced.update(dict.fromkeys(addresses, ANNOUNCEMENTS))
        self._announce_at = -inf

    def _announce(self, link: Interface) -> None:
        """Send the announcements that are due; without a carrier they wait for it."""
        now = time.monotonic()
        if not link.running:
            self._announce_at = inf
            return
        if self._announce_at > now:
            return
        left: dict[IPAddress, int] = {}
        for address, times in self._unannounced.items():
            if address in self._present:
                announce(link, address)
                if times > 1:
                    left[address] = times - 1
        self._unannounced = left
        self._announce_at = now + ANNOUNCEMENT_INTERVAL if left else inf


def _log_problems(before: Mapping[IPAddress, str], problems: Mapping[IPAddress, str]) -> None:
    """Log new problems, one line for all addresses with the same problem."""
    new: dict[str, list[str]] = {}
    for address in sorted(problems, key=_order):
        if before.get(address) != problems[address]:
            new.setdefault(problems[address], []).append(str(address))
    for problem, names in new.items():
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        log.warning("service address %s%s: %s", ", ".join(names[:3]), more, problem)
    if before and not problems:
        log.info("the service addresses are in place")


def _order(address: IPAddress) -> tuple[int, int]:
    return address.version, int(address)


def _missing(interface: str | None, link: Interface | None) -> str:
    if interface is None:
        return "there is no interface for it (director: interface)"
    return f"{interface} is down" if link is not None else f"there is no interface {interface}"


def _add_problem(link: Interface, address: IPAddress, error: InterfaceError) -> str:
    match error.errno:
        case errno.EPERM:
            return f"not permitted to add it to {link.name} (needs CAP_NET_ADMIN)"
        case errno.EACCES if address.version == 6:
            return (
                f"IPv6 is disabled on {link.name}"
                f" (sysctl -w net.ipv6.conf.{link.name.replace('.', '/')}.disable_ipv6=0)"
            )
        case code:
            return f"cannot be added to {link.name}: {os.strerror(code).lower()}"
