"""The agent: the one task that owns the state and the kernel's table.

Sources put events into a queue. Each round folds the queued events into the state, writes the
difference to the kernel's table, saves the state, and then tells the sources of the new state.
Nothing else changes state or table.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from xenlb import clock
from xenlb.agent import table_notes
from xenlb.agent.configuration import Configuration
from xenlb.agent.event_log import EventLog
from xenlb.agent.guest_limiter import GuestLimiter
from xenlb.agent.table_reads import TableReads
from xenlb.config import ConfigError
from xenlb.ipvs.errors import IpvsError
from xenlb.ipvs.kernel import Kernel, KernelTable
from xenlb.ipvs.op import DeleteService, Op
from xenlb.ipvs.reconciler import Reconciler, contradicts_cache, repairs
from xenlb.ipvs.table import IPAddress, ServerKey, ServiceKey, Snapshot, Table
from xenlb.model.desired import desired, next_deadline
from xenlb.model.domain import GuestId
from xenlb.model.drain import Counts
from xenlb.model.events import ConfigurationRefused, Configured, Event, ProbeFinished, Tick
from xenlb.model.reducer import reduce
from xenlb.model.settings import ServiceSettings, Settings, needed_uris
from xenlb.model.state import Note, State
from xenlb.store.saved_state import SavedState
from xenlb.store.state_file import StateFile

log = logging.getLogger(__name__)

RESYNC = 15.0  # seconds between two full reads of the kernel's table
RETRY = 2.0  # the same, while the kernel refuses; the first time it is asked again at once
PULSE = 5.0  # longest time between two rounds
# Results of checks that a round takes at most, and for how many seconds; beside anything else it
# takes one. When a network breaks, or comes back, there are thousands within the same second, each
# a tenth of a millisecond, or half of one where it lets a server in; a guest that is asked to shut
# down in the midst of them must not wait for them.
RESULTS = 128
RESULTS_TIME = 0.005


class Agent:
    """The owner. `changed` is called after each round with the state before and after it; `begun`
    is set when the kernel's table was read, and brought in line, once (or could not be)."""

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
        self.configuration = Configuration(config, last_good)
        self.file = StateFile(state_file) if isinstance(state_file, Path) else state_file
        self.state_file = self.file.path
        self.socket = socket
        self.on_state_change: Callable[[State, State], None] = lambda before, after: None
        self.first_sync_done = asyncio.Event()
        history = self.state_file.with_name("events.jsonl")
        self.journal = EventLog(wall=clock.wall, file=history)
        saved = self.file.saved
        self.state = State(remembered=saved.remembered)
        self.addresses = saved.addresses
        self.sysctls: Mapping[str, str] = saved.sysctls
        self.reconciler = Reconciler(
            kernel=kernel or Kernel(),
            services=set(saved.services),
            servers=dict(saved.servers),
        )
        self._limiter = GuestLimiter(self._queue_event, clock.now, self.note)
        self.kernel_problem = "the kernel's table was not read yet"
        self._known = False  # the kernel's table was read once: it may be written from then on
        self._told_problem = ""  # the kernel's refusal that the journal has already
        self._reads = TableReads(reader or Kernel())
        self._queue: deque[Event] = deque()
        self._applied: list[tuple[Event, asyncio.Future[None]]] = []
        self._news = asyncio.Event()
        self._snapshot: Snapshot | None = None
        self._reading: asyncio.Task[None] | None = None
        self._resync_at = 0.0
        self._owned = saved.services, saved.servers
        self.repairs: tuple[str, ...] = ()  # of what the last read found changed by others
        self._swept = False  # the whole table was brought in line after the last read
        self._foreign: frozenset[tuple[ServiceKey, ServerKey]] = frozenset()  # as was told
        self._withheld = False  # services wait for a fresh read until they are removed
        self.round_at = clock.now()
        # When the state changes by itself. Reckoned from the time of the last round: from a later
        # one, a step that has come due in between would be passed over.
        self._due = next_deadline(self.state, self.round_at)

    def emit(self, event: Event, applied: asyncio.Future[None] | None = None) -> None:
        """Takes an event; in the loop's thread. `applied` is done when the kernel has heard of it,
        and cancelled where a newer word of the same guest takes its place."""
        self._limiter.hear(event, applied)

    def _queue_event(self, event: Event, applied: asyncio.Future[None] | None) -> None:
        self._queue.append(event)
        if applied is not None:
            self._applied.append((event, applied))
        self._news.set()

    def configure(
        self,
        settings: Settings,
        counters: Counts | None = None,
        applied: asyncio.Future[None] | None = None,
    ) -> None:
        settings = replace(settings, uris=needed_uris(settings))
        self.emit(Configured(at=clock.now(), settings=settings, counters=counters), applied)

    async def reload(self, *, ordered: bool = True) -> tuple[str, ...]:
        """Reads the configuration again; the problems, if it is refused. When this returns the
        kernel has heard of what it changes, which stands in `state.changes`. Not `ordered`: it may
        be that nothing has changed, or that the file is half written (configuration.py)."""
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
            with suppress(IpvsError):  # it tells of itself; connections are not counted then
                counters = (await self.reread()).counters
            applied = asyncio.get_running_loop().create_future()
            self.configure(loaded.settings, counters, applied)
            await configuration.use(loaded)
            await applied
        return ()

    async def reread(self) -> Snapshot:
        """Has the whole table read and repaired; the table then, with counters. Raises IpvsError.

        All that ask while a read is under way share the next one.
        """
        done = self._reads.ask()
        self._news.set()
        return await done

    def keep(
        self,
        *,
        addresses: frozenset[tuple[str, IPAddress]] | None = None,
        sysctls: Mapping[str, str] | None = None,
    ) -> None:
        """Writes down what the director has done, so that a restart knows it."""
        if addresses is not None:
            self.addresses = addresses
        if sysctls is not None:
            self.sysctls = {**sysctls, **self.sysctls}  # the first old value is the host's own
        self._save()

    def resync(self) -> None:
        """Reads the whole table again now."""
        self._resync_at = 0.0
        self._news.set()

    def note(self, text: str, *, guest: GuestId | None = None, warning: bool = False) -> None:
        note = Note(at=clock.now(), text=text, guest=guest, warning=warning)
        self.journal.write(note, self.state.guests)

    # --- the owner task --------------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled. `round_at` is the time of the last round, at most PULSE ago."""
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
            self.reconciler.kernel.close()
            self._reads.close()
            await self.file.close()

    async def _wait(self) -> None:
        if self._queue:
            await asyncio.sleep(0)  # sources that are ready may add to this round
            return
        now = clock.now()
        times = [
            now + PULSE,
            None if self._reading is not None else self._resync_at,
            self._due,
            None if self.kernel_problem else self.reconciler.retry_at(),
        ]
        first = min(at for at in times if at is not None)
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, first - now)):
                await self._news.wait()

    def _round(self) -> None:
        self._news.clear()
        before = self.state
        events = self._next()
        names: set[str] | None = set()
        notes: list[Note] = []
        now = clock.now()
        if self._due is not None and self._due <= now:
            events.append(Tick(at=now))
        alone = all(isinstance(event, ProbeFinished) for event in events)
        heard, applied, until = float("inf"), 0, now + (RESULTS_TIME if alone else 0.0)
        late: list[Event] = []
        for event in events:
            if isinstance(event, ProbeFinished):
                if applied and clock.now() >= until:
                    late.append(event)
                    continue
                applied += 1
            result = reduce(self.state, event)
            self.state = result.state
            heard = min(heard, event.at)
            notes += result.notes
            names = None if names is None or result.services is None else names | result.services
        self._queue.extendleft(reversed(late))
        self._due = next_deadline(self.state, now)
        # The kernel first: writing a log may take its time.
        notes += self._apply(names, heard if events else None)
        self._save()
        self._answer_applied()
        if self._reading is None:
            self._reads.answer(self.table())
        guests = {**self.state.guests, **before.guests}
        for note in notes:
            self.journal.write(note, guests)
        if events:
            self.on_state_change(before, self.state)
        self._upkeep()

    def _next(self) -> list[Event]:
        """What this round takes, in the order in which it was heard; the rest stays queued."""
        events: list[Event] = []
        later: deque[Event] = deque()
        results = 0
        for event in self._queue:
            if isinstance(event, ProbeFinished):
                results += 1
            (later if isinstance(event, ProbeFinished) and results > RESULTS else events).append(
                event
            )
        self._queue = later
        return events

    def _answer_applied(self) -> None:
        """Tells those whose event the kernel has heard of."""
        waiting = set(map(id, self._queue))
        asked, self._applied = self._applied, []
        for event, applied in asked:
            if id(event) in waiting:
                self._applied.append((event, applied))
            elif not applied.done():
                applied.set_result(None)

    def _apply(self, names: Collection[str] | None, heard: float | None) -> list[Note]:
        """Gives the kernel what follows from the state, for the named services or for all."""
        now = clock.now()
        snapshot, self._snapshot = self._snapshot, None
        thought = self.table()
        if snapshot is not None:
            self.reconciler.load_snapshot(snapshot)
            self._swept, self._known = False, True
        if not self._known:
            return []
        retry_at = self.reconciler.retry_at()
        whole = names is None or not self._swept or (retry_at is not None and retry_at <= now)
        if whole:
            services = self.state.settings.services
        elif names:
            services = tuple(s for s in self.state.settings.services if s.name in names)
        else:
            return []
        want = desired(services, self.state, now)
        if self.reconciler.claim(want, self.state.origins()):
            self._note_owned()
            self._save()
        ops = self.reconciler.plan(want, whole=whole, removable=self.state.listed)
        drift = frozenset[Op]()
        if snapshot is not None and self.first_sync_done.is_set() and not self._told_problem:
            drift = repairs(ops, thought, self.table())
        # A service takes all its servers along, and since the last read another tool may have put
        # one of its own there.
        if whole:
            removes = any(isinstance(op, DeleteService) for op in ops)
            self._withheld = removes and snapshot is None
        if self._withheld:
            ops = tuple(op for op in ops if not isinstance(op, DeleteService))
            self._resync_soon()
        news = []
        if snapshot is not None:
            told, self._foreign = self._foreign, self.reconciler.foreign(want).servers
            news = table_notes.foreign_notes(
                self._foreign - told, self.state.settings.services, now
            )
        try:
            result = self.reconciler.execute(ops, now)
        except IpvsError as error:
            self._kernel_failed(error)
            return news
        if snapshot is not None:
            self.repairs = tuple(f"ipvsadm {op}" for op in result.done if op in drift)
        if not self.kernel_problem:
            self._told_problem = ""
        if contradicts_cache(result.failed):
            self._resync_soon()
        if whole:
            self._swept = True
            self.first_sync_done.set()
            self.reconciler.forgive(ops)
            if self.reconciler.release(want):
                self._note_owned()
        took = None if heard is None else clock.now() - heard
        return news + table_notes.pass_notes(result, self.reconciler, drift, clock.now(), took)

    def _resync_soon(self) -> None:
        if not self.kernel_problem:  # else its time is set
            self._resync_at = clock.now()

    def take_over(self, service: ServiceSettings, by: str) -> list[str]:
        """Removes what other tools have put into a service; the journal's lines of it."""
        self.note(f"service {service.name} is taken over by {by}", warning=True)
        self.reconciler.take_over(service.kernel_keys())
        self._note_owned()
        self._save()
        notes = self._apply(None, None)
        for note in notes:
            self.journal.write(note, self.state.guests)
        return [note.text for note in notes]

    def _kernel_failed(self, error: IpvsError) -> None:
        """A read or a write. The table is cached to be as it was, and written all the same: what
        stood in the way of one message may have passed."""
        first = not self._told_problem
        if str(error) != self._told_problem:
            self.note(str(error), warning=True)
        self.kernel_problem = self._told_problem = str(error)
        self._resync_at = clock.now() + (0.0 if first else RETRY)
        self.first_sync_done.set()
        self._swept = False

    # --- upkeep: full reads, the state file ------------------------------------------------------

    def _upkeep(self) -> None:
        now = clock.now()
        if (now >= self._resync_at or self._reads.wanted) and self._reading is None:
            self._resync_at = now + RESYNC
            self.reconciler.touched.clear()
            self._reading = asyncio.create_task(self._read(), name="read the IPVS table")

    async def _read(self) -> None:
        """Reads the table in a thread; the owner takes it in its next round."""
        try:
            self._snapshot = await self._reads.read(counters=bool(self.reconciler.leaving))
            if self.kernel_problem:
                log.debug("the kernel's table was read")
            self.kernel_problem = ""
        except IpvsError as error:
            self._kernel_failed(error)
        finally:
            self._reading = None
            self._news.set()

    def _note_owned(self) -> None:
        """After it has changed: the reconciler does so in place, and what is saved must not."""
        self._owned = frozenset(self.reconciler.services), dict(self.reconciler.servers)

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

    def table(self) -> Table:
        """The table as it is cached to be."""
        return Table(entries=self.reconciler.cached)
