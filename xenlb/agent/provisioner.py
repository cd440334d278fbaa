"""Looks into guests before they are let in (guest-side.on-boot); puts in place what is missing.

When a guest boots, and when its services change, it is reached by its delivery; what is found, for
each of its services, goes to the model, which lets it in or not (model/readiness.py). Tried again
until all is in place. How one look is made: provision.py.

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
from functools import partial

from xenlb import clock
from xenlb.agent.loop import Agent
from xenlb.hypervisor.xenstore.source import XenstoreSource
from xenlb.model.domain import GuestId
from xenlb.model.events import GuestInspected, Verdict
from xenlb.model.provision_requests import ProvisionRequest, provision_requests
from xenlb.model.state import State

log = logging.getLogger(__name__)

AT_ONCE = 4  # guests, in each lane; each takes a few connections and, on the host, a process each
IN_TIME = 10.0  # seconds of a look; most take one or two
HANGS = 60.0  # seconds after which it will not end by itself
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0  # seconds
SLOW_PAUSE, LONGEST_SLOW_PAUSE = 30.0, 900.0  # seconds, after looks that hung
BOOTING = 60.0  # seconds in which a guest that cannot be reached is no news


def pause_after(looks: int, hung: int) -> float:
    """Seconds until the next look, after that many and, of them, so many in a row that hung."""
    if hung:
        return min(SLOW_PAUSE * 2.0 ** min(hung - 1, 10), LONGEST_SLOW_PAUSE)
    return min(FIRST_PAUSE * 2.0 ** min(looks - 1, 10), LONGEST_PAUSE)


class Provisioner:
    """`xenstores` are the running sources, by URI."""

    def __init__(self, agent: Agent, xenstores: Mapping[str, XenstoreSource]) -> None:
        self._agent = agent
        self._xenstores = xenstores
        self._requests: dict[GuestId, ProvisionRequest] = {}
        self._tasks: dict[GuestId, asyncio.Task[None]] = {}
        self._quick, self._slow = asyncio.Semaphore(AT_ONCE), asyncio.Semaphore(AT_ONCE)
        self.late: set[GuestId] = set()  # whose last look was not in time
        self._hung: dict[GuestId, int] = {}  # looks in a row that hung
        self._pauses: dict[GuestId, asyncio.Event] = {}
        self._news = asyncio.Event()

    def on_state_change(self, before: State, state: State) -> None:
        """Heeds the state after a round."""
        if before.guests is state.guests and before.derived.candidates is state.derived.candidates:
            return
        requests = provision_requests(state)
        if requests != self._requests:
            for guest, pause in self._pauses.items():
                if requests.get(guest) != self._requests.get(guest):
                    pause.set()
            self._requests = requests
            self.late &= state.guests.keys()
            self._hung = {guest: n for guest, n in self._hung.items() if guest in state.guests}
            self._news.set()

    async def run(self) -> None:
        """Until cancelled."""
        met: dict[GuestId, ProvisionRequest] = {}
        try:
            while True:
                for guest, request in self._requests.items():
                    if met.get(guest) != request and guest not in self._tasks:
                        met[guest] = request
                        task = asyncio.create_task(
                            self._look(guest, request), name=f"inside {guest}"
                        )
                        self._tasks[guest] = task
                        task.add_done_callback(partial(self._ended, guest))
                met = {guest: request for guest, request in met.items() if guest in self._requests}
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
        self._news.set()  # there may be another request by now

    async def _look(self, guest: GuestId, request: ProvisionRequest) -> None:
        """Until all is in place, or something else is wished."""
        looks = 0
        while self._requests.get(guest) == request:
            inspect_guest = self._verdicts if request.configures_itself else self._in_a_place
            verdicts = await inspect_guest(guest, request)
            looks += 1
            if self._requests.get(guest) != request:
                return
            if verdicts is not None:
                seen = GuestInspected(
                    at=clock.now(), guest=guest, incarnation=request.incarnation, verdicts=verdicts
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

    async def _in_a_place(
        self, guest: GuestId, request: ProvisionRequest
    ) -> tuple[Verdict, ...] | None:
        """In a place of its lane; None also where the look was given up for want of one."""
        lane = self._slow if guest in self.late else self._quick
        await lane.acquire()
        begun, given_up = clock.now(), False
        inspect_guest = asyncio.create_task(
            self._verdicts(guest, request), name=f"look into {guest}"
        )
        try:
            await asyncio.wait({inspect_guest}, timeout=IN_TIME)
            if inspect_guest.done():
                self.late.discard(guest)
                return inspect_guest.result()
            self.late.add(guest)
            if lane is self._quick:
                if self._slow.locked():
                    log.debug("guest %s: the look is not in time and is given up", guest)
                    given_up = True
                    return None
                await self._slow.acquire()  # at once, as it is free
                lane.release()
                lane = self._slow
            return await inspect_guest
        finally:
            if given_up or clock.now() - begun >= HANGS:
                self._hung[guest] = self._hung.get(guest, 0) + 1
            else:
                self._hung.pop(guest, None)
            inspect_guest.cancel()
            await asyncio.wait({inspect_guest})
            lane.release()

    async def _verdicts(
        self, guest: GuestId, request: ProvisionRequest
    ) -> tuple[Verdict, ...] | None:
        """None: nothing can be said, which is no news of a guest that boots."""
        # What goes into guests is loaded when a guest is to be looked at: not every agent does.
        from xenlb.agent.provision import InspectionFailed, inspect_guest  # noqa: PLC0415

        try:
            return await inspect_guest(self._agent, guest, request, self._xenstores.get(guest.uri))
        except InspectionFailed as error:
            if error.may_boot and clock.now() - request.booted < BOOTING:
                log.debug("guest %s: %s", guest, error)
                return None
            return tuple(Verdict(service=each, problem=str(error)) for each in request.services)
