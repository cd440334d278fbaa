"""A one-line summary of operations on the table: services, servers, weights, lost connections.

For `reload`, which compares two configurations, and for `plan`, which compares the kernel's table
with the configuration.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from xenlb.ipvs import text
from xenlb.ipvs.diff import Owned, diff
from xenlb.ipvs.op import (
    AddServer,
    AddService,
    DeleteServer,
    DeleteService,
    Op,
    SetServer,
    SetService,
)
from xenlb.ipvs.reconciler import entry_key
from xenlb.ipvs.table import Server, ServerKey, ServiceKey, Table
from xenlb.model.desired import desired
from xenlb.model.drain import Counts, connections
from xenlb.model.settings import ServiceSettings, Settings
from xenlb.model.state import State

MAX_SERVICES = 8  # that are named
MAX_SERVERS = 3  # of a service that are named


@dataclass(slots=True)
class _ServiceChanges:
    deleted: bool = False
    created: bool = False
    changed: bool = False
    added: list[ServerKey] = field(default_factory=list)
    removed: list[ServerKey] = field(default_factory=list)
    set: list[tuple[Server | None, Server]] = field(default_factory=list)


def summary(
    ops: Iterable[Op], before: Table, names: Mapping[ServiceKey, str], counts: Counts | None
) -> str:
    """Return the changes of each service in words; "" without operations.

    `counts` of the table `before`, None if unknown. The text is like
    `web (192.0.2.10:80/tcp) removed with 2 servers and 14 connections; mail (…): 1 server added`.
    """
    services: dict[ServiceKey, _ServiceChanges] = {}
    for op in ops:
        changes = services.setdefault(entry_key(op)[0], _ServiceChanges())
        match op:
            case DeleteService():
                changes.deleted = True
            case AddService():
                changes.created = True
            case SetService():
                changes.changed = True
            case AddServer(server=server):
                changes.added.append(server.key)
            case DeleteServer(key=server_key):
                changes.removed.append(server_key)
            case SetServer(service=key, server=server):
                changes.set.append((before.server(key, server.key), server))
    # Removals come first.
    order = sorted(services, key=lambda key: (not services[key].deleted, not services[key].removed))
    parts = [_service(key, services[key], before, names, counts) for key in order[:MAX_SERVICES]]
    if len(order) > MAX_SERVICES:
        parts.append(f"and {len(order) - MAX_SERVICES} more services")
    return "; ".join(parts)


def _service(
    key: ServiceKey,
    changes: _ServiceChanges,
    before: Table,
    names: Mapping[ServiceKey, str],
    counts: Counts | None,
) -> str:
    name = f"{names[key]} ({text.label(key)})" if key in names else text.label(key)
    if changes.deleted:
        entry = before.entries.get(key)
        servers = () if entry is None else tuple(entry.servers)
        return f"{name} removed with {_number(servers)}{_cut(key, servers, counts, ' and')}"
    parts = []
    if removed := changes.removed:
        cut = _cut(key, removed, counts, " with")
        parts.append(f"{_number(removed)} removed{_named(removed)}{cut}")
    if changes.added:
        parts.append(f"{_number(changes.added)} added{_named(changes.added)}")
    if changes.set:
        parts.append(_changes(changes.set))
    if changes.changed:
        parts.append("scheduler or options changed")
    head = f"{name} added" if changes.created else name
    return f"{head}: {', '.join(parts)}" if parts else head


def _number(servers: Iterable[ServerKey]) -> str:
    number = len(tuple(servers))
    return f"{number} server{'s' * (number != 1)}"


def _named(servers: list[ServerKey]) -> str:
    if len(servers) > MAX_SERVERS:
        return ""
    return f" ({', '.join(text.endpoint(key.address, key.port) for key in servers)})"


def _cut(key: ServiceKey, servers: Iterable[ServerKey], counts: Counts | None, word: str) -> str:
    """Return the connections of these servers, which end with them."""
    if counts is None:
        return ""
    of_service = counts.get(key, {})
    cut = sum(of_service[server].active_connections for server in servers if server in of_service)
    return f"{word} {connections(cut) if cut else 'no connections'}"


def _changes(servers: list[tuple[Server | None, Server]]) -> str:
    weights = [(old, new) for old, new in servers if old is not None and old.weight != new.weight]
    if len(weights) == len(servers) <= MAX_SERVERS:
        changes = [
            f"{text.endpoint(new.key.address, new.key.port)} {old.weight} → {new.weight}"
            for old, new in weights
        ]
        return f"weight {', '.join(changes)}"
    return f"{_number(new.key for _, new in servers)} changed, {len(weights)} of them in weight"


def names_of(services: Iterable[ServiceSettings]) -> dict[ServiceKey, str]:
    """Return the name of the configured service of each kernel service."""
    return {key: service.name for service in services for key in service.kernel_keys()}


def summarize_configuration(
    before: State, after: State, at: float, counts: Counts | None
) -> tuple[str, bool]:
    """Return what a new configuration changes, and whether it cuts connections."""
    old, new = before.settings, after.settings
    number = f"{len(new.services)} service{'s' * (len(new.services) != 1)}"
    if old == Settings():
        return number, False
    table = desired(old.services, before, at)
    everything = Owned(
        services=table.entries.keys(),
        servers={(key, server) for key, entry in table.entries.items() for server in entry.servers},
    )
    ops = diff(desired(new.services, after, at), table, everything)
    in_table = summary(ops, table, names_of((*old.services, *new.services)), counts)
    known = {service.name: service for service in old.services}
    touched = {entry_key(op)[0] for op in ops}
    others = [
        service.name
        for service in new.services
        if known.get(service.name) != service and touched.isdisjoint(service.kernel_keys())
    ]
    parts = [in_table] if in_table else []
    if others:
        more = f" and {len(others) - MAX_SERVICES} more" if len(others) > MAX_SERVICES else ""
        parts.append(f"settings of {', '.join(others[:MAX_SERVICES])}{more} changed")
    if _differ_elsewhere(old, new) and not parts:
        parts.append("settings changed")
    return f"{'; '.join(parts) or 'no change'} ({number})", _cuts(ops, counts or {})


def _cuts(ops: Iterable[Op], counts: Counts) -> bool:
    return any(
        count.active_connections
        for op in ops
        if isinstance(op, DeleteServer | DeleteService)
        for server, count in counts.get(entry_key(op)[0], {}).items()
        if isinstance(op, DeleteService) or server == op.key
    )


def _differ_elsewhere(old: Settings, new: Settings) -> bool:
    """Return whether they differ in more than their services."""
    return replace(old, services=()) != replace(new, services=())
