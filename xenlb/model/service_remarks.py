"""What `status` says of a service besides its servers: sorry server, entries of other
tools, guests that no libvirt has, and guests whose inside is not known."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from xenlb.ipvs import text
from xenlb.ipvs.op import DeleteServer
from xenlb.ipvs.table import Counters, Entry, Forwarding, ServerKey, ServiceKey
from xenlb.model import inconsistencies
from xenlb.model.alarm import sorry_failure
from xenlb.model.desired import ServerPhase
from xenlb.model.membership import sorry_target
from xenlb.model.settings import ServiceSettings
from xenlb.model.state import Candidate, State


def foreign_server(name: str, key: ServiceKey, server: ServerKey) -> str:
    """For the journal."""
    return (
        f"service {name} ({text.label(key)}) has a server of another tool, which is left alone and"
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


def sorry_server(
    state: State,
    service: ServiceSettings,
    key: ServiceKey,
    entry: Entry | None,
    counters: Mapping[ServerKey, Counters],
) -> dict[str, Any] | None:
    sorry = service.sorry_key(key)
    if sorry is None:
        return None
    it = None if entry is None else entry.servers.get(sorry)
    target = sorry_target(service, key)
    health = None if target is None else state.remembered.health.get(target)
    failure = sorry_failure(state, service, key)
    return {
        "address": str(sorry.address),
        "port": sorry.port,
        "in_table": it is not None,
        "weight": 0 if it is None else it.weight,
        "active_connections": counters.get(sorry, Counters()).active_connections,
        "health": "down" if failure else "up" if health is not None and health.up else "unknown",
        "detail": "" if health is None else health.detail,
    }


def unknown_members(state: State, service: ServiceSettings) -> list[dict[str, Any]]:
    """Rows for entries of `servers` that no libvirt has a guest for, once all were listed."""
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
        for member, reason in inconsistencies.unknown(state, service)
    ]


def unverified(
    state: State, service: ServiceSettings, candidates: Iterable[Candidate]
) -> list[str]:
    """The servers in the table of which nothing says that they have the service address inside,
    which gatewaying and tunnels need and a check of their own address does not see."""
    if service.forwarding not in {Forwarding.GATEWAYING, Forwarding.TUNNEL}:
        return []
    found = []
    for candidate in candidates:
        slot = candidate.slot
        if slot is None or slot not in state.remembered.admitted:
            continue
        if any(target.vip is not None for target in candidate.targets):
            continue
        guest = None if candidate.owner is None else state.guests[candidate.owner]
        sides = () if guest is None else guest.readiness
        if not any(each.service == service and not each.problem for each in sides):
            found.append(str(slot.server.address) if guest is None else guest.name)
    return found
