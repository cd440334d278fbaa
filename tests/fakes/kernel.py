"""A strict IPVS table in memory: refuses what the kernel refuses, with the same errno.

tests/contract runs one suite against this and against a real kernel. `str()` of it is the lines
that would make the same table, as an operator would type them to ipvsadm.
"""

import errno
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

from xenlb.ipvs.diff import Owned, diff
from xenlb.ipvs.errors import IpvsError
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
    Family,
    Forwarding,
    IPAddress,
    Server,
    ServerKey,
    Service,
    ServiceKey,
    Snapshot,
    Table,
    Tunnel,
    TunnelType,
    family_of,
)

SCHEDULERS = frozenset(
    [
        *("rr", "wrr", "lc", "wlc", "lblc", "lblcr", "dh"),
        *("sh", "sed", "nq", "fo", "ovf", "mh", "none"),
    ]
)
ENGINES = frozenset({"sip"})


class Refused(Exception):
    def __init__(self, number: int) -> None:
        super().__init__(errno.errorcode[number])
        self.errno = number


class FakeKernel:
    """Satisfies xenlb.ipvs.kernel.KernelTable. What tests may do besides:

    `fail`: have the next operations that match refused; `error`: have every call raise;
    `count`: set a server's counters; `do`: change the table as another tool would;
    `done`: every operation that `apply` did, as its ipvsadm line.
    """

    def __init__(
        self,
        table: Table | None = None,
        *,
        schedulers: Collection[str] = SCHEDULERS,
        engines: Collection[str] = ENGINES,
    ) -> None:
        self.schedulers = schedulers
        self.engines = engines
        self.done: list[str] = []
        self.reads = 0
        self.error: IpvsError | None = None
        self._services: dict[ServiceKey, Service] = {}
        self._servers: dict[ServiceKey, dict[ServerKey, Server]] = {}
        self._counters: dict[tuple[ServiceKey, ServerKey], Counters] = {}
        self._failures: list[tuple[str, int, int]] = []
        if table is not None:
            self.do(*diff(table, Table(), Owned()))

    # ---- for tests ----

    def fail(self, line: str, number: int, *, times: int = 1) -> None:
        """Refuse the next `times` operations whose line contains `line`, with errno `number`."""
        self._failures.append((line, number, times))

    def count(self, service: ServiceKey, server: ServerKey, counters: Counters) -> None:
        assert server in self._servers[service]
        self._counters[service, server] = counters

    def do(self, *ops: Op) -> None:
        """Change the table behind the back of whoever uses it; refusals are the test's fault."""
        for op in ops:
            self._do(op)

    def __str__(self) -> str:
        """The table as the operations that make it, one a line; thresholds included."""
        lines = diff(self._table(), Table(), Owned())
        return "".join(f"{op}\n" for op in sorted(lines, key=_service_first))

    # ---- KernelTable ----

    def read(
        self, keys: Collection[ServiceKey] | None = None, *, counters: bool = True
    ) -> Snapshot:
        self._check()
        self.reads += 1
        table = self._table()
        if keys is not None:
            table = Table(entries={k: table.entries[k] for k in keys if k in table.entries})
        if not counters:
            return Snapshot(table=table)
        counted: Mapping[ServiceKey, Mapping[ServerKey, Counters]] = {
            key: {server: self._counters.get((key, server), Counters()) for server in entry.servers}
            for key, entry in table.entries.items()
        }
        return Snapshot(table=table, counters=counted)

    def apply(self, ops: Sequence[Op]) -> tuple[OpFailed, ...]:
        self._check()
        return tuple(self._apply(ops))

    def close(self) -> None:
        pass

    # ---- what the kernel does ----

    def _check(self) -> None:
        if self.error is not None:
            raise self.error

    def _table(self) -> Table:
        return Table(
            entries={
                key: Entry(service=service, servers=dict(self._servers[key]))
                for key, service in self._services.items()
            }
        )

    def _apply(self, ops: Sequence[Op]) -> Iterator[OpFailed]:
        for op in ops:
            try:
                self._inject(op)
                self._do(op)
            except Refused as refused:
                gone = refused.errno in {errno.ESRCH, errno.ENOENT}
                if not (gone and isinstance(op, DeleteService | DeleteServer)):
                    yield OpFailed(op=op, errno=refused.errno)
            else:
                self.done.append(str(op))

    def _inject(self, op: Op) -> None:
        for position, (line, number, times) in enumerate(self._failures):
            if line in str(op):
                if times == 1:
                    del self._failures[position]
                else:
                    self._failures[position] = (line, number, times - 1)
                raise Refused(number)

    def _do(self, op: Op) -> None:
        match op:
            case AddService(service=service):
                if service.key in self._services:
                    raise Refused(errno.EEXIST)
                self._services[service.key] = self._checked_service(service)
                self._servers[service.key] = {}
            case SetService(service=service):
                if service.key not in self._services:
                    raise Refused(errno.ESRCH)
                self._services[service.key] = self._checked_service(service)
            case DeleteService(key=key):
                if key not in self._services:
                    raise Refused(errno.ESRCH)
                del self._services[key]
                for server_key in self._servers.pop(key):
                    self._counters.pop((key, server_key), None)
            case AddServer(service=key, server=server) | SetServer(service=key, server=server):
                servers = self._servers_of(key)
                exists = server.key in servers
                checked = _checked_server(key, server)
                if isinstance(op, AddServer) and exists:
                    raise Refused(errno.EEXIST)
                if isinstance(op, SetServer) and not exists:
                    raise Refused(errno.ENOENT)
                if not exists and not _unicast(server.key.address):
                    raise Refused(errno.EINVAL)
                servers[server.key] = checked
            case DeleteServer(service=key, key=server_key):
                if server_key not in self._servers_of(key):
                    raise Refused(errno.ENOENT)
                del self._servers[key][server_key]
                self._counters.pop((key, server_key), None)

    def _servers_of(self, key: ServiceKey) -> dict[ServerKey, Server]:
        if key not in self._services:
            raise Refused(errno.ESRCH)
        return self._servers[key]

    def _checked_service(self, service: Service) -> Service:
        """The service as it would be read back."""
        if service.scheduler not in self.schedulers:
            raise Refused(errno.ENOENT)
        if service.persistence_engine and service.persistence_engine not in self.engines:
            raise Refused(errno.ENOENT)
        if service.persistence is None:
            return replace(service, prefix=service.key.family.bits)
        if service.key.family is Family.INET6 and not 1 <= service.prefix <= 128:
            raise Refused(errno.EINVAL)
        return service


def _checked_server(key: ServiceKey, server: Server) -> Server:
    """The server as it would be read back."""
    tunnel = None
    if server.forwarding is Forwarding.TUNNEL:
        tunnel = server.tunnel or Tunnel()
    elif family_of(server.key.address) is not key.family:
        raise Refused(errno.EINVAL)
    if server.lower_threshold > server.upper_threshold:
        raise Refused(errno.ERANGE)
    if tunnel is not None:
        if tunnel.type is TunnelType.GUE and not tunnel.port:
            raise Refused(errno.EINVAL)
        if tunnel.type is TunnelType.IPIP:
            tunnel = Tunnel()
        elif tunnel.type is TunnelType.GRE:
            tunnel = replace(tunnel, port=0)
    return replace(server, tunnel=tunnel)


def _unicast(address: IPAddress) -> bool:
    if address.version == 4:
        return not address.is_multicast and 0 < int(address) < 2**32 - 1
    return not (address.is_multicast or address.is_unspecified or address.is_link_local)


def _service_first(op: Op) -> tuple[str, bool]:
    key = op.service.key if isinstance(op, AddService) else op.service  # type: ignore[union-attr]
    return str(key), not isinstance(op, AddService)
