"""The engine: events and reads of the kernel's table in, operations on the table out. PURE.

The agent's loop, the one-shot pass, the scenarios and the benchmarks drive this one engine. They
pass events and snapshots, apply the operations, and report the kernel's results.

Two rules protect entries of other tools. No operation is planned before the table was read. And a
service, whose deletion removes all its servers, is deleted only right after a read.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import InitVar, dataclass, field, replace

from xenlb.ipvs.op import DeleteService, Op, OpFailed
from xenlb.ipvs.reconciler import Reconciler, contradicts_cache, repairs
from xenlb.ipvs.table import ServerKey, ServiceKey, Snapshot, Table
from xenlb.model import table_notes
from xenlb.model.desired import desired, next_deadline
from xenlb.model.events import Event, ProbeFinished, Tick
from xenlb.model.note import Note, NoteKind
from xenlb.model.reducer import reduce
from xenlb.model.state import State

# Check results that one call takes at most; beside any other event it takes one. When a network
# fails or returns there are thousands within a second. Each takes a tenth of a millisecond, or half
# of one when a server is admitted. A shutdown request among them must not wait for them.
RESULTS = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What follows from the events.

    `ops`: operations for the kernel, in order. `deferred`: check results for the next call.
    `claimed`: more of the table is owned now, which must be saved before `ops` are applied.
    `stale`: the whole table should be read again. The others are for `Engine.executed`. `want`: the
    wanted table, None if nothing was planned; `whole`: it is the whole table. `planned`: `ops` and
    those that wait for a retry; `drift`: those that repair changes by others. `fresh`: the table
    was just read; `since`: the time of the first event in seconds.
    """

    ops: tuple[Op, ...] = ()
    notes: tuple[Note, ...] = ()
    deferred: tuple[Event, ...] = ()
    claimed: bool = False
    stale: bool = False
    want: Table | None = None
    whole: bool = False
    planned: tuple[Op, ...] = ()
    drift: frozenset[Op] = frozenset()
    fresh: bool = False
    since: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Executed:
    """The kernel's results of an outcome. `released`: less of the table is owned now."""

    done: tuple[Op, ...] = ()
    notes: tuple[Note, ...] = ()
    stale: bool = False
    released: bool = False


@dataclass(slots=True)
class Engine:
    """State and table of one agent. `kernel_problem`: why the kernel cannot be used, "" if it can.

    It is made at the time `now` with what is owned in the table: `services` and `servers`, with the
    libvirt URI of each server's guest. `repairs`: ipvsadm lines that put back what others had
    changed before the last read.
    """

    state: State
    now: InitVar[float]
    services: InitVar[Collection[ServiceKey]] = ()
    servers: InitVar[Mapping[tuple[ServiceKey, ServerKey], str] | None] = None
    kernel_problem: str = "the kernel's table has not been read yet"
    repairs: tuple[str, ...] = ()
    reconciler: Reconciler = field(init=False)
    _noted_problem: str = ""
    _loaded: bool = False  # the table was read once and may be changed
    _fresh: bool = False  # read since the last plan
    _swept: bool = False  # the whole table was planned and applied since the last read
    _synced: bool = False  # that was done once, or tried
    _withheld: bool = False  # services wait for a fresh read until they are deleted
    _cached_before: Table = field(default_factory=Table)
    _foreign: frozenset[tuple[ServiceKey, ServerKey]] = frozenset()  # already noted
    # When the state changes by itself, computed from the time of the last call: a later time would
    # skip a step of a slow start that has come due in between.
    _due: float | None = field(init=False)

    def __post_init__(
        self,
        now: float,
        services: Collection[ServiceKey],
        servers: Mapping[tuple[ServiceKey, ServerKey], str] | None,
    ) -> None:
        self.reconciler = Reconciler(services=set(services), servers=dict(servers or {}))
        self._due = next_deadline(self.state, now)

    @property
    def table(self) -> Table:
        """The table as last read, changed by the operations since."""
        return Table(entries=self.reconciler.cached)

    @property
    def next_deadline(self) -> float | None:
        """When `handle` must be called at the latest, even without events."""
        retry_at = None if self.kernel_problem else self.reconciler.retry_at()
        return min((at for at in (self._due, retry_at) if at is not None), default=None)

    @property
    def kernel_failing(self) -> bool:
        """Whether the last read or write of the table failed."""
        return bool(self._noted_problem)

    def begin_read(self) -> None:
        """Note that a read of the table begins: what is changed from now on is newer than it."""
        self.reconciler.touched.clear()

    def load_snapshot(self, snapshot: Snapshot) -> None:
        """Load a read of the whole table; the next call of `handle` plans all of it."""
        self._cached_before = self.table
        self.reconciler.load_snapshot(snapshot)
        self._swept, self._loaded, self._fresh = False, True, True
        self.kernel_problem = ""

    def take_over(self, keys: Iterable[ServiceKey]) -> None:
        """Own the servers of other tools in these services; the next call removes them."""
        self.reconciler.take_over(keys)
        self._swept = False

    def handle(
        self,
        events: Iterable[Event],
        now: float,
        *,
        out_of_time: Callable[[], bool] = lambda: False,
    ) -> Outcome:
        """Fold the events into the state and plan; `out_of_time` ends a series of results early."""
        pending = list(events)
        if self._due is not None and self._due <= now:
            pending.append(Tick(at=now))
        results_only = all(isinstance(event, ProbeFinished) for event in pending)
        names: frozenset[str] | None = frozenset()
        notes: list[Note] = []
        deferred: list[Event] = []
        results, since = 0, None
        for event in pending:
            if isinstance(event, ProbeFinished):
                full = results == RESULTS or (results > 0 and (not results_only or out_of_time()))
                if full:
                    deferred.append(event)
                    continue
                results += 1
            step = reduce(self.state, event)
            self.state = step.state
            since = event.at if since is None else min(since, event.at)
            notes += step.notes
            names = None if names is None or step.services is None else names | step.services
        self._due = next_deadline(self.state, now)
        outcome = self._plan(names, now)
        notes += outcome.notes
        return replace(outcome, notes=tuple(notes), deferred=tuple(deferred), since=since)

    def _plan(self, names: frozenset[str] | None, now: float) -> Outcome:
        """Plan the named services, or the whole table if that is due."""
        fresh, self._fresh = self._fresh, False
        if not self._loaded:
            return Outcome()
        retry_at = self.reconciler.retry_at()
        whole = names is None or not self._swept or (retry_at is not None and retry_at <= now)
        services = self.state.settings.services
        if not whole and names is not None:
            services = tuple(service for service in services if service.name in names)
            if not services:
                return Outcome()
        want = desired(services, self.state, now)
        claimed = self.reconciler.claim(want, self.state.origins())
        planned = self.reconciler.plan(want, whole=whole, removable=self.state.listed)
        drift = frozenset[Op]()
        if fresh and self._synced and not self._noted_problem:
            drift = repairs(planned, self._cached_before, self.table)
        if whole:
            self._withheld = not fresh and any(isinstance(op, DeleteService) for op in planned)
        if self._withheld:
            planned = tuple(op for op in planned if not isinstance(op, DeleteService))
        notes: list[Note] = []
        if fresh:
            noted, self._foreign = self._foreign, self.reconciler.foreign(want).servers
            notes = table_notes.foreign_notes(
                self._foreign - noted, self.state.settings.services, now
            )
        return Outcome(
            ops=self.reconciler.due(planned, now),
            notes=tuple(notes),
            claimed=claimed,
            stale=self._withheld,
            want=want,
            whole=whole,
            planned=planned,
            drift=drift,
            fresh=fresh,
        )

    def executed(self, outcome: Outcome, failed: Sequence[OpFailed], now: float) -> Executed:
        """Record the kernel's results of an outcome's operations."""
        if outcome.want is None:
            return Executed()
        done = self.reconciler.record(outcome.ops, failed, now)
        if outcome.fresh:
            self.repairs = tuple(f"ipvsadm {op}" for op in done if op in outcome.drift)
        if not self.kernel_problem:
            self._noted_problem = ""
        released = False
        if outcome.whole:
            self._swept = self._synced = True
            self.reconciler.forgive(outcome.planned)
            released = self.reconciler.release(outcome.want)
        delay = None if outcome.since is None else now - outcome.since
        notes = table_notes.pass_notes(
            done, failed, self.reconciler, drift=outcome.drift, now=now, delay=delay
        )
        return Executed(
            done=done, notes=tuple(notes), stale=contradicts_cache(failed), released=released
        )

    def kernel_failed(self, problem: str, now: float) -> tuple[Note, ...]:
        """Record that a read or a write failed; operations go on, as it may be temporary."""
        known = problem == self._noted_problem
        self.kernel_problem = self._noted_problem = problem
        self._swept, self._synced = False, True
        return () if known else (Note(now, NoteKind.KERNEL_FAILED, problem, warning=True),)
