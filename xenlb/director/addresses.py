"""Keeps the service addresses on the director's interface, for as long as the agent lives.

Every pass compares what is wanted with what the kernel has and corrects the difference; passes are
made when something wanted changes, when rtnetlink tells of a change, and after a failure. What
was there before is never removed, and when the agent stops everything stays: connections go on,
and the next agent finds it.

Which addresses are ours survives a restart only if the caller keeps `owned`: an address that
nobody can say we added is never removed, which is the safe side.
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
from xenlb.director.interface import AddressChange, Changes, Held, Interface, InterfaceError
from xenlb.ipvs.table import IPAddress

log = logging.getLogger(__name__)

ANEW = "the interface was made anew"
CAME_UP = "the interface came up"
# A look without a cause (s), in case something was missed.
RESYNC = 60.0
# After a failure: the next try (s), doubled until the last; at once when the interface changes.
FIRST_RETRY, LAST_RETRY = 1.0, 60.0
# Put back again within this time (s), an address is fought over: then after a wait, doubled too.
FIGHT = 10.0
FIRST_WAIT, LAST_WAIT = 0.5, 30.0
# An announcement may get lost (a bridge port that still learns): two of them, so far apart (s).
ANNOUNCEMENTS, APART = 2, 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedAddress:
    """An address that we put on an interface."""

    interface: str
    address: IPAddress

    def __str__(self) -> str:
        return f"{self.address}/{self.address.max_prefixlen} on {self.interface}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Goal:
    interface: str | None
    addresses: frozenset[IPAddress]


@dataclass(slots=True, kw_only=True)
class _Hold:
    """Before `until` the address is not added again, for `reason`; `delay`: the last wait (s)."""

    until: float = -inf
    delay: float = 0.0
    reason: str = ""


class ServiceAddresses:
    """`owned`: what an earlier agent put there; `changed` is called when `owned` or `problems`
    has changed. Nothing is touched before the first `want`."""

    def __init__(
        self,
        owned: frozenset[PlacedAddress] = frozenset(),
        *,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._owned = set(owned)
        self._changed = changed
        self._goal: _Goal | None = None
        self._problems: dict[IPAddress, str] = {}
        self._present: frozenset[IPAddress] = frozenset()
        self._seen: set[IPAddress] = set()  # were in place since they are wanted
        self._link: Interface | None = None
        self._cause: str | None = None  # why addresses may have vanished, if it was not somebody
        self._holds: dict[IPAddress, _Hold] = {}
        self._retry_at = inf
        self._unannounced: dict[IPAddress, int] = {}
        self._announce_at = inf
        self._wake = asyncio.Event()

    @property
    def owned(self) -> frozenset[PlacedAddress]:
        """What is to be handed to the next agent: the addresses that we added."""
        return frozenset(self._owned)

    @property
    def problems(self) -> Mapping[IPAddress, str]:
        """Addresses that are not as they should be, and why."""
        return MappingProxyType(self._problems)

    @property
    def present(self) -> frozenset[IPAddress]:
        """Wanted addresses that were in place at the last look."""
        return self._present

    def want(self, interface: str | None, addresses: frozenset[IPAddress]) -> None:
        """These addresses, on this interface; of ours, all others go. May be called again."""
        goal = _Goal(interface=interface, addresses=addresses)
        if goal == self._goal:
            return
        if self._goal is None or self._goal.interface != interface:
            self._seen.clear()
        self._seen &= addresses
        self._goal = goal
        self._wake.set()

    def leave(self) -> None:
        """Touches nothing any more and owns nothing: somebody else looks after the addresses."""
        had = bool(self._owned or self._problems)
        self._goal = None
        self._owned.clear()
        self._problems = {}
        self._present = frozenset()
        self._seen.clear()
        self._holds.clear()
        self._unannounced.clear()
        if had:
            self._changed()

    async def run(self) -> None:
        """Until it is cancelled; the addresses stay then."""
        with Changes(self._heard) as changes:
            while True:
                self._wake.clear()
                self._watch(changes)
                delay = await self.settle()
                self._watch(changes)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(delay):
                        await self._wake.wait()

    async def settle(self) -> float:
        """One pass; returns after how long (s) the next is due if nothing happens."""
        goal = self._goal
        if goal is None:
            return RESYNC
        owned, self._retry_at = self.owned, inf
        try:
            async with rtnl.connection() as route:
                problems = await self._pass(route, goal)
        except (InterfaceError, OSError) as error:
            problems = dict.fromkeys(goal.addresses, f"the kernel does not answer: {error}")
            self._retry_at = self._announce_at = time.monotonic() + FIRST_RETRY
        if self._goal is not goal:  # something else is wanted meanwhile
            return 0.0 if self._goal is not None else RESYNC
        before, self._problems = self._problems, problems
        _say(before, problems)
        if (owned, before) != (self.owned, problems):
            self._changed()
        due = min(self._retry_at, self._announce_at)
        return min(RESYNC, max(0.0, due - time.monotonic()))

    def _watch(self, changes: Changes) -> None:
        if self._goal is not None:
            index = 0 if self._link is None else self._link.index
            changes.watch(self._goal.interface, index, self._goal.addresses)

    def _heard(self, heard: AddressChange) -> None:
        match heard:
            case AddressChange.GONE:
                self._cause = ANEW
            case AddressChange.WENT_DOWN if self._cause is None:
                self._cause = CAME_UP
        self._wake.set()

    async def _pass(self, route: Any, goal: _Goal) -> dict[IPAddress, str]:
        problems: dict[IPAddress, str] = {}
        link = None if goal.interface is None else await rtnl.find(route, goal.interface)
        before, self._link = self._link, link
        if link is None or not link.up:
            self._present = frozenset()
            self._holds.clear()
            self._cause = ANEW if link is None else self._cause or CAME_UP
            problems = await self._remove_unwanted(route, goal)
            why, stay = _missing(goal.interface, link), self._elsewhere(goal)
            return problems | {
                each: f"{why}; it stays on {stay[each]} until then" if each in stay else why
                for each in goal.addresses
            }
        cause, self._cause = self._cause, None
        if before is not None and before.name == link.name and before.index != link.index:
            cause = ANEW
        held = {each.address: each for each in await rtnl.addresses(route, index=link.index)}
        missing = goal.addresses - held.keys()
        self._present = goal.addresses - missing
        if before is not None and (cause or (link.running and not before.running)):
            self._announce_soon(self._present)
        for address in self._present:
            if held[address].duplicate:
                problems[address] = f"another host has it (a duplicate was found on {link.name})"
        elsewhere = await self._others(route, link, {address.version for address in missing})
        for address in sorted(missing, key=_order):
            if self._goal is not goal:
                return problems
            if (other := elsewhere.get(address)) is not None:
                name = await rtnl.name_of(route, other.index)
                problems[address] = f"it is on {name} of this host, and left there"
            elif (problem := await self._add(route, link, goal, address, cause)) is not None:
                problems[address] = problem
        if self._goal is goal:  # else these may be another interface's
            self._seen |= self._present
        self._announce(link)
        return await self._remove_unwanted(route, goal) | problems

    async def _add(
        self, route: Any, link: Interface, goal: _Goal, address: IPAddress, cause: str | None
    ) -> str | None:
        """Adds the address, or says why not."""
        assert goal.interface is not None
        placed = PlacedAddress(interface=goal.interface, address=address)
        again, now = address in self._seen, time.monotonic()
        if cause is not None:
            self._holds.pop(address, None)
        hold = self._holds.setdefault(address, _Hold())
        if hold.until > now:
            self._retry_at = min(self._retry_at, hold.until)
            return hold.reason
        try:
            await rtnl.add(route, link, address)
        except InterfaceError as error:
            if error.errno != errno.EEXIST:  # somebody was faster
                hold.delay = min(LAST_RETRY, max(FIRST_RETRY, 2 * hold.delay))
                hold.until, hold.reason = now + hold.delay, _refused(link, address, error)
                self._retry_at = min(self._retry_at, hold.until)
                return hold.reason
        else:
            self._owned.add(placed)
        self._present |= {address}
        self._announce_soon({address})
        if not again:
            del self._holds[address]
            log.info("added %s", placed)
            return None
        log.info("put back %s: %s", placed, cause or "removed by somebody")
        fought = cause is None and now - hold.until < FIGHT
        hold.delay = min(LAST_WAIT, max(FIRST_WAIT, 2 * hold.delay)) if fought else 0.0
        hold.until, hold.reason = now + hold.delay, f"somebody keeps removing it from {link.name}"
        return None

    def _elsewhere(self, goal: _Goal) -> dict[IPAddress, str]:
        """Wanted addresses that we put on another interface before, and that one's name."""
        return {
            placed.address: placed.interface
            for placed in self._owned
            if placed.interface != goal.interface and placed.address in goal.addresses
        }

    async def _remove_unwanted(self, route: Any, goal: _Goal) -> dict[IPAddress, str]:
        """Removes what we added and no service wants now; gives the addresses that resist.

        An address that is wanted on another interface stays until it is there: a name that is
        wrong, or an interface that is down, must not end the service.
        """
        problems: dict[IPAddress, str] = {}
        unwanted: dict[str, set[IPAddress]] = {}
        for placed in self._owned:
            moved = placed.interface != goal.interface
            if placed.address not in goal.addresses or (moved and placed.address in self._present):
                unwanted.setdefault(placed.interface, set()).add(placed.address)
        for name, addresses in sorted(unwanted.items()):
            link = await rtnl.find(route, name)
            found = [] if link is None else await rtnl.addresses(route, index=link.index)
            # With another prefix length it is not the one that we added.
            ours = {h.address: h for h in found if h.prefix == h.address.max_prefixlen}
            for address in sorted(addresses, key=_order):
                placed = PlacedAddress(interface=name, address=address)
                try:
                    if address in ours:
                        await rtnl.remove(route, ours[address])
                        log.info("removed %s: no service has it any more there", placed)
                except InterfaceError as error:
                    problems[address] = f"it cannot be removed from {name}: {error}"
                    self._retry_at = time.monotonic() + LAST_RETRY
                else:
                    self._owned.discard(placed)
        return problems

    async def _others(
        self, route: Any, link: Interface, versions: set[int]
    ) -> dict[IPAddress, Held]:
        """The addresses of this host's other interfaces, without what we put there."""
        found: list[Held] = []
        for version in versions:
            found += await rtnl.addresses(route, version=version)
        others = {each.address: each for each in found if each.index != link.index}
        for placed in self._owned:
            held = others.get(placed.address)
            if held is not None and held.prefix == held.address.max_prefixlen:
                old = await rtnl.find(route, placed.interface)
                if old is not None and old.index == held.index:
                    del others[placed.address]
        return others

    def _announce_soon(self, addresses: Iterable[IPAddress]) -> None:
        self._unannounced.update(dict.fromkeys(addresses, ANNOUNCEMENTS))
        self._announce_at = -inf

    def _announce(self, link: Interface) -> None:
        """Sends the announcements that are due; while there is no carrier, they wait for it."""
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
        self._announce_at = now + APART if left else inf


def _say(before: Mapping[IPAddress, str], problems: Mapping[IPAddress, str]) -> None:
    """Logs what is new, in one line for all addresses with the same trouble."""
    new: dict[str, list[str]] = {}
    for address in sorted(problems, key=_order):
        if before.get(address) != problems[address]:
            new.setdefault(problems[address], []).append(str(address))
    for problem, named in new.items():
        more = f" and {len(named) - 3} more" if len(named) > 3 else ""
        log.warning("service address %s%s: %s", ", ".join(named[:3]), more, problem)
    if before and not problems:
        log.info("the service addresses are in place")


def _order(address: IPAddress) -> tuple[int, int]:
    return address.version, int(address)


def _missing(interface: str | None, link: Interface | None) -> str:
    if interface is None:
        return "there is no interface for it (director: interface)"
    return f"{interface} is down" if link is not None else f"there is no interface {interface}"


def _refused(link: Interface, address: IPAddress, error: InterfaceError) -> str:
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
