"""Inspects guests before they are admitted (guest-side.on-boot), and applies what is missing.

A guest is inspected when it boots and when its services change, again and again until everything is
in place. The verdict for each of its services is an event; the model decides on it.

A guest may let an inspection hang, so a place among the inspections is lent for a short time. An
inspection that takes longer gives its place back and goes on in the slow lane. That guest stays in
the slow lane, also over reboots, until an inspection of it ends in time; other guests do not wait
for it. A guest whose inspections never end is inspected ever less often; one that is only slow, as
on a busy host, is not. A guest that configures itself takes no place: its report costs nothing.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

from xenlb.hypervisor.xenstore.source import XenstoreSource
from xenlb.model.domain import GuestId
from xenlb.model.events import Event, GuestInspected, Verdict
from xenlb.model.provision_requests import ProvisionRequest, provision_requests
from xenlb.model.state import State

log = logging.getLogger(__name__)

AT_ONCE = 4  # guests in each lane; each takes a few connections, and a process of the host each
IN_TIME = 10.0  # seconds of an inspection; most take one or two
HANGS = 60.0  # seconds after which an inspection counts as hung
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0  # seconds
SLOW_PAUSE, LONGEST_SLOW_PAUSE = 30.0, 900.0  # seconds, after inspections that hung
BOOTING = 60.0  # seconds after a boot in which an unreachable guest is not reported


def pause_after(inspections: int, hung: int) -> float:
    """Seconds until the next inspection. `hung`: how many of the last ones hung in a row."""
    if hung:
        return min(SLOW_PAUSE * 2.0 ** min(hung - 1, 10), LONGEST_SLOW_PAUSE)
    return min(FIRST_PAUSE * 2.0 ** min(inspections - 1, 10), LONGEST_PAUSE)


class Provisioner:
    """Inspections of all guests.

    `emit` takes events. `xenstores`: the running sources, by URI. `templates`: the operator's own.
    Lock files of guests lie beside the control `socket`.
    """

    def __init__(
        self,
        emit: Callable[[Event], None],
        clock: Callable[[], float],
        xenstores: Mapping[str, XenstoreSource],
        *,
        templates: Path,
        socket: Path,
    ) -> None:
        self._emit, self._clock = emit, clock
        self._xenstores = xenstores
        self._templates, self._socket = templates, socket
        self._requests: dict[GuestId, ProvisionRequest] = {}
        self._tasks: dict[GuestId, asyncio.Task[None]] = {}
        self._quick, self._slow = asyncio.Semaphore(AT_ONCE), asyncio.Semaphore(AT_ONCE)
        self.late: set[GuestId] = set()  # whose last inspection was not in time
        self._hung: dict[GuestId, int] = {}  # inspections in a row that hung
        self._pauses: dict[GuestId, asyncio.Event] = {}
        self._changed = asyncio.Event()

    def on_state_change(self, before: State, state: State) -> None:
        """Take up the requests that follow from the state."""
        candidates = state.derived.candidates
        if before.guests is state.guests and before.derived.candidates is candidates:
            return
        requests = provision_requests(state)
        if requests != self._requests:
            for guest, pause in self._pauses.items():
                if requests.get(guest) != self._requests.get(guest):
                    pause.set()
            self._requests = requests
            self.late &= state.guests.keys()
            self._hung = {guest: n for guest, n in self._hung.items() if guest in state.guests}
            self._changed.set()

    async def run(self) -> None:
        """Runs until cancelled."""
        started: dict[GuestId, ProvisionRequest] = {}
        try:
            while True:
                for guest, request in self._requests.items():
                    if started.get(guest) != request and guest not in self._tasks:
                        started[guest] = request
                        task = asyncio.create_task(
                            self._provision(guest, request), name=f"provision {guest}"
                        )
                        self._tasks[guest] = task
                        task.add_done_callback(partial(self._ended, guest))
                started = {g: request for g, request in started.items() if g in self._requests}
                await self._changed.wait()
                self._changed.clear()
        finally:
            for task in self._tasks.values():
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def _ended(self, guest: GuestId, task: asyncio.Task[None]) -> None:
        self._tasks.pop(guest, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            # A programming error: it keeps this guest out until its next boot, and no other guest.
            log.error("inspecting guest %s failed: %r", guest, error, exc_info=error)
        self._changed.set()  # another request may be due

    async def _provision(self, guest: GuestId, request: ProvisionRequest) -> None:
        """Inspect until everything is in place, or another request is due."""
        inspections = 0
        while self._requests.get(guest) == request:
            inspection = self._verdicts if request.configures_itself else self._in_lane
            verdicts = await inspection(guest, request)
            inspections += 1
            if self._requests.get(guest) != request:
                return
            if verdicts is not None:
                self._emit(
                    GuestInspected(
                        at=self._clock(),
                        guest=guest,
                        incarnation=request.incarnation,
                        verdicts=verdicts,
                    )
                )
                if not any(verdict.problem for verdict in verdicts):
                    return
            await self._pause(guest, pause_after(inspections, self._hung.get(guest, 0)))

    async def _pause(self, guest: GuestId, seconds: float) -> None:
        """Wait; another request for the guest ends it."""
        self._pauses[guest] = asyncio.Event()
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._pauses[guest].wait()
        finally:
            del self._pauses[guest]

    async def _in_lane(
        self, guest: GuestId, request: ProvisionRequest
    ) -> tuple[Verdict, ...] | None:
        """Inspect in a place of the guest's lane; None also where the slow lane is full."""
        lane = self._slow if guest in self.late else self._quick
        await lane.acquire()
        begun, given_up = self._clock(), False
        inspection = asyncio.create_task(self._verdicts(guest, request), name=f"inspect {guest}")
        try:
            await asyncio.wait({inspection}, timeout=IN_TIME)
            if inspection.done():
                self.late.discard(guest)
                return inspection.result()
            self.late.add(guest)
            if lane is self._quick:
                if self._slow.locked():
                    log.debug("guest %s: the inspection is not in time and is given up", guest)
                    given_up = True
                    return None
                await self._slow.acquire()  # does not wait: it is free
                lane.release()
                lane = self._slow
            return await inspection
        finally:
            if given_up or self._clock() - begun >= HANGS:
                self._hung[guest] = self._hung.get(guest, 0) + 1
            else:
                self._hung.pop(guest, None)
            inspection.cancel()
            await asyncio.wait({inspection})
            lane.release()

    async def _verdicts(
        self, guest: GuestId, request: ProvisionRequest
    ) -> tuple[Verdict, ...] | None:
        """None: the guest boots, and its inspection failed for that."""
        # Loaded when a guest is to be inspected: not every agent does.
        from xenlb.agent.provision import InspectionFailed, Inspector  # noqa: PLC0415
        from xenlb.guestside.lock import lock_folder  # noqa: PLC0415

        inspector = Inspector(templates=self._templates, locks=lock_folder(self._socket))
        try:
            return await inspector.inspect(guest, request, self._xenstores.get(guest.uri))
        except InspectionFailed as error:
            if error.may_boot and self._clock() - request.booted < BOOTING:
                log.debug("guest %s: %s", guest, error)
                return None
            return tuple(
                Verdict(service=service, problem=str(error)) for service in request.services
            )
