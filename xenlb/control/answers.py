"""What operators are shown: the answers of `status` and `why`, as JSON values.

The shapes are a contract with scripts: keys are added, never renamed or dropped. Times are given
by `wall`, which turns the boot-time clock into ISO 8601 in UTC.
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

PIECE = 64  # servers

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
    """The `services` of `status --json`; at a None others may have their turn. `only` one by name.
    `table` is what the kernel has. `of`: only the servers of this guest, each with all its checks.
    """
    for service in state.settings.services:
        if only is not None and service.name != only:
            continue
        found = state.derived.candidates[service.name]
        for key in service.kernel_keys():
            mine = [candidate for candidate in found if candidate.service == key]
            servers = []
            for n, candidate in enumerate(mine):
                if n % PIECE == PIECE - 1:
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
            known = {candidate.slot.server for candidate in mine if candidate.slot is not None}
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
                "unverified": service_remarks.unverified(state, service, mine),
                "servers": servers,
            }
            yield None


def _alarm(
    state: State, service: ServiceSettings, key: ServiceKey, *, now: float, wall: Wall
) -> dict[str, Any]:
    it = state.remembered.alarms.get(key)
    return {
        "alarm": None if it is None else alarm.alarm_text(state, service, key, now),
        "alarm_kind": None if it is None else it.kind.value,
        "alarm_since": None if it is None else wall(it.since),
    }


def alarms(state: State, *, now: float, wall: Wall) -> list[dict[str, Any]]:
    """Those of all services, for the header of `status`."""
    return [
        {
            "service": service.name,
            "address": text.place(key),
            "kind": it.kind.value,
            "text": alarm.alarm_text(state, service, key, now),
            "since": wall(it.since),
        }
        for service in state.settings.services
        for key in service.kernel_keys()
        if (it := state.remembered.alarms.get(key)) is not None
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
    stands: ServerStatus,
    state: State,
    *,
    service: ServiceSettings,
    table: Table,
    counters: Mapping[ServerKey, Counters],
    failures: Failures,
    wall: Wall,
) -> dict[str, Any]:
    guest = None if candidate.owner is None else state.guests[candidate.owner]
    slot = candidate.slot
    have = None if slot is None else table.server(slot.service, slot.server)
    count = (None if slot is None else counters.get(slot.server)) or Counters()
    failure = None if slot is None else failures.get((slot.service, slot.server))
    return {
        "guest": None if guest is None else guest.name,
        "uuid": None if guest is None else str(guest.id.uuid),
        "uri": None if guest is None else guest.id.uri,
        "address": None if slot is None else str(slot.server.address),
        "port": None if slot is None else slot.server.port,
        "phase": stands.phase.value,
        "weight": 0 if have is None else have.weight,
        "configured_weight": candidate.weight,
        "in_table": have is not None,
        "active_connections": count.active_connections,
        "inactive_connections": count.inactive_connections,
        "persistent_connections": count.persistent_connections,
        "health": _health(candidate, service, state),
        "reason": failure or stands.reason,
        "since": wall(stands.since) if stands.since else None,
        "deadline": None if stands.deadline is None else wall(stands.deadline),
        "deadline_means": None if stands.deadline is None else stands.then,
        "drain_until": service.drain.until.value,
    }


def _health(candidate: Candidate, service: ServiceSettings, state: State) -> str:
    health = state.verdict(candidate, service)
    return "unknown" if health is None else _word(health)


def _word(health: Health) -> str:
    if health.up is None or health.assumed:
        return "unknown"
    return "up" if health.up else "down"


def _checks(candidate: Candidate, state: State, *, now: float, wall: Wall) -> dict[str, Any]:
    """What each check of a server says, and said last."""
    known = [
        (target, state.seen(target, candidate))
        for target in candidate.targets
        if target in state.remembered.health
    ]
    return {"checks": [_check(target, health, now=now, wall=wall) for target, health in known]}


def _check(target: Target, health: Health, *, now: float, wall: Wall) -> dict[str, Any]:
    """`deadline`: it is held back until then."""
    return {
        "check": str(target),
        "type": target.check.type,
        "health": _word(health),
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
    """Does the guest serve wherever it should?"""
    phases = {
        server_status(candidate, service, state, now).phase
        for service in services_of(state, guest)
        for candidate in state.derived.candidates[service.name]
        if candidate.owner == guest.id
    }
    return phases <= {ServerPhase.SERVING} and guest.phase is Phase.UP


def guests_named(state: State, name: str) -> tuple[Guest, ...]:
    """The guests meant by a name or a UUID, as an operator types it."""
    meant = Member(guest=name)
    return tuple(
        guest for guest in state.guests.values() if meant.names(guest.name, str(guest.id.uuid))
    )


def guest(state: State, guest_id: GuestId, *, wall: Wall) -> dict[str, Any]:
    """What `why` says of a guest itself; its servers and its journal stand beside it."""
    it = state.guests[guest_id]
    others = {
        found.address: owner_name(state.derived.owners[found.address], state)
        for found in it.candidates
        if state.derived.owners.get(found.address, it.id) != it.id
    }
    return {
        "guest": it.name,
        "uuid": str(it.id.uuid),
        "uri": it.id.uri,
        "phase": it.phase.value,
        "since": wall(it.since) if it.since else None,
        "domain_id": it.incarnation,
        "request": None
        if it.request is None
        else {
            "asked_for": it.request.kind.value,
            "at": wall(it.request.at),
            "until": wall(it.request.deadline),
        },
        "drain": None if it.drain is None else _drain(it.drain, wall),
        "last_drain": None if it.last_drain is None else _drain(it.last_drain, wall),
        "addresses": [
            {"address": str(found.address), "source": found.source.value}
            for found in it.candidates
            if found.address not in others
        ],
        "refused_addresses": [
            {"address": no.text, "source": no.source.value, "reason": no.reason}
            for no in it.rejected
        ]
        + [
            {
                "address": str(found.address),
                "source": found.source.value,
                "reason": f"it is that of {others[found.address]}",
            }
            for found in it.candidates
            if found.address in others
        ],
        "metadata_problems": [*it.metadata_problems, *inconsistencies.of_metadata(state, it)],
        "inside": [
            {"service": found.service.name, "problem": found.problem or None}
            for found in it.readiness
        ],
        "services": [service.name for service in services_of(state, it)],
    }


def _drain(drain: Drain, wall: Wall) -> dict[str, Any]:
    return {
        "id": f"{drain.since:.6f}",  # times for people may differ by a millisecond each time
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
