"""Looks into guests before they are let in (guest-side.on-boot); puts in place what is missing.

When a guest boots, and when its services change, it is reached by its delivery; what is found, for
each of its services, goes to the model, which lets it in or not (model/inside.py). Tried again
until all is in place. What is done in a guest is the business of guestside/work.py.
"""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from xenlb import clock
from xenlb.agent import Agent
from xenlb.control.secrets import KeyFileError, guest_secret, master_key
from xenlb.guestside import selfmade, work
from xenlb.guestside.channel import DeliveryError
from xenlb.guestside.compile import NeedsError
from xenlb.guestside.hold import Hold, Tell, compile_hold, tell_by
from xenlb.guestside.reach import Target, reach
from xenlb.guestside.render import TemplateError
from xenlb.guestside.subject import Subject, subject_of
from xenlb.hypervisor.xenstore import XenstoreSource
from xenlb.ipvs.table import IPAddress
from xenlb.lookup import real_uri
from xenlb.model.events import GuestId, SideSeen, Verdict
from xenlb.model.guest import Phase
from xenlb.model.members import membership, services_of
from xenlb.model.settings import ServiceSettings
from xenlb.model.side import Delivery, OnBoot
from xenlb.model.state import State

log = logging.getLogger(__name__)

AT_ONCE = 4  # guests; each takes a few connections and, on the host, a process each
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0  # seconds
BOOTING = 60.0  # seconds in which a guest that cannot be reached is no news


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wish:
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
        self._wishes: dict[GuestId, _Wish] = {}
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
        met: dict[GuestId, _Wish] = {}
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

    async def _look(self, guest: GuestId, wish: _Wish) -> None:
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

    async def _verdicts(self, guest: GuestId, wish: _Wish) -> tuple[Verdict, ...] | None:
        """None: nothing can be said, which is no news of a guest that boots."""
        try:
            subject = await self._subject(guest, wish)
            if subject.side.delivery is Delivery.XENSTORE:
                return await self._self_made(subject, guest, wish)
            return await self._reached(subject, wish)
        except (DeliveryError, NeedsError) as error:
            # It does not answer yet, or its address is not known yet.
            problem = error.message
            if clock.now() - wish.booted < BOOTING:
                log.debug("guest %s: %s", guest, problem)
                return None
        except KeyFileError as error:
            problem = error.message
        except TemplateError as error:
            problem = str(error)
        return tuple(Verdict(service=service, problem=problem) for service in wish.services)

    async def _subject(self, guest: GuestId, wish: _Wish) -> Subject:
        known = self._agent.state.guests.get(guest)
        uri = await asyncio.to_thread(real_uri, guest.uri)
        return await subject_of(
            name=str(guest.uuid) if known is None else known.name,
            uuid=guest.uuid,
            uri=uri,
            services=wish.services,
            addresses=dict(wish.addresses),
            hold=self._hold(guest, uri, wish),
            domid=wish.incarnation,
        )

    def _hold(self, guest: GuestId, uri: str, wish: _Wish) -> Hold:
        listen = self._agent.state.settings.listen
        tell = tell_by(uri)
        if tell is Tell.TCP and listen is None:
            tell = Tell.NONE
        secret = guest_secret(master_key(), guest.uuid) if tell is Tell.TCP else ""
        return compile_hold(wish.services, guest.uuid, tell=tell, agent=listen, secret=secret)

    async def _reached(self, subject: Subject, wish: _Wish) -> tuple[Verdict, ...]:
        overrides = self._agent.config.parent / "templates"
        target = Target(
            uri=subject.uri,
            uuid=subject.uuid,
            name=subject.name,
            side=subject.side,
            address=subject.address,
        )
        reached = await reach(target)
        if reached.channel is None:
            raise DeliveryError(f"{subject.name} can be reached only while it is off")
        seen = None
        if wish.apply:
            found = await work.survey(subject, reached, overrides=overrides)
            seen = (await work.apply(found, reached, overrides=overrides)).seen
        if seen is None:
            seen = await work.see(subject, reached.channel)
        return work.verdicts(subject, seen)

    async def _self_made(
        self, subject: Subject, guest: GuestId, wish: _Wish
    ) -> tuple[Verdict, ...]:
        xenstore = self._xenstores.get(guest.uri)
        if xenstore is None:
            raise DeliveryError(f"{subject.name} is not a guest of this host's Xen")
        problem = await selfmade.bring(subject, xenstore)
        return tuple(Verdict(service=service, problem=problem) for service in wish.services)


def _wishes(state: State) -> dict[GuestId, _Wish]:
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
            wishes[guest.id] = _Wish(
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
