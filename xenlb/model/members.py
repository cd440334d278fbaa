"""Who belongs to a service: its configured hosts, and the guests that match, with an address each.

A guest's address is the first that the sources give, best source first, which is of the service's
family and not another's. Here the last rule about addresses is kept: a guest never gets one that
belongs to another guest or to a host of the configuration, whatever it reports.
"""

from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from uuid import UUID

from xenlb.ipvs.table import (
    AddressKey,
    Forwarding,
    IPAddress,
    MarkKey,
    Protocol,
    ServerKey,
    ServiceKey,
    family_of,
)
from xenlb.model.events import Found, GuestId, MetadataService, Source, Target
from xenlb.model.guest import Guest, Phase
from xenlb.model.settings import Member, ServiceSettings
from xenlb.model.state import Candidate, Slot, State


@lru_cache(maxsize=65536)
def member_for(service: ServiceSettings, name: str, uuid: UUID) -> Member | None:
    """The first entry of the service's `servers` that means this guest."""
    text = str(uuid)
    return next((member for member in service.servers if member.matches(name, text)), None)


def joined(service: ServiceSettings, guest: Guest) -> MetadataService | None:
    """What the guest's metadata says of this service, where the service allows it."""
    if not service.from_metadata:
        return None
    return next((entry for entry in guest.metadata if entry.name == service.name), None)


def is_member(service: ServiceSettings, guest: Guest) -> bool:
    return (
        member_for(service, guest.name, guest.id.uuid) is not None
        or joined(service, guest) is not None
    )


def services_of(state: State, guest: Guest) -> tuple[ServiceSettings, ...]:
    return _services_of(state.settings.services, guest.name, guest.id.uuid, guest.metadata)


@lru_cache(maxsize=4096)
def _services_of(
    services: tuple[ServiceSettings, ...],
    name: str,
    uuid: UUID,
    metadata: tuple[MetadataService, ...],
) -> tuple[ServiceSettings, ...]:
    asked = {entry.name for entry in metadata}
    return tuple(
        service
        for service in services
        if member_for(service, name, uuid) is not None
        or (service.from_metadata and service.name in asked)
    )


def addresses(service: ServiceSettings, guest: Guest) -> Iterator[Found]:
    """Every address given for the guest as a server of the service, best source first."""
    yield from written(service, guest)
    yield from guest.found


def written(service: ServiceSettings, guest: Guest) -> Iterator[Found]:
    """Those that configuration and metadata give."""
    member = member_for(service, guest.name, guest.id.uuid)
    if member is not None and member.address is not None:
        yield Found(address=member.address, source=Source.CONFIGURATION)
    entry = joined(service, guest)
    if entry is not None and entry.address is not None:
        yield Found(address=entry.address, source=Source.METADATA)


def needs_address(service: ServiceSettings, guest: Guest) -> bool:
    """Must the guest's address be looked for, because neither configuration nor metadata has it?"""
    return not any(written(service, guest))


def claims(state: State) -> Mapping[IPAddress, GuestId | None]:
    """Whose each address is: a host's (None), else that of the running guest with the best source.

    Between equal sources the guest that runs longest keeps it, so that a newcomer who reports a
    neighbour's address does not take it over.
    """
    owners: dict[IPAddress, GuestId | None] = {
        member.host: None
        for service in state.settings.services
        for member in service.servers
        if member.host is not None
    }
    ranked = sorted(
        (
            (RANKS[found.source], guest.booted, guest.id, found.address)
            for guest in state.guests.values()
            if guest.phase is not Phase.ABSENT
            for found in claimed(state, guest)
        ),
        key=lambda claim: (claim[0], claim[1], claim[2].uri, claim[2].uuid.int),
    )
    for _, _, guest_id, address in ranked:
        owners.setdefault(address, guest_id)
    return owners


def claimed(state: State, guest: Guest) -> tuple[Found, ...]:
    """Every address given for the guest as a server of any service."""
    services = services_of(state, guest)
    if not services:
        return ()
    return (*(found for service in services for found in written(service, guest)), *guest.found)


RANKS = {source: rank for rank, source in enumerate(Source)}


def candidates(
    service: ServiceSettings, state: State, owners: Mapping[IPAddress, GuestId | None]
) -> Iterator[Candidate]:
    """The service's servers, for each of its kernel services, in the order of the configuration.

    `owners`: `claims` of the same state. Guests that do not run are candidates too.
    """
    guests = [
        (guest.id, _weight(service, guest), *_address(service, guest, owners))
        for guest in sorted(
            (guest for guest in state.guests.values() if is_member(service, guest)),
            key=lambda guest: (guest.name, guest.id),
        )
    ]
    for key in service.kernel_keys():
        taken: set[ServerKey] = set()
        for member in service.servers:
            if member.host is not None:
                yield _candidate(service, key, None, member.host, weight=member.weight, taken=taken)
        for owner, weight, address, why in guests:
            yield _candidate(service, key, owner, address, weight=weight, taken=taken, why=why)


def _weight(service: ServiceSettings, guest: Guest) -> int | None:
    """What the configuration's entry says, else the guest's metadata; None: the service's."""
    member = member_for(service, guest.name, guest.id.uuid)
    if member is not None and member.weight is not None:
        return member.weight
    entry = joined(service, guest)
    return None if entry is None else entry.weight


def _address(
    service: ServiceSettings, guest: Guest, owners: Mapping[IPAddress, GuestId | None]
) -> tuple[IPAddress | None, str]:
    why = "its address is not known yet"
    for found in addresses(service, guest):
        if not _fits(service, found.address):
            why = f"its address {found.address} is not of the service's family"
        elif found.address in owners and owners[found.address] != guest.id:
            owner = owners[found.address]
            whose = "a configured host" if owner is None else f"guest {owner.uuid}"
            why = f"its address {found.address} ({found.source}) is refused: it is that of {whose}"
        else:
            return found.address, ""
    if guest.refused and not guest.found:
        refused = guest.refused[0]
        why = f"{refused.text} ({refused.source}) is refused: {refused.reason}"
    return None, why


def _fits(service: ServiceSettings, address: IPAddress) -> bool:
    """The kernel forwards between families by tunnel only."""
    return service.forwarding is Forwarding.TUNNEL or family_of(address) is service.family


def _candidate(
    service: ServiceSettings,
    key: ServiceKey,
    owner: GuestId | None,
    address: IPAddress | None,
    *,
    weight: int | None,
    taken: set[ServerKey],
    why: str = "",
) -> Candidate:
    weight = service.weight if weight is None else weight
    if address is None:
        return Candidate(owner=owner, service=key, slot=None, target=None, weight=weight, why=why)
    port = _server_port(service, key)
    server = ServerKey(address=address, port=port)
    if server in taken:
        why = f"{address} port {port} is a server of this service already"
        return Candidate(owner=owner, service=key, slot=None, target=None, weight=weight, why=why)
    taken.add(server)
    return Candidate(
        owner=owner,
        service=key,
        slot=Slot(owner=owner, service=key, server=server),
        target=_target(service, key, address),
        weight=weight,
    )


def _server_port(service: ServiceSettings, key: ServiceKey) -> int:
    match key:
        case MarkKey():
            return 0
        case AddressKey(port=port):
            return port if service.server_port is None else service.server_port


def _target(service: ServiceSettings, key: ServiceKey, address: IPAddress) -> Target | None:
    """What is probed for a server: its own TCP port, else the service's first, else nothing."""
    check = service.check
    if check is None:
        return None
    port = check.port or _check_port(service, key)
    return None if port is None else Target(check=check, address=address, port=port)


def _check_port(service: ServiceSettings, key: ServiceKey) -> int | None:
    tcp: Iterable[ServiceKey] = (key, *service.kernel_keys())
    for each in tcp:
        if isinstance(each, AddressKey) and each.protocol is Protocol.TCP and each.port:
            return _server_port(service, each)
    return None
