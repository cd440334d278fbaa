"""The agent: the one task that owns the state and the kernel's table.

Sources put events into a queue. Each round folds the queued events into the state, writes the
difference to the kernel's table, saves the state, and then tells the sources of the new state.
Nothing else changes state or table.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from xenlb import clock
from xenlb.agent.configuration import ConfigurationFile
from xenlb.agent.event_log import EventLog
from xenlb.agent.guest_limiter import GuestLimiter
from xenlb.agent.table_reads import TableReads
from xenlb.config import ConfigError
from xenlb.ipvs.errors import IpvsError
from xenlb.ipvs.kernel import Kernel, KernelTable
from xenlb.ipvs.table import IPAddress, Snapshot
from xenlb.model.domain import GuestId
from xenlb.model.drain import Counts
from xenlb.model.engine import Engine, Outcome
from xenlb.model.events import ConfigurationRefused, Configured, Event
from xenlb.model.note import Note, NoteKind
from xenlb.model.settings import ServiceSettings, Settings, needed_uris
from xenlb.model.state import State
from xenlb.store.saved_state import SavedState
from xenlb.store.state_file import StateFile

log = logging.getLogger(__name__)

RESYNC = 15.0  # seconds between two full reads of the kernel's table
RETRY = 2.0  # the same while reads or writes fail; after the first failure there is no pause
PULSE = 5.0  # longest time between two rounds
RESULTS_TIME = 0.005  # seconds of a round for results of checks


class Agent:
    """The owner of state and table.

    `on_state_change` is called after each round with the state before and after it.
    `first_sync_done` is set when the table was brought in line once, or could not be. `round_at`:
    the time of the last round, at most PULSE ago.
    """

    def __init__(
        self,
        *,
        config: Path,
        state_file: Path | StateFile,
        socket: Path,
        kernel: KernelTable | None = None,
        reader: KernelTable | None = None,
        last_good: Path | None = None,
    ) -> None:
        self.config = config
        self.configuration = ConfigurationFile(config, last_good)
        self.file = StateFile(state_file) if isinstance(state_file, Path) else state_file
        self.state_file = self.file.path
        self.socket = socket
        self.on_state_change: Callable[[State, State], None] = lambda before, after: None
        self.first_sync_done = asyncio.Event()
        history = self.state_file.with_name("events.jsonl")
        self.event_log = EventLog(wall=clock.wall, file=history)
        saved = self.file.saved
        self.addresses = saved.addresses
        self.sysctls: Mapping[str, str] = saved.sysctls
        self.round_at = clock.now()
        self.engine = Engine(
            state=State(remembered=saved.remembered),
            now=self.round_at,
            services=saved.services,
            servers=saved.servers,
        )
        self._kernel = kernel or Kernel()
        self._limiter = GuestLimiter(self._queue_event, clock.now, self.note)
        self._reads = TableReads(reader or Kernel())
        self._queue: deque[Event] = deque()
        self._applied: list[tuple[Event, asyncio.Future[None]]] = []
        self._wakeup = asyncio.Event()
        self._snapshot: Snapshot | None = None
        self._reading: asyncio.Task[None] | None = None
        self._resync_at = 0.0
        self._owned = saved.services, saved.servers

    @property
    def state(self) -> State:
        """The state after the last round."""
        return self.engine.state

    def emit(self, event: Event, applied: asyncio.Future[None] | None = None) -> None:
        """Queue an event, in the loop's thread.

        `applied` is done when the kernel's table is what follows from the event, and cancelled
        where a newer report of the same guest replaces it.
        """
        self._limiter.take(event, applied)

    def _queue_event(self, event: Event, applied: asyncio.Future[None] | None) -> None:
        self._queue.append(event)
        if applied is not None:
            self._applied.append((event, applied))
        self._wakeup.set()

    def configure(
        self,
        settings: Settings,
        counters: Counts | None = None,
        applied: asyncio.Future[None] | None = None,
    ) -> None:
        """Queue a configuration. `counters`: connections of the table as it is, if known."""
        settings = replace(settings, uris=needed_uris(settings))
        self.emit(Configured(at=clock.now(), settings=settings, counters=counters), applied)

    async def reload(self, *, ordered: bool = True) -> tuple[str, ...]:
        """Read the configuration again; return the problems of one that is refused.

        When this returns the kernel's table is as configured, and `state.observed.changes` says
        what changed. Without `ordered` an unchanged file changes nothing, and a file that may be
        half written is read again later.
        """
        configuration = self.configuration
        try:
            loaded = await (configuration.read() if ordered else configuration.read_calmly())
        except ConfigError as error:
            if ordered or error.problems != self.state.observed.problems:
                self.emit(ConfigurationRefused(at=clock.now(), problems=error.problems))
            return tuple(str(problem) for problem in error.problems)
        known = configuration.in_use
        if ordered or self.state.observed.problems or known is None or known.data != loaded.data:
            counters = None
            with suppress(IpvsError):  # it is logged; connections are not counted then
                counters = (await self.reread()).counters
            applied = asyncio.get_running_loop().create_future()
            self.configure(loaded.settings, counters, applied)
            await configuration.use(loaded)
            await applied
        return ()

    async def reread(self) -> Snapshot:
        """Return the whole table, read and repaired, with counters. Raises IpvsError."""
        done = self._reads.request()
        self._wakeup.set()
        return await done

    def keep(
        self,
        *,
        addresses: frozenset[tuple[str, IPAddress]] | None = None,
        sysctls: Mapping[str, str] | None = None,
    ) -> None:
        """Save what the director has changed on this host, for the next start."""
        if addresses is not None:
            self.addresses = addresses
        if sysctls is not None:
            self.sysctls = {**sysctls, **self.sysctls}  # the first old value is the host's own
        self._save()

    def resync(self) -> None:
        """Read the whole table again now."""
        self._resync_at = 0.0
        self._wakeup.set()

    def note(
        self,
        text: str,
        *,
        kind: NoteKind = NoteKind.AGENT,
        guest: GuestId | None = None,
        warning: bool = False,
    ) -> None:
        """Write a line of now to the event log."""
        self.write(Note(at=clock.now(), kind=kind, text=text, guest=guest, warning=warning))

    def write(self, *notes: Note, before: State | None = None) -> None:
        """Write notes to the event log; a guest that was in `before` still has its name."""
        if not notes:
            return
        guests = {**self.state.guests, **(before.guests if before is not None else {})}
        for note in notes:
            self.event_log.write(note, guests)

    async def run(self) -> None:
        """Run until cancelled."""
        try:
            while True:
                await self._wait()
                self._round()
                self.round_at = clock.now()
        finally:
            if self._reading is not None:
                self._reading.cancel()
            self._limiter.close()
            self._save()
            self._kernel.close()
            self._reads.close()
            await self.file.close()

    async def _wait(self) -> None:
        if self._queue:
            await asyncio.sleep(0)  # sources that are ready add to this round
            return
        now = clock.now()
        times = [
            now + PULSE,
            None if self._reading is not None else self._resync_at,
            self.engine.next_deadline,
        ]
        first = min(at for at in times if at is not None)
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, first - now)):
                await self._wakeup.wait()

    def _round(self) -> None:
        self._wakeup.clear()
        before, now = self.state, clock.now()
        if self._snapshot is not None:
            self.engine.load_snapshot(self._snapshot)
            self._snapshot = None
        until = now + RESULTS_TIME
        outcome = self.engine.handle(self._queue, now, out_of_time=lambda: clock.now() >= until)
        self._queue = deque(outcome.deferred)
        # The kernel first: writing to the log may take long.
        notes = [*outcome.notes, *self._apply(outcome)]
        self._save()
        self._answer_applied()
        if self._reading is None:
            self._reads.answer(self.engine.table)
        self.write(*notes, before=before)
        if outcome.since is not None:
            self.on_state_change(before, self.state)
        self._upkeep()

    def _answer_applied(self) -> None:
        """Set the futures of events that are not deferred."""
        deferred = set(map(id, self._queue))
        pending, self._applied = self._applied, []
        for event, applied in pending:
            if id(event) in deferred:
                self._applied.append((event, applied))
            elif not applied.done():
                applied.set_result(None)

    def _apply(self, outcome: Outcome) -> tuple[Note, ...]:
        """Apply the operations. What is claimed is saved before the kernel has it."""
        if outcome.claimed:
            self._note_owned()
            self._save()
        if outcome.stale:
            self._resync_soon()
        if outcome.want is None:
            return ()
        try:
            failed = self._kernel.apply(outcome.ops) if outcome.ops else ()
        except IpvsError as error:
            return self._kernel_failed(error)
        result = self.engine.executed(outcome, failed, clock.now())
        if result.stale:
            self._resync_soon()
        if outcome.whole:
            self.first_sync_done.set()
        if result.released:
            self._note_owned()
        return result.notes

    def _resync_soon(self) -> None:
        if not self.engine.kernel_problem:  # else its time is set
            self._resync_at = clock.now()

    def take_over(self, service: ServiceSettings, by: str) -> list[str]:
        """Remove what other tools have put into a service; return the notes of it."""
        self.note(
            f"service {service.name} is taken over by {by}",
            kind=NoteKind.TABLE_CHANGED,
            warning=True,
        )
        self.engine.take_over(service.kernel_keys())
        self._note_owned()
        self._save()
        outcome = self.engine.handle((), clock.now())
        notes = [*outcome.notes, *self._apply(outcome)]
        self.write(*notes)
        return [note.text for note in notes]

    def _kernel_failed(self, error: IpvsError) -> tuple[Note, ...]:
        again = RETRY if self.engine.kernel_failing else 0.0
        notes = self.engine.kernel_failed(str(error), clock.now())
        self._resync_at = clock.now() + again
        self.first_sync_done.set()
        return notes

    def _upkeep(self) -> None:
        now = clock.now()
        if (now >= self._resync_at or self._reads.wanted) and self._reading is None:
            self._resync_at = now + RESYNC
            self.engine.begin_read()
            self._reading = asyncio.create_task(self._read(), name="read the IPVS table")

    async def _read(self) -> None:
        """Read the table in a thread; the next round takes it."""
        try:
            self._snapshot = await self._reads.read(counters=bool(self.engine.reconciler.leaving))
            if self.engine.kernel_problem:
                log.debug("the kernel's table was read")
        except IpvsError as error:
            self.write(*self._kernel_failed(error))
        finally:
            self._reading = None
            self._wakeup.set()

    def _note_owned(self) -> None:
        """After a change: the reconciler changes in place, and what is saved must not."""
        reconciler = self.engine.reconciler
        self._owned = frozenset(reconciler.services), dict(reconciler.servers)

    def _save(self) -> None:
        services, servers = self._owned
        self.file.save(
            SavedState(
                remembered=self.state.remembered,
                services=services,
                servers=servers,
                addresses=self.addresses,
                sysctls=self.sysctls,
            )
        )
