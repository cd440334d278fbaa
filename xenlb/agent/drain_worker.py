"""What a drain needs besides weight 0: counting what is left, and asking libvirt for what follows.

Both heed the state alone, so that an agent that was killed in between goes on. What it all means
for a drain is decided in model/drain.py and model/draining.py.
"""

import asyncio
import logging
from collections.abc import Mapping
from functools import partial

from xenlb import clock
from xenlb.agent.loop import Agent
from xenlb.hypervisor.libvirt.queries import CallFailed, Unreachable
from xenlb.hypervisor.libvirt.source import LibvirtSource
from xenlb.hypervisor.threads import CallTimeout
from xenlb.ipvs.errors import IpvsError
from xenlb.ipvs.kernel import Kernel, KernelTable
from xenlb.model.domain import GuestId, RequestKind
from xenlb.model.draining import VERBS, due, lasting, to_count
from xenlb.model.events import ConnectionsCounted, RequestSent
from xenlb.model.state import State

log = logging.getLogger(__name__)

COUNT = 0.5  # seconds between two counts
AGAIN = 1.0  # seconds until libvirt is asked again
REFUSALS = 3  # libvirt refuses for reasons that pass: another job holds the domain, it restarts


class DrainWorker:
    """`libvirts` are the running sources, by URI."""

    def __init__(
        self,
        agent: Agent,
        libvirts: Mapping[str, LibvirtSource],
        *,
        kernel: KernelTable | None = None,
    ) -> None:
        self._agent = agent
        self._libvirts = libvirts
        self._kernel = kernel or Kernel()  # a socket of its own, for the thread that counts
        self._lasting = asyncio.Event()
        self._asking: dict[GuestId, asyncio.Task[None]] = {}

    def on_state_change(self, state: State) -> None:
        """Heeds the state after a round."""
        if lasting(state):
            self._lasting.set()
        for guest, ask in due(state, clock.now()).items():
            if guest not in self._asking:
                task = asyncio.create_task(self._ask(guest, ask), name=f"{ask} of {guest}")
                self._asking[guest] = task
                task.add_done_callback(partial(self._asked, guest))

    def _asked(self, guest: GuestId, _task: asyncio.Task[None]) -> None:
        self._asking.pop(guest, None)

    async def run(self) -> None:
        """Counts while a drain lasts; until cancelled."""
        try:
            self.on_state_change(self._agent.state)  # of the agent before
            while True:
                await self._lasting.wait()
                await self._count()
                if not lasting(self._agent.state):
                    self._lasting.clear()
                await asyncio.sleep(COUNT)
        finally:
            for task in self._asking.values():
                task.cancel()
            await asyncio.gather(*self._asking.values(), return_exceptions=True)
            self._kernel.close()

    async def _count(self) -> None:
        keys, at = to_count(self._agent.state), clock.now()
        try:
            snapshot = await asyncio.to_thread(self._kernel.read, keys)
        except IpvsError as error:
            log.debug("the connections that are left cannot be counted: %s", error)
            return
        self._agent.emit(ConnectionsCounted(at=at, counters=snapshot.counters))

    async def _ask(self, guest: GuestId, ask: RequestKind) -> None:
        """Until libvirt was asked or has refused for good; a libvirt that is away is waited for, as
        long as the order has time."""
        refusals, failure, told = 0, "", False
        while guest in due(self._agent.state, clock.now()):
            source = self._libvirts.get(guest.uri)
            try:
                if source is None:
                    raise Unreachable(f"libvirt {guest.uri} is not connected")
                await (
                    source.reboot(guest) if ask is RequestKind.REBOOT else source.shutdown(guest)
                )
                failure = ""
            except (Unreachable, CallTimeout) as error:
                log.debug("%s of %s waits: %s", ask, guest, error)
                if not told:
                    told = True
                    text = f"the {VERBS[ask]} waits for libvirt: {error}"
                    self._agent.note(text, guest=guest, warning=True)
                await asyncio.sleep(AGAIN)
                continue
            except CallFailed as error:
                failure = str(error)
                refusals += 1
                if refusals < REFUSALS and not error.gone:
                    await asyncio.sleep(AGAIN)
                    continue
            applied = asyncio.get_running_loop().create_future()
            sent = RequestSent(at=clock.now(), guest=guest, kind=ask, failure=failure)
            self._agent.emit(sent, applied)
            await applied  # else the next round would ask once more
            return
