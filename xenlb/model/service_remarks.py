"""Facts about a service in `status` besides its servers.

Its sorry server, entries of other tools, guests that no libvirt has, and guests not inspected.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from xenlb.ipvs.op import DeleteServer
from xenlb.ipvs.table import Counters, Entry, Forwarding, ServerKey, ServiceKey
from xenlb.model import inconsistencies
from xenlb.model.alarm import sorry_failure
from xenlb.model.desired import ServerPhase
from xenlb.model.membership import sorry_target
from xenlb.model.settings import ServiceSettings
from xenlb.model.state import Candidate, State


def removal(key: ServiceKey, server: ServerKey) -> str:
    """Return the ipvsadm command that removes a server, for operators."""
    return f"ipvsadm {DeleteServer(service=key, key=server)}"


def foreign(
    key: ServiceKey,
    entry: Entry | None,
    known: Collection[ServerKey],
    counters: Mapping[ServerKey, Counters],
) -> list[dict[str, Any]]:
    """Return the servers of one kernel service that are not `known` to the configuration."""
    if entry is None:
        return []
    return [
        {
            "address": str(server.address),
            "port": server.port,
            "weight": entry.servers[server].weight,
            "active_connections": counters.get(server, Counters()).active_connections,
            "remove": removal(key, server),
        }
        for server in entry.servers
        if server not in known
    ]


def sorry_server(
    state: State,
    service: ServiceSettings,
    key: ServiceKey,
    entry: Entry | None,
    counters: Mapping[ServerKey, Counters],
) -> dict[str, Any] | None:
    """Return the sorry server of one kernel service for `status`, None if it has none."""
    sorry = service.sorry_key(key)
    if sorry is None:
        return None
    server = None if entry is None else entry.servers.get(sorry)
    target = sorry_target(service, key)
    health = None if target is None else state.remembered.health.get(target)
    failure = sorry_failure(state, service, key)
    return {
        "address": str(sorry.address),
        "port": sorry.port,
        "in_table": server is not None,
        "weight": 0 if server is None else server.weight,
        "active_connections": counters.get(sorry, Counters()).active_connections,
        "health": "down" if failure else "up" if health is not None and health.up else "unknown",
        "detail": "" if health is None else health.detail,
    }


def unknown_members(state: State, service: ServiceSettings) -> list[dict[str, Any]]:
    """Return rows for entries of `servers` for which no libvirt has a guest."""
    return [
        {
            "guest": member.guest,
            "uuid": None,
            "uri": None,
            "address": None if member.address is None else str(member.address),
            "port": None,
            "phase": ServerPhase.ABSENT.value,
            "weight": 0,
            "configured_weight": service.weight if member.weight is None else member.weight,
            "in_table": False,
            "active_connections": 0,
            "inactive_connections": 0,
            "persistent_connections": 0,
            "health": "unknown",
            "reason": reason,
            "since": None,
            "deadline": None,
            "deadline_means": None,
            "drain_until": service.drain.until.value,
        }
        for member, reason in inconsistencies.unknown_members(state, service)
    ]


def unverified(
    state: State, service: ServiceSettings, candidates: Iterable[Candidate]
) -> list[str]:
    """Return the servers in the table that may lack the service address inside.

    Gatewaying and tunnels need it, and a check of the server's own address does not notice.
    """
    if service.forwarding not in {Forwarding.GATEWAYING, Forwarding.TUNNEL}:
        return []
    names = []
    for candidate in candidates:
        server, guest = candidate.server, state.guest_of(candidate)
        if server is None or server not in state.remembered.admitted:
            continue
        if any(target.vip is not None for target in candidate.targets):
            continue
        verdicts = () if guest is None else guest.readiness
        if not any(verdict.service == service and not verdict.problem for verdict in verdicts):
            names.append(str(server.key.address) if guest is None else guest.name)
    return names
