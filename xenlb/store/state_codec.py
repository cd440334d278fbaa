"""What an agent leaves to the next one (saved_state.py) as JSON, and back.

The file it is in, and when it is written, are state_file.py's. What is read is held against the
types that its dataclasses declare (type_check.py), so that no value of another type or size gets
into the state; reading raises an exception of any kind where something else wrote the file.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from ipaddress import ip_address
from itertools import groupby, islice
from socket import AF_INET, inet_pton
from typing import Any
from uuid import UUID

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
from xenlb.model.addresses import AddressCandidate, AddressSource
from xenlb.model.domain import GuestId, MetadataService, RequestKind
from xenlb.model.drain import Drain, Outcome
from xenlb.model.guest import Death, Guest, Phase, Request
from xenlb.model.health import Change, Health
from xenlb.model.state import Admission, Alarm, AlarmKind, Remembered, Slot
from xenlb.model.target import Target
from xenlb.store import check_codec
from xenlb.store.saved_state import SavedState
from xenlb.store.type_check import check_type

SLICE = 64  # entries that are written as JSON at once: half a millisecond of a slow processor


def written(saved: SavedState) -> Iterator[str]:
    """As JSON, in pieces that take no longer than a round of the owner may wait."""
    start = "{"
    for name, (entries, encode) in _parts(saved).items():
        yield f'{start}"{name}":['
        start, comma = "],", ""
        rest = iter(entries)
        while some := list(islice(rest, SLICE)):
            yield comma + dumps(encode(some))[1:-1]
            comma = ","
    yield "]}"


def dumps(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def encode(saved: SavedState) -> dict[str, list[Any]]:
    """As `written`, what is empty left out."""
    parts = ((name, list(entries), encode) for name, (entries, encode) in _parts(saved).items())
    return {name: encode(entries) for name, entries, encode in parts if entries}


Encoder = Callable[[list[Any]], list[Any]]


def _parts(saved: SavedState) -> dict[str, tuple[Iterable[Any], Encoder]]:
    """Of each part of the file: its entries, and how some of them are written."""
    state = saved.remembered
    return {
        "services": (saved.services, lambda some: [_key(key) for key in some]),
        "servers": (saved.servers.items(), _servers),
        "addresses": (
            sorted((name, str(address)) for name, address in saved.addresses),
            lambda some: [list(each) for each in some],
        ),
        "sysctls": (saved.sysctls.items(), lambda some: [list(each) for each in some]),
        "guests": (state.guests.values(), lambda some: [_guest(guest) for guest in some]),
        "admitted": (state.admitted.items(), _admitted),
        # The failing ones, too: keep-in-service may keep them with their weight; and those of
        # which nothing is known: another check than any of these is a new one.
        "verdicts": (state.health.items(), _verdicts),
        "alarms": (
            state.alarms.items(),
            lambda some: [[_key(key), alarm.since, alarm.kind] for key, alarm in some],
        ),
    }


# Neighbours that differ in nothing but their address share a line, here and below.
def _servers(some: list[tuple[tuple[ServiceKey, ServerKey], str]]) -> list[Any]:
    return [
        [_key(key), port, uri, [_address(server) for (_, server), _ in same]]
        for (key, port, uri), same in groupby(
            some, key=lambda item: (item[0][0], item[0][1].port, item[1])
        )
    ]


def _admitted(some: list[tuple[Slot, Admission]]) -> list[Any]:
    return [
        [
            *(_key(key), port, _owner(owner), entry.at, entry.ramp, entry.quiesced),
            _verdicts(entry.overrides.items()),
            [_address(slot.server) for slot, _ in same],
            entry.quiet,
        ]
        for (key, port, owner, entry), same in groupby(
            some,
            key=lambda item: (item[0].service, item[0].server.port, item[0].owner, item[1]),
        )
    ]


def _verdicts(some: Iterable[tuple[Target, Health]]) -> list[Any]:
    return [[*_target(target), *_health(health)] for target, health in some]


def decode(found: dict[str, Any]) -> SavedState:
    """A part that is not there is empty."""
    data: dict[str, Any] = dict.fromkeys(_parts(SavedState()), ()) | found
    guests = [check_type(_read_guest(item), Guest) for item in data["guests"]]
    server = _Servers()
    keys = _Services()
    servers: dict[tuple[ServiceKey, ServerKey], str] = {}
    for key, port, uri, addresses in data["servers"]:
        service = keys[tuple(key)]
        servers.update(((service, server[text, port]), str(uri)) for text in addresses)
    admitted: dict[Slot, Admission] = {}
    for key, port, owner, at, ramp, quiesced, apart, addresses, *since in data["admitted"]:
        service, guest = keys[tuple(key)], _read_owner(owner)
        admission = Admission(
            at=at,
            ramp=ramp,
            quiesced=quiesced,
            quiet=since[0] if since else None,  # older files have none
            overrides=_read_verdicts(apart),
        )
        check_type(admission, Admission)
        check_type(guest, GuestId | None)
        for text in addresses:
            slot = Slot(owner=guest, service=service, server=server[text, port])
            admitted[slot] = admission
    health = _read_verdicts(data["verdicts"])
    alarms = {
        # Version 6 knew one kind.
        keys[tuple(key)]: Alarm(kind=AlarmKind(kind[0] if kind else AlarmKind.KEPT), since=since)
        for key, since, *kind in data["alarms"]
    }
    addresses = frozenset((name, ip_address(text)) for name, text in data["addresses"])
    if not all(re.fullmatch(r"[^\s/]{1,15}", name) for name, _ in addresses):
        raise ValueError("not the name of an interface")
    return SavedState(
        remembered=Remembered(
            guests={g.id: g for g in guests},
            admitted=admitted,
            health=health,
            alarms=check_type(alarms, Mapping[AddressKey | MarkKey, Alarm]),
        ),
        services=frozenset(keys[tuple(key)] for key in data["services"]),
        servers=servers,
        addresses=addresses,
        sysctls={str(name): str(value) for name, value in data["sysctls"]},
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
                port=port,
            )
        case [family, mark]:
            return MarkKey(family=Family(family), mark=mark)
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
        self[item] = key = check_type(_read_key(item), AddressKey | MarkKey)
        return key


class _Servers(dict[tuple[str, int], ServerKey]):
    """By address and port as they stand in the file, where each stands several times."""

    def __missing__(self, item: tuple[str, int]) -> ServerKey:
        text, port = item
        self[item] = key = check_type(ServerKey(address=_read_address(text), port=port), ServerKey)
        return key


def _owner(owner: GuestId | None) -> list[str] | None:
    return None if owner is None else [owner.uri, str(owner.uuid)]


def _read_owner(item: list[str] | None) -> GuestId | None:
    return None if item is None else GuestId(uri=item[0], uuid=UUID(item[1]))


def _read_verdicts(items: list[list[Any]]) -> dict[Target, Health]:
    return {
        check_type(_read_target(check, address, port, via), Target): check_type(
            _read_health(verdict), Health
        )
        for check, address, port, via, *verdict in items
    }


def _target(target: Target) -> list[Any]:
    return [check_codec.write(target.check), str(target.address), target.port, _via(target)]


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
        check=check_codec.read(check),
        address=ip_address(address),
        port=port,
        vip=None if vip is None else ip_address(vip),
        tunnel=None
        if tunnel is None
        else Tunnel(type=TunnelType(tunnel[0]), port=tunnel[1], checksum=TunnelChecksum(tunnel[2])),
    )


def _health(health: Health) -> list[Any]:
    """Without `streak`: results in a row do not reach across a time without any; nor `apart`,
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
        valid_from=valid,
        up=up,
        since=since,
        detail=detail,
        assumed=assumed,
        share=share,
        failures=failures,
        held_until=held,
        changes=tuple(Change(at=at, up=went_up, detail=said) for at, went_up, said in changes),
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
        "request": request and [request.kind.value, request.at, request.deadline],
        "deaths": [[death.incarnation, death.at] for death in guest.deaths],
        "drain": _drain(guest.drain),
        "drained": _drain(guest.last_drain),
        "found": [[str(found.address), found.source.value] for found in guest.candidates],
        "given_up": sorted(str(address) for address in guest.given_up),
        "reserved": sorted(str(address) for address in guest.reserved),
        "reserved_until": guest.reserved_until,
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
        name=item["name"],
        phase=Phase(item["phase"]),
        incarnation=item["incarnation"],
        since=item["since"],
        booted=item["booted"],
        recheck=item["recheck"],
        request=request
        and Request(kind=RequestKind(request[0]), at=request[1], deadline=request[2]),
        deaths=tuple(Death(incarnation=number, at=at) for number, at in item["deaths"]),
        drain=_read_drain(item["drain"]),
        last_drain=_read_drain(item["drained"]),
        candidates=tuple(
            AddressCandidate(address=ip_address(address), source=AddressSource(source))
            for address, source in item["found"]
        ),
        given_up=frozenset(ip_address(text) for text in item.get("given_up", ())),
        reserved=frozenset(ip_address(text) for text in item.get("reserved", ())),
        # What waits without an end would wait for ever.
        reserved_until=item.get("reserved_until", 0.0 if item.get("reserved") else None),
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
            "then": then and RequestKind(then),
            "outcome": outcome and Outcome(outcome),
            "end": end and Outcome(end),
            "warnings": tuple(item["warnings"]),
        }
    )
