"""The warnings of `xenlb check`: settings of a service that are allowed but probably mistakes."""

from collections.abc import Iterator
from fnmatch import fnmatchcase

from xenlb.ipvs.table import Forwarding
from xenlb.model.desired import STAND_IN
from xenlb.model.guest_side import OnBoot
from xenlb.model.settings import Member, ServiceSettings

Advice = tuple[str, str]  # message and hint


def advice(service: ServiceSettings) -> Iterator[Advice]:
    """The warnings about one service."""
    yield from _no_server(service)
    yield from _two_weights(service)
    yield from _unchecked_service_address(service)
    yield from _stand_in_scheduler(service)


def _no_server(service: ServiceSettings) -> Iterator[Advice]:
    if not service.servers and not service.from_metadata:
        yield "has no server", "add servers: [{guest: NAME}], or from-metadata: true"


def _two_weights(service: ServiceSettings) -> Iterator[Advice]:
    """A guest that one entry names and another entry's pattern matches, with different weights."""
    patterns = [member for member in service.servers if member.is_pattern]
    for member in service.servers:
        if member.guest is None or member.is_pattern:
            continue
        for pattern in patterns:
            assert pattern.guest is not None
            if not fnmatchcase(member.guest, pattern.guest):
                continue
            own, other = _weight(member, service), _weight(pattern, service)
            if own != other:
                yield (
                    f"guest {member.guest} is named with weight {own} and also matches"
                    f" '{pattern.guest}' with weight {other}",
                    f"the name has precedence: weight {own}",
                )


def _weight(member: Member, service: ServiceSettings) -> int:
    return service.weight if member.weight is None else member.weight


def _unchecked_service_address(service: ServiceSettings) -> Iterator[Advice]:
    """A server without the service address passes its checks but cannot answer clients."""
    if service.forwarding not in {Forwarding.GATEWAYING, Forwarding.TUNNEL}:
        return
    if any(check.via_vip for check in service.checks):
        return
    sides = [service.side if m.side is None else m.side for m in service.servers if m.host is None]
    hosts = any(member.host is not None for member in service.servers)
    if hosts or service.side.on_boot is OnBoot.OFF or any(s.on_boot is OnBoot.OFF for s in sides):
        yield (
            f"with {service.forwarding} a server that lacks the service address passes its checks,"
            " as they go to its own address, but its clients get no answer",
            "add via: vip to a check, or guest-side: {on-boot: verify, delivery: …} for guests",
        )


def _stand_in_scheduler(service: ServiceSettings) -> Iterator[Advice]:
    stand_in = STAND_IN.get(service.scheduler)
    if stand_in is not None:
        yield (
            f"scheduler {service.scheduler} refuses the clients of a server with weight 0, so"
            f" {stand_in} replaces it while there is such a server, as during a drain",
            "sh and mh need no replacement",
        )
