"""The operations that lead from the table that is to the table that should be. Pure.

Theory of operation. Every service of `want` is ours. Of what is in `have` and not in `want`, only
what `owned` names is removed: a server that is leaving, when it has no connection; a service, when
no server of another tool would go with it. All the rest is foreign: never touched, told by
`foreign`.

The operations are in phases: add services, set services, add servers, raise weights (and change
anything else of a server), lower weights, remove servers, remove services. So whatever prefix
of them has been done when the agent dies, each service has at least as many servers with a
weight above 0 as it had before, or as it will have after, whichever is less.
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
    """What is recorded as put into the kernel by us; `idle`, servers with weight 0 that have no
    connection left."""

    services: Set[ServiceKey] = frozenset()
    servers: Set[tuple[ServiceKey, ServerKey]] = frozenset()
    idle: Set[tuple[ServiceKey, ServerKey]] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Foreign:
    """What another tool put into the kernel: whole services, and servers in services of ours."""

    services: frozenset[ServiceKey] = frozenset()
    servers: frozenset[tuple[ServiceKey, ServerKey]] = frozenset()


def diff(want: Table, have: Table, owned: Owned) -> tuple[Op, ...]:
    """The operations, in a safe order; none if `have` is as it should be."""
    add_services: list[Op] = []
    set_services: list[Op] = []
    add_servers: list[Op] = []
    raise_weights: list[Op] = []
    lower_weights: list[Op] = []
    remove_servers: list[Op] = []
    remove_services: list[Op] = []
    nothing: Mapping[ServerKey, Server] = {}

    for key, entry in want.entries.items():
        there = have.entries.get(key)
        if there is None:
            add_services.append(AddService(service=entry.service))
        elif not same_service(entry.service, there.service):
            set_services.append(SetService(service=entry.service))
        servers = there.servers if there is not None else nothing
        # The comparison of the whole first: it uses the hashes that the mappings keep.
        if servers == entry.servers:
            continue
        for server_key, server in entry.servers.items():
            there_now = servers.get(server_key)
            if there_now is None:
                add_servers.append(AddServer(service=key, server=server))
            elif there_now is not server and not same_server(server, there_now):
                lower = server.weight < there_now.weight
                change = SetServer(service=key, server=server)
                (lower_weights if lower else raise_weights).append(change)
        for server_key, now in servers.items():
            place = (key, server_key)
            if server_key in entry.servers or place not in owned.servers:
                continue
            if server_key not in entry.leaving or place in owned.idle:
                remove_servers.append(DeleteServer(service=key, key=server_key))
            elif now.weight > 0:
                lower_weights.append(SetServer(service=key, server=replace(now, weight=0)))

    for key, entry in have.entries.items():
        if key in want.entries:
            continue
        ours = [server for server in entry.servers if (key, server) in owned.servers]
        if key in owned.services and len(ours) == len(entry.servers):
            remove_services.append(DeleteService(key=key))
        else:
            remove_servers.extend(DeleteServer(service=key, key=server) for server in ours)

    return (
        *(*add_services, *set_services, *add_servers),
        *(*raise_weights, *lower_weights, *remove_servers, *remove_services),
    )


def foreign(want: Table, have: Table, owned: Owned) -> Foreign:
    """What of `have` is neither wanted nor owned."""
    services: set[ServiceKey] = set()
    servers: set[tuple[ServiceKey, ServerKey]] = set()
    for key, there in have.entries.items():
        entry = want.entries.get(key)
        if entry is None and key not in owned.services:
            services.add(key)
        elif entry is None or entry.servers.keys() != there.servers.keys():
            for server in there.servers:
                if (key, server) not in owned.servers and not (entry and server in entry.servers):
                    servers.add((key, server))
    return Foreign(services=frozenset(services), servers=frozenset(servers))


def same_service(one: Service, other: Service) -> bool:
    """Equal, or different only in what has no effect (the netmask without persistence)."""
    return one == other or _plain_service(one) == _plain_service(other)


def same_server(one: Server, other: Server) -> bool:
    """Equal, or different only in what has no effect, such as the port of an ipip tunnel."""
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
