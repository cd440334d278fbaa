"""The answers of `status` and `why`, as JSON values.

Scripts rely on the keys: they are added, never renamed or removed. `wall` converts times of the
boot-time clock to ISO 8601 in UTC.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from xenlb.ipvs import text
from xenlb.ipvs.table import AddressKey, Counters, MarkKey, ServerKey, ServiceKey, Table
from xenlb.model import alarm, inconsistencies, service_remarks
from xenlb.model.desired import ServerPhase, ServerStatus, server_status
from xenlb.model.domain import GuestId
from xenlb.model.drain import Drain
from xenlb.model.guest import Guest, Phase
from xenlb.model.health import Health
from xenlb.model.membership import owner_name, services_of
from xenlb.model.settings import Member, ServiceSettings
from xenlb.model.state import Candidate, State
from xenlb.model.target import Target

BATCH = 64  # servers

Wall = Callable[[float], str]
Failures = Mapping[tuple[ServiceKey, ServerKey | None], str]


def services(
    state: State,
    table: Table,
    counters: Mapping[ServiceKey, Mapping[ServerKey, Counters]],
    *,
    failures: Failures,
    now: float,
    wall: Wall,
    only: str | None = None,
    of: GuestId | None = None,
) -> Iterator[dict[str, Any] | None]:
    """The `services` of `status --json`; at each None, other work may run.

    `only`: the name of a single service. `table`: the kernel's. `of`: include only the servers of
    this guest, each with all its checks.
    """
    for service in state.settings.services:
        if only is not None and service.name != only:
            continue
        for key in service.kernel_keys():
            candidates = [
                candidate
                for candidate in state.derived.candidates[service.name]
                if candidate.service == key
            ]
            servers = []
            for n, candidate in enumerate(candidates):
                if n % BATCH == BATCH - 1:
                    yield None
                if of is not None and candidate.owner != of:
                    continue
                server = _server(
                    candidate,
                    server_status(candidate, service, state, now),
                    state,
                    service=service,
                    table=table,
                    counters=counters.get(key, {}),
                    failures=failures,
                    wall=wall,
                )
                if of is not None:
                    server |= _checks(candidate, state, now=now, wall=wall)
                servers.append(server)
            if of is None:
                servers += service_remarks.unknown_members(state, service)
            known = {
                candidate.server.key for candidate in candidates if candidate.server is not None
            }
            if (sorry := service.sorry_key(key)) is not None:
                known.add(sorry)
            entry = table.entries.get(key)
            foreign = service_remarks.foreign(key, entry, known, counters.get(key, {}))
            yield {
                "name": service.name,
                **_key(key),
                "scheduler": service.scheduler,
                "forwarding": service.forwarding.value,
                "in_table": entry is not None,
                "reason": failures.get((key, None), ""),
                **_alarm(state, service, key, now=now, wall=wall),
                "foreign_servers": len(foreign),
                "foreign": foreign,
                "sorry_server": service_remarks.sorry_server(
                    state, service, key, entry, counters.get(key, {})
                ),
                "unverified": service_remarks.unverified(state, service, candidates),
                "servers": servers,
            }
            yield None


def _alarm(
    state: State, service: ServiceSettings, key: ServiceKey, *, now: float, wall: Wall
) -> dict[str, Any]:
    current = state.remembered.alarms.get(key)
    if current is None:
        return {"alarm": None, "alarm_kind": None, "alarm_since": None}
    return {
        "alarm": alarm.alarm_text(state, service, key, now),
        "alarm_kind": current.kind.value,
        "alarm_since": wall(current.since),
    }


def alarms(state: State, *, now: float, wall: Wall) -> list[dict[str, Any]]:
    """The alarms of all services, for the header of `status`."""
    return [
        {
            "service": service.name,
            "address": text.label(key),
            "kind": current.kind.value,
            "text": alarm.alarm_text(state, service, key, now),
            "since": wall(current.since),
        }
        for service in state.settings.services
        for key in service.kernel_keys()
        if (current := state.remembered.alarms.get(key)) is not None
    ]


def _key(key: ServiceKey) -> dict[str, Any]:
    match key:
        case AddressKey(protocol=protocol, address=address, port=port):
            return {
                "address": str(address),
                "port": port,
                "protocol": protocol.value,
                "fwmark": None,
            }
        case MarkKey(family=family, mark=mark):
            return {
                "address": None,
                "port": None,
                "protocol": None,
                "fwmark": mark,
                "family": family.value,
            }


def _server(
    candidate: Candidate,
    status: ServerStatus,
    state: State,
    *,
    service: ServiceSettings,
    table: Table,
    counters: Mapping[ServerKey, Counters],
    failures: Failures,
    wall: Wall,
) -> dict[str, Any]:
    guest = None if candidate.owner is None else state.guests[candidate.owner]
    server = candidate.server
    entry = None if server is None else table.server(server.service, server.key)
    count = (None if server is None else counters.get(server.key)) or Counters()
    failure = None if server is None else failures.get((server.service, server.key))
    return {
        "guest": None if guest is None else guest.name,
        "uuid": None if guest is None else str(guest.id.uuid),
        "uri": None if guest is None else guest.id.uri,
        "address": None if server is None else str(server.key.address),
        "port": None if server is None else server.key.port,
        "phase": status.phase.value,
        "weight": 0 if entry is None else entry.weight,
        "configured_weight": candidate.weight,
        "in_table": entry is not None,
        "active_connections": count.active_connections,
        "inactive_connections": count.inactive_connections,
        "persistent_connections": count.persistent_connections,
        "health": _health(candidate, service, state),
        "reason": failure or status.reason,
        "since": wall(status.since) if status.since else None,
        "deadline": None if status.deadline is None else wall(status.deadline),
        "deadline_means": None if status.deadline is None else status.then,
        "drain_until": service.drain.until.value,
    }


def _health(candidate: Candidate, service: ServiceSettings, state: State) -> str:
    health = state.verdict(candidate, service)
    return "unknown" if health is None else _health_word(health)


def _health_word(health: Health) -> str:
    if health.up is None or health.assumed:
        return "unknown"
    return "up" if health.up else "down"


def _checks(candidate: Candidate, state: State, *, now: float, wall: Wall) -> dict[str, Any]:
    """The state and the last result of each check of a server."""
    known = [
        (target, state.check_verdict(target, candidate))
        for target in candidate.targets
        if target in state.remembered.health
    ]
    return {"checks": [_check(target, health, now=now, wall=wall) for target, health in known]}


def _check(target: Target, health: Health, *, now: float, wall: Wall) -> dict[str, Any]:
    """The state of one check; `deadline`: when flap damping ends."""
    return {
        "check": str(target),
        "type": target.check.type,
        "health": _health_word(health),
        "since": None if health.up is None else wall(health.since),
        "detail": health.detail,
        "share": health.share,
        "failures": health.failures,
        "deadline": wall(health.held_until) if health.damped(now) else None,
        "changes": [
            {
                "at": wall(change.at),
                "health": "up" if change.up else "down",
                "detail": change.detail,
            }
            for change in health.changes
        ],
    }


def serves(state: State, guest: Guest, now: float) -> bool:
    """Whether the guest serves in all its services."""
    phases = {
        server_status(candidate, service, state, now).phase
        for service in services_of(state, guest)
        for candidate in state.derived.candidates[service.name]
        if candidate.owner == guest.id
    }
    return phases <= {ServerPhase.SERVING} and guest.phase is Phase.UP


def guests_named(state: State, name: str) -> tuple[Guest, ...]:
    """The guests with the name or UUID that an operator typed."""
    member = Member(guest=name)
    return tuple(
        guest for guest in state.guests.values() if member.names(guest.name, str(guest.id.uuid))
    )


def guest(state: State, guest_id: GuestId, *, wall: Wall) -> dict[str, Any]:
    """The answer of `why` about a guest itself, without its servers and events."""
    guest = state.guests[guest_id]
    others = {
        candidate.address: owner_name(state.derived.owners[candidate.address], state)
        for candidate in guest.candidates
        if state.derived.owners.get(candidate.address, guest.id) != guest.id
    }
    return {
        "guest": guest.name,
        "uuid": str(guest.id.uuid),
        "uri": guest.id.uri,
        "phase": guest.phase.value,
        "since": wall(guest.since) if guest.since else None,
        "domain_id": guest.incarnation,
        "request": None
        if guest.request is None
        else {
            "asked_for": guest.request.kind.value,
            "at": wall(guest.request.at),
            "until": wall(guest.request.deadline),
        },
        "drain": None if guest.drain is None else _drain(guest.drain, wall),
        "last_drain": None if guest.last_drain is None else _drain(guest.last_drain, wall),
        "addresses": [
            {"address": str(candidate.address), "source": candidate.source.value}
            for candidate in guest.candidates
            if candidate.address not in others
        ],
        "refused_addresses": [
            {"address": rejected.text, "source": rejected.source.value, "reason": rejected.reason}
            for rejected in guest.rejected
        ]
        + [
            {
                "address": str(candidate.address),
                "source": candidate.source.value,
                "reason": f"it belongs to {others[candidate.address]}",
            }
            for candidate in guest.candidates
            if candidate.address in others
        ],
        "metadata_problems": [
            *guest.metadata_problems,
            *inconsistencies.metadata_findings(state, guest),
        ],
        "inside": [
            {"service": readiness.service.name, "problem": readiness.problem or None}
            for readiness in guest.readiness
        ],
        "services": [service.name for service in services_of(state, guest)],
    }


def _drain(drain: Drain, wall: Wall) -> dict[str, Any]:
    return {
        "id": f"{drain.since:.6f}",  # times in ISO 8601 may differ by a millisecond
        "reason": drain.reason,
        "by": drain.by,
        "since": wall(drain.since),
        "deadline": None if drain.deadline is None else wall(drain.deadline),
        "then": None if drain.then is None else drain.then.value,
        "asked": drain.asked,
        "failure": drain.failure or None,
        "connections_left": drain.left,
        "over": None if drain.over is None else wall(drain.over),
        "outcome": None if drain.outcome is None else drain.outcome.value,
        "end": None if drain.end is None else drain.end.value,
        "warnings": list(drain.warnings),
    }
