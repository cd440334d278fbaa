"""Plan the operations that lead to the wanted table, and record which entries are owned. PURE.

Between two full reads it uses a cached table: the last read, changed by the operations since. So a
change of one weight does not wait for ten thousand servers to be listed. A full read happens at
start, at every resync and after any failed operation; changes by others are reverted and reported
as drift.
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

# The table differs from the cached one.
_SURPRISES = {errno.EEXIST, errno.ENOENT, errno.ESRCH}

EntryKey = tuple[ServiceKey, ServerKey | None]  # of a server, or of a service


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
        """The error of the kernel in plain words, for messages."""
        return str(explain(OpFailed(op=self.op, errno=self.errno)))


def entry_key(op: Op) -> EntryKey:
    """Return the key of the entry that an operation changes."""
    match op:
        case AddService(service=service) | SetService(service=service):
            return service.key, None
        case DeleteService(key=key):
            return key, None
        case AddServer(service=key, server=server) | SetServer(service=key, server=server):
            return key, server.key
        case DeleteServer(service=key, key=server_key):
            return key, server_key


def repairs(ops: Iterable[Op], cached: Table, read: Table) -> frozenset[Op]:
    """Return the operations on entries that differ between the cached table and the one read."""

    def at(table: Table, op: Op) -> Service | Server | None:
        key, server = entry_key(op)
        entry = table.entries.get(key)
        if entry is None:
            return None
        return entry.service if server is None else entry.servers.get(server)

    return frozenset(op for op in ops if at(cached, op) != at(read, op))


@dataclass(slots=True)
class Reconciler:
    """The table of one kernel.

    `services` and `servers` are owned, and saved before the kernel gets a new one; the value of a
    server is the libvirt URI of its guest, "" for a host. `failures`: refused operations by entry.
    `touched`: services changed since the read under way began. `counted`: counters of the last
    read. `leaving`: services with a server that waits for its last connection, which need counters.
    """

    services: set[ServiceKey] = field(default_factory=set)
    servers: dict[tuple[ServiceKey, ServerKey], str] = field(default_factory=dict)
    failures: dict[EntryKey, FailedOperation] = field(default_factory=dict)
    cached: dict[ServiceKey, Entry] = field(default_factory=dict)
    touched: set[ServiceKey] = field(default_factory=set)
    counted: dict[ServiceKey, Mapping[ServerKey, Counters]] = field(default_factory=dict)
    leaving: set[ServiceKey] = field(default_factory=set)

    def load_snapshot(self, snapshot: Snapshot) -> None:
        """Replace the cached table by a full read, except services in `touched`."""
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
        """Return the operations that turn the cached table into the wanted one.

        `whole`: `want` is the whole table, not only some services of it. `removable`: whether
        servers of that libvirt URI may be removed yet.
        """
        present = Table(entries=self.cached if whole else self._part(want))
        owned = self._owned(want, whole=whole, removable=removable)
        return diff(want, present, replace(owned, idle=self._idle(want)))

    def _idle(self, want: Table) -> frozenset[tuple[ServiceKey, ServerKey]]:
        """Return the leaving servers with weight 0 that had no connection at the last read.

        A connection whose handshake is under way counts as inactive.
        """
        idle = set()
        self.leaving &= self.cached.keys()
        for key, entry in want.entries.items():
            self.leaving.discard(key)
            for server in entry.leaving:
                present = self.cached[key].servers.get(server) if key in self.cached else None
                if present is None:
                    continue
                self.leaving.add(key)
                counts = self.counted.get(key, {}).get(server)
                if present.weight > 0 or counts is None:
                    continue
                if counts.active_connections + counts.inactive_connections == 0:
                    idle.add((key, server))
        return frozenset(idle)

    def _part(self, want: Table) -> dict[ServiceKey, Entry]:
        return {key: self.cached[key] for key in want.entries if key in self.cached}

    def _owned(self, want: Table, *, whole: bool, removable: Callable[[str], bool]) -> Owned:
        if not whole:
            owned = (
                (key, server)
                for key, entry in self._part(want).items()
                for server in entry.servers
                if (key, server) in self.servers
            )
            return Owned(servers={server for server in owned if removable(self.servers[server])})
        kept = {uri for uri in set(self.servers.values()) if not removable(uri)}
        if not kept:  # the usual case: ten thousand servers are not copied
            return Owned(services=self.services, servers=self.servers.keys())
        servers = {server for server, uri in self.servers.items() if uri not in kept}
        return Owned(services=self.services, servers=servers)

    def claim(self, want: Table, origin: Mapping[tuple[ServiceKey, ServerKey], str]) -> bool:
        """Own the wanted entries, before the kernel gets them; return whether any is new."""
        grown = False
        for key, entry in want.entries.items():
            if key not in self.services:
                self.services.add(key)
                grown = True
            for server in entry.servers:
                uri = origin.get((key, server), "") if origin else ""
                if self.servers.get((key, server)) != uri:
                    self.servers[key, server] = uri
                    grown = True
        return grown

    def release(self, want: Table) -> bool:
        """Disown entries neither wanted nor in the table; return whether there was any."""
        nothing: Mapping[ServerKey, Server] = {}
        gone: list[tuple[ServiceKey, ServerKey]] = []
        last: ServiceKey | None = None
        present = wanted = None
        for owned in self.servers:
            key, server = owned
            if key is not last:  # neighbours are of one service
                last, present, wanted = key, self.cached.get(key), want.entries.get(key)
            if server not in (present.servers if present else nothing) and server not in (
                wanted.servers if wanted else nothing
            ):
                gone.append(owned)
        for owned in gone:
            del self.servers[owned]
        empty = [k for k in self.services if k not in self.cached and k not in want.entries]
        self.services.difference_update(empty)
        return bool(gone or empty)

    def due(self, ops: Sequence[Op], now: float) -> tuple[Op, ...]:
        """Return the operations without those refused before whose retry is not due."""
        return tuple(op for op in ops if self._is_due(op, now)) if self.failures else tuple(ops)

    def record(self, ops: Sequence[Op], failed: Sequence[OpFailed], now: float) -> tuple[Op, ...]:
        """Record the kernel's results of these operations; return those that were done."""
        refused = {failure.op for failure in failed}
        done = tuple(op for op in ops if op not in refused) if failed else tuple(ops)
        for key in {entry_key(op)[0] for op in ops}:
            self.touched.add(key)
            self.counted.pop(key, None)  # outdated
        for failure in failed:
            self._fail(failure, now)
        if self.failures:
            for op in done:
                self.failures.pop(entry_key(op), None)
        self._cache(done)
        return done

    def take_over(self, keys: Iterable[ServiceKey]) -> None:
        """Own every server of these services, so that unwanted ones are removed."""
        for key in keys:
            if (entry := self.cached.get(key)) is not None:
                self.services.add(key)
                for server in entry.servers:
                    self.servers.setdefault((key, server), "")

    def _is_due(self, op: Op, now: float) -> bool:
        key, server = entry_key(op)
        failures = (self.failures.get((key, None)), self.failures.get((key, server)))
        return all(failure is None or failure.retry_at <= now for failure in failures)

    def _fail(self, failed: OpFailed, now: float) -> None:
        key = entry_key(failed.op)
        before = self.failures.get(key)
        attempts = 1 if before is None else before.attempts + 1
        self.failures[key] = FailedOperation(
            op=failed.op,
            errno=failed.errno,
            since=now if before is None else before.since,
            attempts=attempts,
            retry_at=now + min(RETRY_LAST, RETRY_FIRST * 2 ** (attempts - 1)),
        )

    def forgive(self, planned: Sequence[Op]) -> None:
        """Drop failures of entries that need no change any more; `planned`: a whole plan."""
        keys = {entry_key(op) for op in planned}
        self.failures = {key: failure for key, failure in self.failures.items() if key in keys}

    def failure_of(self, op: Op) -> FailedOperation | None:
        """Return the failure of the operation's entry, None if no operation on it failed."""
        return self.failures.get(entry_key(op))

    def retry_at(self) -> float | None:
        """Return when the first failed entry may be tried again, None without failures."""
        return min((failure.retry_at for failure in self.failures.values()), default=None)

    def foreign(self, want: Table) -> Foreign:
        """Return the entries of the table that are not owned."""
        owned = Owned(services=self.services, servers=self.servers.keys())
        return find_foreign(want, Table(entries=self.cached), owned)

    def _cache(self, done: Sequence[Op]) -> None:
        # Entries are immutable, as callers may hold them. One is copied once for all its
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
    """Return whether these failures show that the table differs from the cached one."""
    return any(failure.errno in _SURPRISES for failure in failed)
