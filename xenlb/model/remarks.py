"""What `status` says of a service besides its servers: entries of other tools."""

from collections.abc import Collection, Mapping
from typing import Any

from xenlb.ipvs import text
from xenlb.ipvs.op import DeleteServer
from xenlb.ipvs.table import Counters, Entry, ServerKey, ServiceKey


def foreign_server(name: str, key: ServiceKey, server: ServerKey) -> str:
    """For the journal."""
    return (
        f"service {name} ({text.place(key)}) has a server of another tool, which is left alone and"
        f" gets its share of the connections: {text.endpoint(server.address, server.port)};"
        f" to remove it: {removal(key, server)} (all of them: xenlb apply --take-over {name})"
    )


def removal(key: ServiceKey, server: ServerKey) -> str:
    return f"ipvsadm {DeleteServer(service=key, key=server)}"


def foreign(
    key: ServiceKey,
    entry: Entry | None,
    known: Collection[ServerKey],
    counters: Mapping[ServerKey, Counters],
) -> list[dict[str, Any]]:
    """The servers of one kernel service that are not `known` to the configuration."""
    return [
        {
            "address": str(server.address),
            "port": server.port,
            "weight": it.weight,
            "active_connections": counters.get(server, Counters()).active_connections,
            "remove": removal(key, server),
        }
        for server, it in (() if entry is None else entry.servers.items())
        if server not in known
    ]
