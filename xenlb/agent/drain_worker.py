"""Counts the connections that drains wait for, and requests what follows a drain from libvirt.

Both follow from the state alone, so an agent that starts after a kill goes on with them.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from functools import partial

from xenlb.hypervisor.libvirt.queries import CallFailed, Unreachable
from xenlb.hypervisor.libvirt.source import LibvirtSource
from xenlb.hypervisor.threads import CallTimeout
from xenlb.ipvs.errors import IpvsError
from xenlb.ipvs.kernel import Kernel, KernelTable
from xenlb.model.domain import GuestId, RequestKind
from xenlb.model.draining import VERBS, any_active, requests_due, services_to_count
from xenlb.model.events import ConnectionsCounted, RequestSent
from xenlb.model.note import Note, NoteKind
from xenlb.model.state import State

log = logging.getLogger(__name__)

COUNT = 0.5  # seconds between two counts
AGAIN = 1.0  # seconds until the next request to libvirt
REFUSALS = 3  # libvirt refuses for reasons that pass: another job holds the domain, it restarts


class DrainWorker:
    """`emit` takes events, `note` notes for the event log; `libvirts`: the running sources, by URI.

    `kernel` has a socket of its own, for the thread that counts.
    """

    def __init__(
        self,
        emit: Callable[..., None],
        clock: Callable[[], float],
        note: Callable[[Note], None],
        libvirts: Mapping[str, LibvirtSource],
        *,
        kernel: KernelTable | None = None,
    ) -> None:
        self._emit, self._clock, self._note = emit, clock, note
        self._libvirts = libvirts
        self._kernel = kernel or Kernel()
        self._state = State()
        self._lasting = asyncio.Event()
        self._requests: dict[GuestId, asyncio.Task[None]] = {}

    def on_state_change(self, state: State) -> None:
        """Count while a drain lasts, and request what is due."""
        self._state = state
        if any_active(state):
            self._lasting.set()
        for guest, kind in requests_due(state, self._clock()).items():
            if guest not in self._requests:
                task = asyncio.create_task(self._request(guest, kind), name=f"{kind} of {guest}")
                self._requests[guest] = task
                task.add_done_callback(partial(self._requested, guest))

    def _requested(self, guest: GuestId, _task: asyncio.Task[None]) -> None:
        self._requests.pop(guest, None)

    async def run(self) -> None:
        """Count while a drain lasts; runs until cancelled."""
        try:
            while True:
                await self._lasting.wait()
                await self._count()
                if not any_active(self._state):
                    self._lasting.clear()
                await asyncio.sleep(COUNT)
        finally:
            for task in self._requests.values():
                task.cancel()
            await asyncio.gather(*self._requests.values(), return_exceptions=True)
            self._kernel.close()

    async def _count(self) -> None:
        keys, at = services_to_count(self._state), self._clock()
        try:
            snapshot = await asyncio.to_thread(self._kernel.read, keys)
        except IpvsError as error:
            log.debug("the connections that are left cannot be counted: %s", error)
            return
        self._emit(ConnectionsCounted(at=at, counters=snapshot.counters))

    async def _request(self, guest: GuestId, kind: RequestKind) -> None:
        """Try until libvirt takes the request or refuses it for good.

        A libvirt that is not connected is waited for, as long as the drain's order is valid.
        """
        refusals, failure, noted = 0, "", False
        while guest in requests_due(self._state, self._clock()):
            source = self._libvirts.get(guest.uri)
            try:
                if source is None:
                    raise Unreachable(f"libvirt {guest.uri} is not connected")
                reboots = kind is RequestKind.REBOOT
                await (source.reboot(guest) if reboots else source.shutdown(guest))
                failure = ""
            except (Unreachable, CallTimeout) as error:
                log.debug("%s of %s waits: %s", kind, guest, error)
                if not noted:
                    noted = True
                    text = f"the {VERBS[kind]} waits for libvirt: {error}"
                    self._note(
                        Note(
                            at=self._clock(),
                            kind=NoteKind.REQUEST_SENT,
                            text=text,
                            guest=guest,
                            warning=True,
                        )
                    )
                await asyncio.sleep(AGAIN)
                continue
            except CallFailed as error:
                failure = str(error)
                refusals += 1
                if refusals < REFUSALS and not error.gone:
                    await asyncio.sleep(AGAIN)
                    continue
            applied = asyncio.get_running_loop().create_future()
            sent = RequestSent(at=self._clock(), guest=guest, kind=kind, failure=failure)
            self._emit(sent, applied)
            await applied  # until then the state says that the request is due
            return
