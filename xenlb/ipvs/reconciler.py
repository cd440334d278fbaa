"""Plans the operations that lead to the wanted table, and records what of the table is ours. PURE.

Between two full reads it uses a cached table: the last read, changed by every operation the kernel
has taken since. So one guest's weight does not wait for ten thousand servers to be listed. A full
read happens at start, at every resync and after any failed operation; what it finds changed by
others is put back and reported as drift.
"""

import errno
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from xenlb.ipvs.diff import Foreign, Owned, diff, find_foreign
from xenlb.ipvs.errors import explain
from xenlb.ipvs.op import (
    AddServer,
    AddService,
    DeleteServer,
    DeleteService,
    Op,
    OpFailed,
    SetServer,
    SetService,
)
from xenlb.ipvs.table import (
    Counters,
    Entry,
    Server,
    ServerKey,
    Service,
    ServiceKey,
    Snapshot,
    Table,
)

RETRY_FIRST = 1.0  # seconds until a failed operation is tried again; doubled each time
RETRY_LAST = 60.0

# The table is not what we cached it to be.
_SURPRISES = {errno.EEXIST, errno.ENOENT, errno.ESRCH}

Place = tuple[ServiceKey, ServerKey | None]  # a server, or a service


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedOperation:
    """An operation that the kernel refused `attempts` times in a row, last with `errno`."""

    op: Op
    errno: int
    since: float
    attempts: int
    retry_at: float

    @property
    def reason(self) -> str:
        return str(explain(OpFailed(op=self.op, errno=self.errno)))


def entry_key(op: Op) -> Place:
    match op:
        case AddService(service=service) | SetService(service=service):
            return service.key, None
        case DeleteService(key=key):
            return key, None
        case AddServer(service=key, server=server) | SetServer(service=key, server=server):
            return key, server.key
        case DeleteServer(service=key, key=server_key):
            return key, server_key


def repairs(ops: Iterable[Op], thought: Table, found: Table) -> frozenset[Op]:
    """Those of the operations whose place was found other than it was thought to be."""

    def at(table: Table, op: Op) -> Service | Server | None:
        key, server = entry_key(op)
        entry = table.entries.get(key)
        if entry is None:
            return None
        return entry.service if server is None else entry.servers.get(server)

    return frozenset(op for op in ops if at(thought, op) != at(found, op))


@dataclass(slots=True)
class Reconciler:
    """The table of one kernel.

    `services` and `servers` are ours; the value of a server is the libvirt URI of its guest, ""
    for a host. They are written down (state_file.py) before the kernel hears of a new one.
    `leaving`: services with a server that waits for its last connection, which reads must count.
    """

    services: set[ServiceKey] = field(default_factory=set)
    servers: dict[tuple[ServiceKey, ServerKey], str] = field(default_factory=dict)
    failures: dict[Place, FailedOperation] = field(default_factory=dict)
    cached: dict[ServiceKey, Entry] = field(default_factory=dict)
    touched: set[ServiceKey] = field(default_factory=set)
    counted: dict[ServiceKey, Mapping[ServerKey, Counters]] = field(default_factory=dict)
    leaving: set[ServiceKey] = field(default_factory=set)

    def load_snapshot(self, snapshot: Snapshot) -> None:
        """Takes a full read for the truth, except for services changed since `touched` was emptied,
        which was when the reading began."""
        fresh = dict(snapshot.table.entries)
        self.counted = {
            key: counts for key, counts in snapshot.counters.items() if key not in self.touched
        }
        for key in self.touched:
            fresh.pop(key, None)
            if key in self.cached:
                fresh[key] = self.cached[key]
        self.touched.clear()
        self.cached = fresh

    def plan(self, want: Table, *, whole: bool, removable: Callable[[str], bool]) -> tuple[Op, ...]:
        """The operations that make the cached table the wanted one.

        `whole`: `want` is the whole table, not only some services of it. `removable` says whether a
        server of that libvirt URI may be removed yet.
        """
        have = Table(entries=self.cached if whole else self._part(want))
        owned = self._owned(want, whole=whole, removable=removable)
        return diff(want, have, replace(owned, idle=self._idle(want)))

    def _idle(self, want: Table) -> frozenset[tuple[ServiceKey, ServerKey]]:
        """Of the servers that are leaving, those that have weight 0 and had no connection when the
        table was last read. A connection whose handshake is under way is an inactive one."""
        found = set()
        self.leaving &= self.cached.keys()  # a service that has gone has none
        for key, entry in want.entries.items():
            self.leaving.discard(key)
            for server in entry.leaving:
                there = self.cached[key].servers.get(server) if key in self.cached else None
                if there is None:
                    continue
                self.leaving.add(key)
                counts = self.counted.get(key, {}).get(server)
                if there.weight > 0 or counts is None:
                    continue
                if counts.active_connections + counts.inactive_connections == 0:
                    found.add((key, server))
        return frozenset(found)

    def _part(self, want: Table) -> dict[ServiceKey, Entry]:
        return {key: self.cached[key] for key in want.entries if key in self.cached}

    def _owned(self, want: Table, *, whole: bool, removable: Callable[[str], bool]) -> Owned:
        if not whole:
            places = (
                (key, server)
                for key, entry in self._part(want).items()
                for server in entry.servers
                if (key, server) in self.servers
            )
            return Owned(servers={place for place in places if removable(self.servers[place])})
        kept = {uri for uri in set(self.servers.values()) if not removable(uri)}
        servers = self.servers.keys()  # ten thousand need not be copied for nothing
        return Owned(
            services=self.services,
            servers={place for place in servers if self.servers[place] not in kept}
            if kept
            else servers,
        )

    def claim(self, want: Table, origin: Mapping[tuple[ServiceKey, ServerKey], str]) -> bool:
        """Makes what is wanted ours, before the kernel hears of it; has anything become ours?"""
        grown = False
        for key, entry in want.entries.items():
            if key not in self.services:
                self.services.add(key)
                grown = True
            for server in entry.servers:
                place = (key, server)
                uri = origin.get(place, "") if origin else ""
                if self.servers.get(place) != uri:
                    self.servers[place] = uri
                    grown = True
        return grown

    def release(self, want: Table) -> bool:
        """Forgets what is neither wanted nor in the table any more; was there anything?"""
        nothing: Mapping[ServerKey, Server] = {}
        gone: list[tuple[ServiceKey, ServerKey]] = []
        last: ServiceKey | None = None
        there = wanted = None
        for place in self.servers:
            key, server = place
            if key is not last:  # neighbours are of one service
                last, there, wanted = key, self.cached.get(key), want.entries.get(key)
            if server not in (there.servers if there else nothing) and server not in (
                wanted.servers if wanted else nothing
            ):
                gone.append(place)
        for place in gone:
            del self.servers[place]
        empty = [k for k in self.services if k not in self.cached and k not in want.entries]
        self.services.difference_update(empty)
        return bool(gone or empty)

    def due(self, ops: Sequence[Op], now: float) -> tuple[Op, ...]:
        """The operations, except those refused before whose retry is not due."""
        return tuple(op for op in ops if self._is_due(op, now)) if self.failures else tuple(ops)

    def record(self, ops: Sequence[Op], failed: Sequence[OpFailed], now: float) -> tuple[Op, ...]:
        """Record that these operations were given to the kernel, and return those it took."""
        refused = {failure.op for failure in failed}
        done = tuple(op for op in ops if op not in refused) if failed else tuple(ops)
        for key in {entry_key(op)[0] for op in ops}:
            self.touched.add(key)
            self.counted.pop(key, None)  # counted before
        for failure in failed:
            self._fail(failure, now)
        if self.failures:
            for op in done:
                self.failures.pop(entry_key(op), None)
        self._cache(done)
        return done

    def take_over(self, keys: Iterable[ServiceKey]) -> None:
        """Makes every server of these services ours, so that one that is not wanted is removed."""
        for key in keys:
            if (entry := self.cached.get(key)) is not None:
                self.services.add(key)
                for server in entry.servers:
                    self.servers.setdefault((key, server), "")

    def _is_due(self, op: Op, now: float) -> bool:
        key, server = entry_key(op)
        waits = [self.failures.get((key, None)), self.failures.get((key, server))]
        return all(wait is None or wait.retry_at <= now for wait in waits)

    def _fail(self, failed: OpFailed, now: float) -> None:
        place = entry_key(failed.op)
        before = self.failures.get(place)
        attempts = 1 if before is None else before.attempts + 1
        self.failures[place] = FailedOperation(
            op=failed.op,
            errno=failed.errno,
            since=now if before is None else before.since,
            attempts=attempts,
            retry_at=now + min(RETRY_LAST, RETRY_FIRST * 2 ** (attempts - 1)),
        )

    def forgive(self, planned: Sequence[Op]) -> None:
        """Forgets failures of places that need no change any more; `planned`: a whole plan."""
        places = {entry_key(op) for op in planned}
        self.failures = {place: f for place, f in self.failures.items() if place in places}

    def failure_of(self, op: Op) -> FailedOperation | None:
        return self.failures.get(entry_key(op))

    def retry_at(self) -> float | None:
        return min((failure.retry_at for failure in self.failures.values()), default=None)

    def foreign(self, want: Table) -> Foreign:
        """What is in the table and not ours."""
        owned = Owned(services=self.services, servers=self.servers.keys())
        return find_foreign(want, Table(entries=self.cached), owned)

    def _cache(self, done: Sequence[Op]) -> None:
        # Entries are never changed, for others may hold them; one is copied once for all its
        # operations, or a service of thousands of servers would be copied as often.
        copies: dict[ServiceKey, dict[ServerKey, Server]] = {}
        for op in done:
            key = entry_key(op)[0]
            if isinstance(op, DeleteService):
                self.cached.pop(key, None)
                copies.pop(key, None)
                continue
            servers = copies.get(key)
            entry = self.cached.get(key)
            if servers is None:
                servers = copies[key] = {} if entry is None else dict(entry.servers)
                if entry is not None:
                    self.cached[key] = Entry(service=entry.service, servers=servers)
            match op:
                case AddService(service=service) | SetService(service=service):
                    self.cached[key] = Entry(service=service, servers=servers)
                case AddServer(server=server) | SetServer(server=server):
                    servers[server.key] = server
                case DeleteServer(key=server_key):
                    servers.pop(server_key, None)


def contradicts_cache(failed: Sequence[OpFailed]) -> bool:
    """Do these failures say that the table is another than we cached?"""
    return any(failure.errno in _SURPRISES for failure in failed)
