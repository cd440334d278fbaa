"""What operations on the table mean, in one line for people: services, servers, weights, and the
connections on what goes. For the journal and `reload`, which compare two configurations, and for
`plan`, which compares the kernel's table with the configuration.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

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
from xenlb.ipvs.table import Server, ServerKey, ServiceKey, Table
from xenlb.model.desired import desired
from xenlb.model.drain import Counts
from xenlb.model.settings import ServiceSettings, Settings
from xenlb.model.state import State

MOST = 8  # services that are named
FEW = 3  # servers of a service that are named


@dataclass(slots=True)
class _Service:
    """What happens to one kernel service."""

    gone: bool = False
    new: bool = False
    set: bool = False
    added: list[ServerKey] = field(default_factory=list)
    removed: list[ServerKey] = field(default_factory=list)
    changed: list[tuple[Server | None, Server]] = field(default_factory=list)


def summary(
    ops: Iterable[Op], have: Table, names: Mapping[ServiceKey, str], counts: Counts | None
) -> str:
    """`web (192.0.2.10:80/tcp) removed with 2 servers and 14 connections; mail (…): 1 server added`

    `have`: the table before. `counts` None: its connections are not known. "" without operations.
    """
    services: dict[ServiceKey, _Service] = {}

    def of(key: ServiceKey) -> _Service:
        return services.setdefault(key, _Service())

    for op in ops:
        match op:
            case DeleteService(key=key):
                of(key).gone = True
            case AddService(service=service):
                of(service.key).new = True
            case SetService(service=service):
                of(service.key).set = True
            case AddServer(service=key, server=server):
                of(key).added.append(server.key)
            case DeleteServer(service=key, key=server_key):
                of(key).removed.append(server_key)
            case SetServer(service=key, server=server):
                of(key).changed.append((have.server(key, server.key), server))
    # What goes comes first.
    order = sorted(services, key=lambda key: (not services[key].gone, not services[key].removed))
    said = [_service(key, services[key], have, names, counts) for key in order[:MOST]]
    if len(order) > MOST:
        said.append(f"and {len(order) - MOST} more services")
    return "; ".join(said)


def _service(
    key: ServiceKey,
    it: _Service,
    have: Table,
    names: Mapping[ServiceKey, str],
    counts: Counts | None,
) -> str:
    name = f"{names[key]} ({text.label(key)})" if key in names else text.label(key)
    if it.gone:
        entry = have.entries.get(key)
        servers = () if entry is None else tuple(entry.servers)
        return f"{name} removed with {_number(servers)}{_held(key, servers, counts, ' and')}"
    parts = []
    if it.removed:
        held = _held(key, it.removed, counts, " with")
        parts.append(f"{_number(it.removed)} removed{_named(it.removed)}{held}")
    if it.added:
        parts.append(f"{_number(it.added)} added{_named(it.added)}")
    if it.changed:
        parts.append(_changes(it.changed))
    if it.set:
        parts.append("scheduler or options changed")
    head = f"{name} added" if it.new else name
    return f"{head}: {', '.join(parts)}" if parts else head


def _number(servers: Iterable[ServerKey]) -> str:
    number = len(tuple(servers))
    return f"{number} server{'s' * (number != 1)}"


def _named(servers: list[ServerKey]) -> str:
    if len(servers) > FEW:
        return ""
    return f" ({', '.join(text.endpoint(each.address, each.port) for each in servers)})"


def _held(key: ServiceKey, servers: Iterable[ServerKey], counts: Counts | None, word: str) -> str:
    """Their connections, which end with them."""
    if counts is None:
        return ""
    of = counts.get(key, {})
    held = sum(of[server].active_connections for server in servers if server in of)
    return f"{word} {held or 'no'} connection{'s' * (held != 1)}"


def _changes(changed: list[tuple[Server | None, Server]]) -> str:
    weights = [(was, now) for was, now in changed if was is not None and was.weight != now.weight]
    if len(weights) == len(changed) <= FEW:
        said = [
            f"{text.endpoint(now.key.address, now.key.port)} {was.weight} → {now.weight}"
            for was, now in weights
        ]
        return f"weight {', '.join(said)}"
    return f"{_number(now.key for _, now in changed)} changed, {len(weights)} of them in weight"


def names_of(services: Iterable[ServiceSettings]) -> dict[ServiceKey, str]:
    return {key: service.name for service in services for key in service.kernel_keys()}


def of_configuration(
    before: State, after: State, at: float, counts: Counts | None
) -> tuple[str, bool]:
    """What another configuration changes in the table, and in settings that are not in it. And
    does it cut connections?"""
    old, new = before.settings, after.settings
    total = f"{len(new.services)} service{'s' * (len(new.services) != 1)}"
    if old == Settings():
        return total, False
    have = desired(old.services, before, at)
    everything = Owned(
        services=have.entries.keys(),
        servers={(key, server) for key, entry in have.entries.items() for server in entry.servers},
    )
    ops = diff(desired(new.services, after, at), have, everything)
    said = summary(ops, have, names_of((*old.services, *new.services)), counts)
    known = {service.name: service for service in old.services}
    touched = set(map(_key, ops))
    others = [
        service.name
        for service in new.services
        if known.get(service.name) != service and touched.isdisjoint(service.kernel_keys())
    ]
    parts = [said] if said else []
    if others:
        more = f" and {len(others) - MOST} more" if len(others) > MOST else ""
        parts.append(f"settings of {', '.join(others[:MOST])}{more} changed")
    if _differ_elsewhere(old, new) and not parts:
        parts.append("settings changed")
    return f"{'; '.join(parts) or 'no change'} ({total})", _cuts(ops, counts or {})


def _cuts(ops: Iterable[Op], counts: Counts) -> bool:
    return any(
        count.active_connections
        for op in ops
        if isinstance(op, DeleteServer | DeleteService)
        for server, count in counts.get(_key(op), {}).items()
        if isinstance(op, DeleteService) or server == op.key
    )


def _differ_elsewhere(old: Settings, new: Settings) -> bool:
    """Do they differ in anything but their services?"""
    return (old.uris, old.keepalive, old.networks, old.listen, old.director) != (
        new.uris,
        new.keepalive,
        new.networks,
        new.listen,
        new.director,
    )


def _key(op: Op) -> ServiceKey:
    match op:
        case AddService(service=service) | SetService(service=service):
            return service.key
        case DeleteService(key=key):
            return key
        case AddServer(service=key) | SetServer(service=key) | DeleteServer(service=key):
            return key
