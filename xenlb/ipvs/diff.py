"""The operations that turn the kernel's table into the wanted one. Pure.

Of what is in the kernel and not wanted, only what `owned` names is removed: a leaving server once
it has no connections; a service unless it has a server of another tool. Everything else is foreign
and never changed.

The operations come in phases: add services, set services, add servers, raise weights (and change
anything else of a server), lower weights, remove servers, remove services. If the agent dies in
between, each service has at least as many servers with a weight above 0 as before or after the
change, whichever is less.
"""

from collections.abc import Mapping, Set
from dataclasses import dataclass, replace

from xenlb.ipvs.op import (
    AddServer,
    AddService,
    DeleteServer,
    DeleteService,
    Op,
    SetServer,
    SetService,
)
from xenlb.ipvs.table import (
    Forwarding,
    Server,
    ServerKey,
    Service,
    ServiceKey,
    Table,
    Tunnel,
    TunnelType,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Owned:
    """What xenlb has put into the kernel; `idle`: servers with weight 0 and no connections."""

    services: Set[ServiceKey] = frozenset()
    servers: Set[tuple[ServiceKey, ServerKey]] = frozenset()
    idle: Set[tuple[ServiceKey, ServerKey]] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Foreign:
    """What another tool put into the kernel: services, and servers in services of xenlb."""

    services: frozenset[ServiceKey] = frozenset()
    servers: frozenset[tuple[ServiceKey, ServerKey]] = frozenset()


def diff(want: Table, have: Table, owned: Owned) -> tuple[Op, ...]:
    """The operations from `have` to `want` in a safe order; none if the tables agree."""
    add_services: list[Op] = []
    set_services: list[Op] = []
    add_servers: list[Op] = []
    raise_weights: list[Op] = []
    lower_weights: list[Op] = []
    remove_servers: list[Op] = []
    remove_services: list[Op] = []
    nothing: Mapping[ServerKey, Server] = {}

    for key, entry in want.entries.items():
        current = have.entries.get(key)
        if current is None:
            add_services.append(AddService(service=entry.service))
        elif not same_service(entry.service, current.service):
            set_services.append(SetService(service=entry.service))
        servers = current.servers if current is not None else nothing
        # Compare the whole mappings first: they have their keys' hashes.
        if servers == entry.servers:
            continue
        for server_key, server in entry.servers.items():
            current_server = servers.get(server_key)
            if current_server is None:
                add_servers.append(AddServer(service=key, server=server))
            elif current_server is not server and not same_server(server, current_server):
                lower = server.weight < current_server.weight
                change = SetServer(service=key, server=server)
                (lower_weights if lower else raise_weights).append(change)
        for server_key, current_server in servers.items():
            slot = (key, server_key)
            if server_key in entry.servers or slot not in owned.servers:
                continue
            if server_key not in entry.leaving or slot in owned.idle:
                remove_servers.append(DeleteServer(service=key, key=server_key))
            elif current_server.weight > 0:
                lower_weights.append(
                    SetServer(service=key, server=replace(current_server, weight=0))
                )

    for key, entry in have.entries.items():
        if key in want.entries:
            continue
        own = [server for server in entry.servers if (key, server) in owned.servers]
        if key in owned.services and len(own) == len(entry.servers):
            remove_services.append(DeleteService(key=key))
        else:
            remove_servers.extend(DeleteServer(service=key, key=server) for server in own)

    return (
        *(*add_services, *set_services, *add_servers),
        *(*raise_weights, *lower_weights, *remove_servers, *remove_services),
    )


def find_foreign(want: Table, have: Table, owned: Owned) -> Foreign:
    """What is in `have` and neither wanted nor owned."""
    services: set[ServiceKey] = set()
    servers: set[tuple[ServiceKey, ServerKey]] = set()
    for key, current in have.entries.items():
        entry = want.entries.get(key)
        if entry is None and key not in owned.services:
            services.add(key)
        elif entry is None or entry.servers.keys() != current.servers.keys():
            for server in current.servers:
                if (key, server) not in owned.servers and not (entry and server in entry.servers):
                    servers.add((key, server))
    return Foreign(services=frozenset(services), servers=frozenset(servers))


def same_service(one: Service, other: Service) -> bool:
    """Whether the services differ at most in what has no effect (netmask without persistence)."""
    return one == other or _plain_service(one) == _plain_service(other)


def same_server(one: Server, other: Server) -> bool:
    """Whether the servers differ at most in what has no effect (port of an ipip tunnel)."""
    return one == other or _plain_server(one) == _plain_server(other)


def _plain_service(service: Service) -> Service:
    if service.persistence is None:
        return replace(service, prefix=service.key.family.bits)
    return service


def _plain_server(server: Server) -> Server:
    if server.forwarding is not Forwarding.TUNNEL:
        return server if server.tunnel is None else replace(server, tunnel=None)
    tunnel = server.tunnel or Tunnel()
    if tunnel.type is TunnelType.IPIP:
        tunnel = Tunnel()
    elif tunnel.type is TunnelType.GRE:
        tunnel = replace(tunnel, port=0)
    return replace(server, tunnel=tunnel)
