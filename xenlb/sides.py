"""Looks into guests before they are let in (guest-side.on-boot); puts in place what is missing.

When a guest boots, and when its services change, it is reached by its delivery; what is found, for
each of its services, goes to the model, which lets it in or not (model/inside.py). Tried again
until all is in place. How one look is made: looking.py.
"""

import asyncio
import logging
from collections.abc import Mapping
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
from xenlb.model.side import OnBoot
from xenlb.model.state import State

log = logging.getLogger(__name__)

AT_ONCE = 4  # guests; each takes a few connections and, on the host, a process each
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0  # seconds
BOOTING = 60.0  # seconds in which a guest that cannot be reached is no news


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a guest is looked at for; another wish, another look."""

    booted: float
    incarnation: int | None
    services: tuple[ServiceSettings, ...]
    addresses: tuple[tuple[str, IPAddress], ...]
    apply: bool


class Sides:
    """`xenstores` are the running sources, by URI."""

    def __init__(self, agent: Agent, xenstores: Mapping[str, XenstoreSource]) -> None:
        self._agent = agent
        self._xenstores = xenstores
        self._wishes: dict[GuestId, Wish] = {}
        self._tasks: dict[GuestId, asyncio.Task[None]] = {}
        self._at_once = asyncio.Semaphore(AT_ONCE)
        self._news = asyncio.Event()

    def follow(self, before: State, state: State) -> None:
        """Heeds the state after a round."""
        if before.guests is state.guests and before.candidates is state.candidates:
            return
        wishes = _wishes(state)
        if wishes != self._wishes:
            self._wishes = wishes
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
        pause = FIRST_PAUSE
        while self._wishes.get(guest) == wish:
            async with self._at_once:
                verdicts = await self._verdicts(guest, wish)
            if self._wishes.get(guest) != wish:
                return
            if verdicts is not None:
                seen = SideSeen(
                    at=clock.now(), guest=guest, incarnation=wish.incarnation, verdicts=verdicts
                )
                self._agent.emit(seen)
                if not any(verdict.problem for verdict in verdicts):
                    return
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)

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
        on_boot = {
            member.side.on_boot for service in asking if (member := membership(service, guest))
        }
        if on_boot - {OnBoot.OFF}:
            wishes[guest.id] = Wish(
                booted=guest.booted,
                incarnation=guest.incarnation,
                services=services_of(state, guest),
                addresses=tuple(addresses.get(guest.id, {}).items()),
                apply=OnBoot.APPLY in on_boot,
            )
    return wishes


def _asks(service: ServiceSettings) -> bool:
    sides = (service.side, *(member.side for member in service.servers))
    return any(side is not None and side.on_boot is not OnBoot.OFF for side in sides)
