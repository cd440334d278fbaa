"""Looks into guests before they are let in (guest-side.on-boot); puts in place what is missing.

When a guest boots, and when its services change, it is reached by its delivery; what is found, for
each of its services, goes to the model, which lets it in or not (model/inside.py). Tried again
until all is in place. How one look is made: looking.py.

A guest may take a look and never end it, so a place among the looks is lent for a short time. A
look that takes longer gives its place back and goes on in the slow lane, where that guest stays,
whatever it boots, until a look at it ends in time; other guests do not wait for it. One whose
looks do not end at all is looked at ever less often; one that is only slow, as on a busy host, is
not. A guest that configures itself takes no place: its answer costs nothing.
"""

import asyncio
import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from xenlb import clock
from xenlb.agent import Agent
from xenlb.hypervisor.xenstore import XenstoreSource
from xenlb.ipvs.table import IPAddress
from xenlb.model.events import GuestId, SideSeen, Verdict
from xenlb.model.guest import Phase
from xenlb.model.members import membership, services_of
from xenlb.model.settings import ServiceSettings
from xenlb.model.side import Delivery, OnBoot
from xenlb.model.state import State

log = logging.getLogger(__name__)

AT_ONCE = 4  # guests, in each lane; each takes a few connections and, on the host, a process each
IN_TIME = 10.0  # seconds of a look; most take one or two
HANGS = 60.0  # seconds after which it will not end by itself
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0  # seconds
SLOW_PAUSE, LONGEST_SLOW_PAUSE = 30.0, 900.0  # seconds, after looks that hung
BOOTING = 60.0  # seconds in which a guest that cannot be reached is no news


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a guest is looked at for; another wish, another look."""

    booted: float
    incarnation: int | None
    services: tuple[ServiceSettings, ...]
    addresses: tuple[tuple[str, IPAddress], ...]
    apply: bool
    configures_itself: bool = False


def pause_after(looks: int, hung: int) -> float:
    """Seconds until the next look, after that many and, of them, so many in a row that hung."""
    if hung:
        return min(SLOW_PAUSE * 2.0 ** min(hung - 1, 10), LONGEST_SLOW_PAUSE)
    return min(FIRST_PAUSE * 2.0 ** min(looks - 1, 10), LONGEST_PAUSE)


class Sides:
    """`xenstores` are the running sources, by URI."""

    def __init__(self, agent: Agent, xenstores: Mapping[str, XenstoreSource]) -> None:
        self._agent = agent
        self._xenstores = xenstores
        self._wishes: dict[GuestId, Wish] = {}
        self._tasks: dict[GuestId, asyncio.Task[None]] = {}
        self._quick, self._slow = asyncio.Semaphore(AT_ONCE), asyncio.Semaphore(AT_ONCE)
        self.late: set[GuestId] = set()  # whose last look was not in time
        self._hung: dict[GuestId, int] = {}  # looks in a row that hung
        self._pauses: dict[GuestId, asyncio.Event] = {}
        self._news = asyncio.Event()

    def follow(self, before: State, state: State) -> None:
        """Heeds the state after a round."""
        if before.guests is state.guests and before.candidates is state.candidates:
            return
        wishes = _wishes(state)
        if wishes != self._wishes:
            for guest, pause in self._pauses.items():
                if wishes.get(guest) != self._wishes.get(guest):
                    pause.set()
            self._wishes = wishes
            self.late &= state.guests.keys()
            self._hung = {guest: n for guest, n in self._hung.items() if guest in state.guests}
            self._news.set()

    async def run(self) -> None:
        """Until cancelled."""
        met: dict[GuestId, Wish] = {}
        try:
            while True:
                for guest, wish in self._wishes.items():
                    if met.get(guest) != wish and guest not in self._tasks:
                        met[guest] = wish
                        task = asyncio.create_task(self._look(guest, wish), name=f"inside {guest}")
                        self._tasks[guest] = task
                        task.add_done_callback(partial(self._ended, guest))
                met = {guest: wish for guest, wish in met.items() if guest in self._wishes}
                await self._news.wait()
                self._news.clear()
        finally:
            for task in self._tasks.values():
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def _ended(self, guest: GuestId, task: asyncio.Task[None]) -> None:
        self._tasks.pop(guest, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            # A mistake of ours: it keeps this guest out until its next boot, and nobody else.
            log.error("looking into guest %s failed: %r", guest, error, exc_info=error)
        self._news.set()  # there may be another wish by now

    async def _look(self, guest: GuestId, wish: Wish) -> None:
        """Until all is in place, or something else is wished."""
        looks = 0
        while self._wishes.get(guest) == wish:
            look = self._verdicts if wish.configures_itself else self._in_a_place
            verdicts = await look(guest, wish)
            looks += 1
            if self._wishes.get(guest) != wish:
                return
            if verdicts is not None:
                seen = SideSeen(
                    at=clock.now(), guest=guest, incarnation=wish.incarnation, verdicts=verdicts
                )
                self._agent.emit(seen)
                if not any(verdict.problem for verdict in verdicts):
                    return
            await self._pause(guest, pause_after(looks, self._hung.get(guest, 0)))

    async def _pause(self, guest: GuestId, seconds: float) -> None:
        """At most so long; something else that is wished ends it."""
        self._pauses[guest] = asyncio.Event()
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._pauses[guest].wait()
        finally:
            del self._pauses[guest]

    async def _in_a_place(self, guest: GuestId, wish: Wish) -> tuple[Verdict, ...] | None:
        """In a place of its lane; None also where the look was given up for want of one."""
        lane = self._slow if guest in self.late else self._quick
        await lane.acquire()
        begun, given_up = clock.now(), False
        look = asyncio.create_task(self._verdicts(guest, wish), name=f"look into {guest}")
        try:
            await asyncio.wait({look}, timeout=IN_TIME)
            if look.done():
                self.late.discard(guest)
                return look.result()
            self.late.add(guest)
            if lane is self._quick:
                if self._slow.locked():
                    log.debug("guest %s: the look is not in time and is given up", guest)
                    given_up = True
                    return None
                await self._slow.acquire()  # at once, as it is free
                lane.release()
                lane = self._slow
            return await look
        finally:
            if given_up or clock.now() - begun >= HANGS:
                self._hung[guest] = self._hung.get(guest, 0) + 1
            else:
                self._hung.pop(guest, None)
            look.cancel()
            await asyncio.wait({look})
            lane.release()

    async def _verdicts(self, guest: GuestId, wish: Wish) -> tuple[Verdict, ...] | None:
        """None: nothing can be said, which is no news of a guest that boots."""
        # What goes into guests is loaded when a guest is to be looked at: not every agent does.
        from xenlb.looking import NotSeen, look  # noqa: PLC0415

        try:
            return await look(self._agent, guest, wish, self._xenstores.get(guest.uri))
        except NotSeen as error:
            if error.may_boot and clock.now() - wish.booted < BOOTING:
                log.debug("guest %s: %s", guest, error)
                return None
            return tuple(Verdict(service=each, problem=str(error)) for each in wish.services)


def _wishes(state: State) -> dict[GuestId, Wish]:
    """For each guest that is to be looked at: what for."""
    asking = [service for service in state.settings.services if _asks(service)]
    if not asking:
        return {}
    addresses: dict[GuestId, dict[str, IPAddress]] = {}
    for service in state.settings.services:
        for candidate in state.candidates[service.name]:
            if candidate.owner is not None and candidate.slot is not None:
                known = addresses.setdefault(candidate.owner, {})
                known[service.name] = candidate.slot.server.address
    wishes = {}
    for guest in state.guests.values():
        if guest.phase is not Phase.UP:
            continue
        sides = [
            member.side for service in asking if (member := membership(service, guest)) is not None
        ]
        on_boot = {side.on_boot for side in sides}
        if on_boot - {OnBoot.OFF}:
            wishes[guest.id] = Wish(
                booted=guest.booted,
                incarnation=guest.incarnation,
                services=services_of(state, guest),
                addresses=tuple(addresses.get(guest.id, {}).items()),
                apply=OnBoot.APPLY in on_boot,
                configures_itself=all(side.delivery is Delivery.XENSTORE for side in sides),
            )
    return wishes


def _asks(service: ServiceSettings) -> bool:
    sides = (service.side, *(member.side for member in service.servers))
    return any(side is not None and side.on_boot is not OnBoot.OFF for side in sides)
