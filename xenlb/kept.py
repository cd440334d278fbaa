"""The settings of a large configuration that was found right, kept beside the state file.

To read 1,000 services with 10 servers takes YAML and its reader half a second of a slow processor;
`xenlb plan` and `apply`, which begin from nothing each time, need not do that again for a file of
the same bytes. What is kept is the bytes and, as JSON, the settings they gave: on any doubt (whose
the file is, who may write it, which xenlb wrote it, other bytes) it is as if nothing were there.
`xenlb check` and the agent always read the configuration itself.
"""

import json
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import MISSING, fields
from functools import cache
from ipaddress import ip_address, ip_network
from pathlib import Path
from socket import AF_INET, inet_pton
from typing import Any

from xenlb import __version__, checkjson
from xenlb.ipvs import table
from xenlb.ipvs.table import (
    Family,
    Forwarding,
    IPAddress,
    Protocol,
    SchedulerFlags,
    Tunnel,
    TunnelChecksum,
    TunnelType,
)
from xenlb.model.settings import (
    AddressPolicy,
    Director,
    DrainPolicy,
    DrainUntil,
    Member,
    OnFailure,
    Port,
    ServiceSettings,
    Settings,
    SysctlPolicy,
)
from xenlb.model.side import Delivery, GuestSide, Init, OnBoot, ReturnPath, System

SMALLEST = 64 * 1024  # bytes; a smaller file is read as fast by itself
LARGEST = 8 * 1024 * 1024  # the reader's own limit


def load(file: Path, *, beside: Path, keep: bool) -> Settings:
    """The settings of a file, as xenlb.config.load() gives them. Raises ConfigError.

    `beside`: the state file, in whose folder they are looked for and, with `keep`, kept.
    """
    place = beside.with_name("settings.kept")
    try:
        data = file.read_bytes() if SMALLEST <= file.stat().st_size <= LARGEST else b""
    except (OSError, ValueError):
        data = b""  # the reader says what is wrong
    kept = recall(place, data) if data else None
    if kept is not None:
        return kept
    from xenlb import config  # noqa: PLC0415  (loads YAML)

    if not data:
        return config.load(file)
    settings = config.parse(config.decode(data, str(file)), str(file))
    if keep:
        with suppress(OSError):
            remember(place, data, settings)
    return settings


def recall(place: Path, data: bytes) -> Settings | None:
    """What was kept for a configuration of these bytes; None if there is the least doubt of it."""
    try:
        if not _ours(os.stat(place.parent), stat.S_IFDIR):
            return None
        with open(place, "rb", opener=_without_links) as stream:
            if not _ours(os.fstat(stream.fileno()), stat.S_IFREG):
                return None
            head = _head(data)
            if stream.read(len(head)) != head or stream.read(len(data)) != data:
                return None
            return _read(json.loads(stream.read()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def remember(place: Path, data: bytes, settings: Settings) -> None:
    """Keeps the settings that these bytes gave, if nobody else can write there."""
    if not _ours(os.stat(place.parent), stat.S_IFDIR):
        return
    text = json.dumps(_written(settings), separators=(",", ":"))
    fresh = place.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(fd, "wb") as stream:
        stream.write(_head(data) + data + text.encode())
    os.replace(fresh, place)


def _without_links(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def _ours(found: os.stat_result, kind: int) -> bool:
    """Is it of this kind, and can nobody but this user have written it?"""
    return (
        stat.S_IFMT(found.st_mode) == kind
        and found.st_uid == os.geteuid()
        and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    )


@cache
def _program() -> str:
    """Which xenlb this is: what is kept by another is of no use."""
    here = Path(__file__).parent
    found = [
        here / "kept.py",
        here / "checkjson.py",
        here / "model/checks.py",
        here / "model/settings.py",
        here / "model/side.py",
        *(here / "config").glob("*.py"),
    ]
    stats = sorted((path.name, path.stat()) for path in found)
    return " ".join(
        [__version__, *(f"{s.st_size}:{s.st_mtime_ns}:{s.st_ctime_ns}" for _, s in stats)]
    )


def _head(data: bytes) -> bytes:
    return f"xenlb {_program()} {len(data)}\n".encode()


# ---- settings as JSON: fields that are not the default ----

Writer = Callable[[Any], Any]


def _plain(value: Any) -> Any:
    return value


def _member(member: Member) -> Any:
    if member.host is not None and member.weight is None:
        return str(member.host)
    host, address = member.host and str(member.host), member.address and str(member.address)
    side = member.side and _side(member.side)
    network = member.network and str(member.network)
    return [member.guest, host, address, member.weight, side, network]


def _read_member(item: Any) -> Member:
    if isinstance(item, str):
        return Member(host=_address(item))
    guest, host, address, weight, side, network = item
    return Member(
        guest=guest,
        host=host and _address(host),
        address=address and _address(address),
        weight=weight,
        side=side and _read_side(side),
        network=network and ip_network(network),
    )


def _side(side: GuestSide) -> Any:
    return [
        [str(each) for each in value] if isinstance(value, tuple) else value
        for value in (getattr(side, name) for name in _names(GuestSide))
    ]


def _read_side(item: Any) -> GuestSide:
    kept = dict(zip(_names(GuestSide), item, strict=True))
    for name, read in _SIDE_READERS.items():
        kept[name] = kept[name] and read(kept[name])
    for name in ("gateways", "addresses"):
        kept[name] = tuple(_address(text) for text in kept[name])
    return GuestSide(**kept)


_SIDE_READERS: dict[str, Writer] = {
    "delivery": Delivery,
    "on_boot": OnBoot,
    "system": System,
    "init": Init,
    "return_path": ReturnPath,
}


def _address(text: str) -> IPAddress:
    try:  # a tenth of the time that ipaddress takes
        return table.address(inet_pton(AF_INET, text))
    except OSError:
        return ip_address(text)


# Of each field: how it is written, how it is read.
_SERVICE: dict[str, tuple[Writer, Writer]] = {
    "name": (_plain, _plain),
    "address": (str, _address),
    "fwmark": (_plain, _plain),
    "family": (_plain, Family),
    "ports": (
        lambda ports: [[port.number, port.protocol] for port in ports],
        lambda ports: tuple(Port(number=n, protocol=Protocol(p)) for n, p in ports),
    ),
    "scheduler": (_plain, _plain),
    "flags": (int, SchedulerFlags),
    "one_packet": (_plain, _plain),
    "persistence": (_plain, _plain),
    "prefix": (_plain, _plain),
    "forwarding": (_plain, Forwarding),
    "tunnel": (
        lambda tunnel: [tunnel.type, tunnel.port, tunnel.checksum],
        lambda item: Tunnel(
            type=TunnelType(item[0]), port=item[1], checksum=TunnelChecksum(item[2])
        ),
    ),
    "server_port": (_plain, _plain),
    "weight": (_plain, _plain),
    "upper_threshold": (_plain, _plain),
    "lower_threshold": (_plain, _plain),
    "checks": (
        lambda checks: [checkjson.write(check) for check in checks],
        lambda items: tuple(checkjson.read(item) for item in items),
    ),
    "any_check": (_plain, _plain),
    "flush": (_plain, _plain),
    "on_failure": (_plain, OnFailure),
    "keep_in_service": (_plain, float),
    "slow_start": (_plain, float),
    "sorry_server": (
        lambda pair: [str(pair[0]), pair[1]],
        lambda pair: (_address(pair[0]), pair[1]),
    ),
    "drain": (
        lambda drain: [drain.timeout, drain.until, drain.udp, drain.shutdown_grace],
        lambda item: DrainPolicy(
            timeout=item[0], until=DrainUntil(item[1]), udp=item[2], shutdown_grace=item[3]
        ),
    ),
    "servers": (
        lambda members: [_member(member) for member in members],
        lambda items: tuple(_read_member(item) for item in items),
    ),
    "from_metadata": (_plain, _plain),
    "side": (_side, _read_side),
}


def _names(kind: type[Any]) -> list[str]:
    return [field.name for field in fields(kind)]


@cache
def _defaults() -> dict[str, Any]:
    return {
        field.name: field.default if field.default_factory is MISSING else field.default_factory()
        for field in fields(ServiceSettings)
    }


def _written(settings: Settings) -> dict[str, Any]:
    defaults = _defaults()
    services = [
        {
            name: _SERVICE[name][0](value)
            for name, default in defaults.items()
            if (value := getattr(service, name)) is not default and value != default
        }
        for service in settings.services
    ]
    director = settings.director
    return {
        "uris": settings.uris,
        "keepalive": settings.keepalive,
        "networks": [str(network) for network in settings.networks],
        "listen": settings.listen and [str(settings.listen[0]), settings.listen[1]],
        "director": [director.interface, director.addresses, director.sysctls],
        "services": services,
    }


def _read(kept: dict[str, Any]) -> Settings:
    readers = {name: reader for name, (_, reader) in _SERVICE.items()}
    interface, addresses, sysctls = kept["director"]
    listen = kept["listen"]
    return Settings(
        uris=tuple(kept["uris"]),
        keepalive=kept["keepalive"],
        networks=tuple(ip_network(text) for text in kept["networks"]),
        listen=listen and (_address(listen[0]), listen[1]),
        director=Director(
            interface=interface,
            addresses=AddressPolicy(addresses),
            sysctls=SysctlPolicy(sysctls),
        ),
        services=tuple(
            ServiceSettings(**{name: readers[name](value) for name, value in item.items()})
            for item in kept["services"]
        ),
    )
