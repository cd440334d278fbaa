"""What must outlive the agent: /run/xenlb/state.json, written atomically, read at start.

Entries of the table that are ours, guests with their requests and drains, who was let in and which
checks passed; so that a restarted agent goes on where the killed one stopped, without taking one
serving server out. Times are the host's boot-time clock, so the file is void after a reboot of the
host, as the kernel's table is. A file that cannot be read is put aside, never fatal.
"""

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from ipaddress import ip_address
from itertools import groupby
from pathlib import Path
from socket import AF_INET, inet_pton
from typing import Any
from uuid import UUID

from xenlb import checkjson
from xenlb.ipvs import table
from xenlb.ipvs.table import (
    AddressKey,
    Family,
    IPAddress,
    MarkKey,
    Protocol,
    ServerKey,
    ServiceKey,
    Tunnel,
    TunnelChecksum,
    TunnelType,
)
from xenlb.model.drain import Drain, Outcome
from xenlb.model.events import Ask, GuestId, MetadataService, Target
from xenlb.model.found import Found, Source
from xenlb.model.guest import Death, Guest, Phase, Request
from xenlb.model.health import Change, Health
from xenlb.model.state import Admission, Slot, State

log = logging.getLogger(__name__)

VERSION = 6
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """`servers`: ours, with the libvirt URI of their guest. `addresses`: service addresses that we
    put on an interface. `sysctls`: the values before ours."""

    state: State = field(default_factory=State)
    services: frozenset[ServiceKey] = frozenset()
    servers: Mapping[tuple[ServiceKey, ServerKey], str] = field(default_factory=dict)
    addresses: frozenset[tuple[str, IPAddress]] = frozenset()
    sysctls: Mapping[str, str] = field(default_factory=dict)


def load(path: Path) -> Saved:
    """What was saved in this boot of the host; nothing where there is no (readable) file."""
    try:
        data = json.loads(path.read_text())
    except FileNotFoundError:
        return Saved()
    except (OSError, ValueError) as error:
        return _put_aside(path, str(error))
    if not isinstance(data, dict) or data.get("version") != VERSION:
        return _put_aside(path, "it is not of this version")
    if data.get("boot") != _boot_id():
        log.info("%s is of an earlier boot of this host: starting afresh", path)
        return Saved()
    try:
        return _decode(data)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return _put_aside(path, repr(error))


def _put_aside(path: Path, why: str) -> Saved:
    aside = path.with_suffix(".broken")
    log.warning("%s is put aside as %s, starting afresh: %s", path, aside.name, why)
    os.replace(path, aside)
    return Saved()


def save(path: Path, saved: Saved) -> None:
    """Atomic for a reader and for a kill at any point: a new file takes the old one's name."""
    fresh = path.with_suffix(".new")
    text = json.dumps(_encode(saved), separators=(",", ":"))
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "w") as file:
        file.write(text)
    os.replace(fresh, path)  # no fsync: /run is memory, and the file is void after a crash anyway


def _boot_id() -> str:
    return BOOT_ID.read_text().strip()


def _encode(saved: Saved) -> dict[str, Any]:
    state = saved.state
    return {
        "version": VERSION,
        "boot": _boot_id(),
        "services": [_key(key) for key in saved.services],
        # Neighbours that differ in nothing but their address share a line, here and below.
        "servers": [
            [_key(key), port, uri, [_address(server) for (_, server), _ in same]]
            for (key, port, uri), same in groupby(
                saved.servers.items(), key=lambda item: (item[0][0], item[0][1].port, item[1])
            )
        ],
        "addresses": sorted([name, str(address)] for name, address in saved.addresses),
        "sysctls": dict(saved.sysctls),
        "guests": [_guest(guest) for guest in state.guests.values()],
        "admitted": [
            [
                *(_key(key), port, _owner(owner), entry.at, entry.ramp, entry.quiesced),
                [[*_target(target), *_health(own)] for target, own in entry.apart.items()],
                [_address(slot.server) for slot, _ in same],
            ]
            for (key, port, owner, entry), same in groupby(
                state.admitted.items(),
                key=lambda item: (item[0].service, item[0].server.port, item[0].owner, item[1]),
            )
        ],
        # The failing ones, too: keep-in-service may keep them with their weight; and those of
        # which nothing is known: another check than any of these is a new one.
        "verdicts": [
            [*_target(target), *_health(health)] for target, health in state.health.items()
        ],
        "alarms": [[_key(key), since] for key, since in state.alarms.items()],
    }


def _decode(data: dict[str, Any]) -> Saved:
    guests = [_read_guest(item) for item in data["guests"]]
    server = _Servers()
    keys = _Services()
    servers: dict[tuple[ServiceKey, ServerKey], str] = {}
    for key, port, uri, addresses in data["servers"]:
        service = keys[tuple(key)]
        servers.update(((service, server[text, port]), str(uri)) for text in addresses)
    admitted: dict[Slot, Admission] = {}
    for key, port, owner, at, ramp, quiesced, apart, addresses in data["admitted"]:
        service, guest = keys[tuple(key)], _read_owner(owner)
        admission = Admission(
            at=float(at), ramp=bool(ramp), quiesced=bool(quiesced), apart=_read_verdicts(apart)
        )
        for text in addresses:
            slot = Slot(owner=guest, service=service, server=server[text, port])
            admitted[slot] = admission
    health = _read_verdicts(data["verdicts"])
    alarms = {keys[tuple(key)]: float(since) for key, since in data["alarms"]}
    return Saved(
        state=State(
            guests={g.id: g for g in guests}, admitted=admitted, health=health, alarms=alarms
        ),
        services=frozenset(keys[tuple(key)] for key in data["services"]),
        servers=servers,
        addresses=frozenset((str(name), ip_address(text)) for name, text in data["addresses"]),
        sysctls={str(name): str(value) for name, value in data["sysctls"].items()},
    )


def _key(key: ServiceKey) -> list[str | int]:
    match key:
        case AddressKey(protocol=protocol, address=address, port=port):
            return [protocol.value, str(address), port]
        case MarkKey(family=family, mark=mark):
            return [family.value, mark]


def _read_key(item: tuple[Any, ...]) -> ServiceKey:
    match item:
        case [protocol, address, port]:
            return AddressKey(
                protocol=Protocol(protocol),
                address=_read_address(address),
                port=int(port),
            )
        case [family, mark]:
            return MarkKey(family=Family(family), mark=int(mark))
    raise ValueError(f"not a service: {item!r}")


def _read_address(text: str) -> IPAddress:
    try:  # a tenth of the time that ipaddress takes
        return table.address(inet_pton(AF_INET, text))
    except OSError:
        return ip_address(text)


def _address(key: ServerKey) -> str:
    return str(key.address)


class _Services(dict[tuple[str | int, ...], ServiceKey]):
    """By the key as it stands in the file, where each stands several times."""

    def __missing__(self, item: tuple[str | int, ...]) -> ServiceKey:
        self[item] = key = _read_key(item)
        return key


class _Servers(dict[tuple[str, int], ServerKey]):
    """By address and port as they stand in the file, where each stands several times."""

    def __missing__(self, item: tuple[str, int]) -> ServerKey:
        text, port = item
        self[item] = key = ServerKey(address=_read_address(text), port=int(port))
        return key


def _owner(owner: GuestId | None) -> list[str] | None:
    return None if owner is None else [owner.uri, str(owner.uuid)]


def _read_owner(item: list[str] | None) -> GuestId | None:
    return None if item is None else GuestId(uri=item[0], uuid=UUID(item[1]))


def _read_verdicts(items: list[list[Any]]) -> dict[Target, Health]:
    return {
        _read_target(check, address, port, via): _read_health(verdict)
        for check, address, port, via, *verdict in items
    }


def _target(target: Target) -> list[Any]:
    return [checkjson.write(target.check), str(target.address), target.port, _via(target)]


def _via(target: Target) -> list[Any] | None:
    if target.vip is None:
        return None
    tunnel = target.tunnel
    return [
        str(target.vip),
        None if tunnel is None else [tunnel.type, tunnel.port, tunnel.checksum],
    ]


def _read_target(check: Any, address: str, port: int, via: list[Any] | None) -> Target:
    vip, tunnel = via or (None, None)
    return Target(
        check=checkjson.read(check),
        address=ip_address(address),
        port=int(port),
        vip=None if vip is None else ip_address(vip),
        tunnel=None
        if tunnel is None
        else Tunnel(
            type=TunnelType(tunnel[0]), port=int(tunnel[1]), checksum=TunnelChecksum(tunnel[2])
        ),
    )


def _health(health: Health) -> list[Any]:
    """Without `against`: results in a row do not reach across a time without any; nor `apart`,
    which follows from the admissions when the configuration has been read."""
    return [
        health.valid_from,
        health.up,
        health.since,
        health.detail,
        health.assumed,
        health.share,
        health.failures,
        health.held_until,
        [[change.at, change.up, change.detail] for change in health.changes],
    ]


def _read_health(item: list[Any]) -> Health:
    valid, up, since, detail, assumed, share, failures, held, changes = item
    return Health(
        valid_from=float(valid),
        up=None if up is None else bool(up),
        since=float(since),
        detail=str(detail),
        assumed=bool(assumed),
        share=None if share is None else float(share),
        failures=int(failures),
        held_until=float(held),
        changes=tuple(
            Change(at=float(at), up=bool(went_up), detail=str(said))
            for at, went_up, said in changes
        ),
    )


def _guest(guest: Guest) -> dict[str, Any]:
    request = guest.request
    return {
        "id": _owner(guest.id),
        "name": guest.name,
        "phase": guest.phase.value,
        "incarnation": guest.incarnation,
        "since": guest.since,
        "booted": guest.booted,
        "recheck": guest.recheck,
        "request": request and [request.ask.value, request.at, request.deadline],
        "deaths": [[death.incarnation, death.at] for death in guest.deaths],
        "drain": _drain(guest.drain),
        "drained": _drain(guest.drained),
        "found": [[str(found.address), found.source.value] for found in guest.found],
        # A guest that joined by its metadata is a member before libvirt has been asked again.
        "metadata": [
            [entry.name, entry.weight, entry.address and str(entry.address)]
            for entry in guest.metadata
        ],
    }


def _read_guest(item: dict[str, Any]) -> Guest:
    owner = _read_owner(item["id"])
    if owner is None:
        raise ValueError("a guest without identity")
    request = item["request"]
    return Guest(
        id=owner,
        name=str(item["name"]),
        phase=Phase(item["phase"]),
        incarnation=item["incarnation"],
        since=float(item["since"]),
        booted=float(item["booted"]),
        recheck=float(item["recheck"]),
        request=request and Request(ask=Ask(request[0]), at=request[1], deadline=request[2]),
        deaths=tuple(Death(incarnation=number, at=at) for number, at in item["deaths"]),
        drain=_read_drain(item["drain"]),
        drained=_read_drain(item["drained"]),
        found=tuple(
            Found(address=ip_address(address), source=Source(source))
            for address, source in item["found"]
        ),
        metadata=tuple(
            MetadataService(name=name, weight=weight, address=address and ip_address(address))
            for name, weight, address in item["metadata"]
        ),
    )


def _drain(drain: Drain | None) -> dict[str, Any] | None:
    return None if drain is None else asdict(drain)


def _read_drain(item: dict[str, Any] | None) -> Drain | None:
    if item is None:
        return None
    then, outcome, end = item["then"], item["outcome"], item["end"]
    return Drain(
        **{
            **item,
            "then": then and Ask(then),
            "outcome": outcome and Outcome(outcome),
            "end": end and Outcome(end),
            "warnings": tuple(item["warnings"]),
        }
    )
