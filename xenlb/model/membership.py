"""Who belongs to a service: its configured hosts, and the guests that match, with an address each.

A guest's address is one that the sources give, which is of the service's family and not another's
(address_claims.py); which one of several: address_choice.py.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
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
from xenlb.model import address_choice
from xenlb.model.addresses import AddressCandidate, AddressSource
from xenlb.model.checks import Exec, Icmp, protocols_of
from xenlb.model.domain import GuestId, MetadataService
from xenlb.model.guest import Guest, Phase
from xenlb.model.guest_side import GuestSide
from xenlb.model.reserved_addresses import addresses_in_use, rejection_reason
from xenlb.model.settings import Check, IPNetwork, Member, ServiceSettings
from xenlb.model.state import Candidate, Slot, State
from xenlb.model.target import Target


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """A guest in a service: its weight there, the addresses that configuration and metadata give
    for it, in this order, what is said of its inside, and where its address lies, if that is said.
    """

    weight: int
    written: tuple[AddressCandidate, ...]
    side: GuestSide
    network: IPNetwork | None = None


def membership(service: ServiceSettings, guest: Guest) -> Membership | None:
    """None: the guest does not belong to the service."""
    return _membership(service, guest.name, guest.id.uuid, guest.metadata)


@lru_cache(maxsize=65536)
def _membership(
    service: ServiceSettings, name: str, uuid: UUID, metadata: tuple[MetadataService, ...]
) -> Membership | None:
    """By the entry of `servers` that means the guest; by its metadata, where allowed."""
    member = _entry(service, name, uuid)
    entry = None
    if service.from_metadata:
        entry = next((entry for entry in metadata if entry.name == service.name), None)
    if member is None and entry is None:
        return None
    weight = None if member is None else member.weight
    if weight is None and entry is not None:
        weight = entry.weight
    written = []
    if member is not None and member.address is not None:
        written.append(AddressCandidate(address=member.address, source=AddressSource.CONFIGURATION))
    if entry is not None and entry.address is not None:
        written.append(AddressCandidate(address=entry.address, source=AddressSource.METADATA))
    return Membership(
        weight=service.weight if weight is None else weight,
        written=tuple(written),
        side=_side(service, member),
        network=None if member is None else member.network,
    )


def services_of(state: State, guest: Guest) -> tuple[ServiceSettings, ...]:
    return belonging(state.settings.services, guest.name, guest.id.uuid, guest.metadata)[0]


def names_of(state: State, guest: Guest) -> frozenset[str]:
    """The names of the services of a guest."""
    return frozenset(service.name for service in services_of(state, guest))


@lru_cache(maxsize=4096)
def belonging(
    services: tuple[ServiceSettings, ...],
    name: str,
    uuid: UUID,
    metadata: tuple[MetadataService, ...],
) -> tuple[tuple[ServiceSettings, ...], tuple[AddressCandidate, ...]]:
    """The services of a guest, and the addresses written for it in any of them, not judged."""
    mine: list[ServiceSettings] = []
    written: list[AddressCandidate] = []
    for service in services:
        found = _membership(service, name, uuid, metadata)
        if found is not None:
            mine.append(service)
            written += found.written
    return tuple(mine), tuple(written)


def addresses_of(state: State, guest: Guest) -> dict[str, IPAddress]:
    """The address of the guest's servers, by the names of its services; where known."""
    return {
        service.name: candidate.slot.server.address
        for service in services_of(state, guest)
        for candidate in state.derived.candidates[service.name]
        if candidate.owner == guest.id and candidate.slot is not None
    }


def side_of(service: ServiceSettings, name: str, uuid: UUID) -> GuestSide:
    """What a service says of the inside of the guest of that libvirt name."""
    return _side(service, _entry(service, name, uuid))


def _entry(service: ServiceSettings, name: str, uuid: UUID) -> Member | None:
    """The entry that names the guest, wherever it stands; else the first whose pattern fits."""
    text = str(uuid)
    mine = [member for member in service.servers if member.matches(name, text)]
    return next((member for member in mine if member.names(name, text)), mine[0] if mine else None)


def _side(service: ServiceSettings, member: Member | None) -> GuestSide:
    return service.side if member is None or member.side is None else member.side


def needs_address(service: ServiceSettings, guest: Guest) -> bool:
    """Must the guest's address be looked for, because neither configuration nor metadata has it?"""
    member = membership(service, guest)
    return member is None or not member.written


def is_judged(service: ServiceSettings, guest: Guest) -> bool:
    """Is the guest's address held against what the host sees? Not one of the configuration."""
    member = membership(service, guest)
    return member is None or all(each.source is AddressSource.METADATA for each in member.written)


def refused_metadata(found: AddressCandidate, state: State) -> str:
    """Why an address that a guest's metadata gives is not used; "" if it may be, and for every
    other source, which is judged before it gets here."""
    if found.source is not AddressSource.METADATA:
        return ""
    return rejection_reason(
        found.address, state.observed.host, addresses_in_use(state.settings.services)
    )


def candidates(
    service: ServiceSettings, state: State, owners: Mapping[IPAddress, GuestId | None]
) -> Iterator[Candidate]:
    """The service's servers, for each of its kernel services, in the order of the configuration.

    `owners`: `claims` of the same state. Guests that do not run are candidates too.
    """
    guests = []
    for guest in state.guests.values():
        member = membership(service, guest)
        if member is not None:
            addresses, why = _addresses(service, guest, member, owners, state)
            at = {
                address: tuple(
                    _candidate(service, key, guest.id, address, weight=member.weight)
                    for key in service.kernel_keys()
                )
                for address in addresses
            }
            chosen = (
                address_choice.choose(service, guest, at, state) if len(at) > 1 else addresses[:1]
            )
            guests.append((guest.name, guest.id, member.weight, chosen, at, why))
    guests.sort(key=lambda found: found[:2])
    for place, key in enumerate(service.kernel_keys()):
        taken: set[ServerKey] = set()
        for host in service.servers:
            if host.host is not None:
                weight = service.weight if host.weight is None else host.weight
                candidate = _candidate(service, key, None, host.host, weight=weight)
                yield _not_twice(candidate, taken)
        for _, owner, weight, chosen, at, why in guests:
            if not chosen:
                yield Candidate(
                    owner=owner, service=key, slot=None, targets=(), weight=weight, reason=why
                )
                continue
            first, *others = (at[address][place] for address in chosen)
            yield _not_twice(replace(first, alternatives=tuple(others)) if others else first, taken)


def _addresses(
    service: ServiceSettings,
    guest: Guest,
    member: Membership,
    owners: Mapping[IPAddress, GuestId | None],
    state: State,
) -> tuple[tuple[IPAddress, ...], str]:
    """The addresses that the guest's server may have, best first; if there is none, why. One that
    is written is the only one."""
    why = "its address is not known yet"
    usable: dict[IPAddress, list[AddressCandidate]] = {}
    for found in (*member.written, *guest.candidates):
        if not _fits(service, found.address):
            why = f"its address {found.address} is not of the service's family"
        elif reason := refused_metadata(found, state):
            return (), f"its address {found.address} ({found.source}) is refused: {reason}"
        elif found.address in owners and owners[found.address] != guest.id:
            whose = owner_name(owners[found.address], state)
            why = f"its address {found.address} ({found.source}) is refused: it is that of {whose}"
            if found.source in {AddressSource.CONFIGURATION, AddressSource.METADATA}:
                return (), why
        elif found.source in {AddressSource.CONFIGURATION, AddressSource.METADATA}:
            return (found.address,), ""
        elif member.network is not None and found.address not in member.network:
            why = f"its address {found.address} ({found.source}) is not in {member.network}"
        else:
            usable.setdefault(found.address, []).append(found)
    if guest.rejected and not guest.candidates:
        refused = guest.rejected[0]
        why = f"{refused.text} ({refused.source}) is refused: {refused.reason}"
    return address_choice.ranked(usable, guest), why


def owner_name(owner: GuestId | None, state: State) -> str:
    """For messages: whose an address is."""
    if owner is None:
        return "a configured host"
    guest = state.guests.get(owner)
    return f"guest {owner.uuid if guest is None else guest.name}"


def _fits(service: ServiceSettings, address: IPAddress) -> bool:
    """The kernel forwards between families by tunnel only."""
    return service.forwarding is Forwarding.TUNNEL or family_of(address) is service.family


def _candidate(
    service: ServiceSettings,
    key: ServiceKey,
    owner: GuestId | None,
    address: IPAddress,
    *,
    weight: int,
) -> Candidate:
    server = ServerKey(address=address, port=_server_port(service, key))
    return Candidate(
        owner=owner,
        service=key,
        slot=Slot(owner=owner, service=key, server=server),
        targets=_targets(service, key, address),
        weight=weight,
    )


def _not_twice(candidate: Candidate, taken: set[ServerKey]) -> Candidate:
    """The candidate, unless its place is another's already."""
    assert candidate.slot is not None
    server = candidate.slot.server
    if server in taken:
        why = f"{server.address} port {server.port} is a server of this service already"
        return replace(candidate, slot=None, targets=(), reason=why, alternatives=())
    taken.add(server)
    return candidate


def _server_port(service: ServiceSettings, key: ServiceKey) -> int:
    match key:
        case MarkKey():
            return 0
        case AddressKey(port=port):
            return port if service.server_port is None else service.server_port


def _targets(service: ServiceSettings, key: ServiceKey, address: IPAddress) -> tuple[Target, ...]:
    """What is probed for a server: by each check one port, where there is one that it can ask."""
    targets = []
    for check in service.checks:
        port = _probed_port(service, key, check)
        if port is not None:
            target = Target(check=check, address=address, port=port)
            if check.via_vip:
                target = replace(target, vip=service.address, tunnel=service.tunnel)
            targets.append(target)
    return tuple(targets)


def sorry_target(service: ServiceSettings, key: ServiceKey) -> Target | None:
    """What is probed of the sorry server: a connection to it, as what it speaks need not be what
    the servers speak. None without one, without checks, and where it is not reached by TCP."""
    sorry = service.sorry_key(key)
    tcp = isinstance(key, AddressKey) and key.protocol is Protocol.TCP
    if sorry is None or not sorry.port or not tcp or not service.checks:
        return None
    first = service.checks[0]
    check = Check(interval=first.interval, timeout=first.timeout, via_vip=first.via_vip)
    target = Target(check=check, address=sorry.address, port=sorry.port)
    if check.via_vip:
        target = replace(target, vip=service.address, tunnel=service.tunnel)
    return target


def _probed_port(service: ServiceSettings, key: ServiceKey, check: Check) -> int | None:
    """That of the check, else the server's own, else the service's first, of the check's protocol.
    0 where the check needs none: an echo request has none, and a program need not use it."""
    if check.port is not None:
        return check.port
    protocols = protocols_of(type(check.asks))
    for each in (key, *service.kernel_keys()):
        if isinstance(each, AddressKey) and each.protocol in protocols and each.port:
            return _server_port(service, each)
    return 0 if isinstance(check.asks, Icmp | Exec) else None


def guests_needing_address(state: State) -> dict[GuestId, int | None]:
    """Guests that run and whose address is not in the configuration, with their domain ids."""
    return {
        guest.id: guest.incarnation
        for guest in state.guests.values()
        if guest.phase is not Phase.ABSENT
        and any(is_judged(service, guest) for service in services_of(state, guest))
    }


def metadata_addresses(state: State) -> frozenset[IPAddress]:
    """The addresses that the metadata of guests gives."""
    return frozenset(
        entry.address
        for guest in state.guests.values()
        for entry in guest.metadata
        if entry.address is not None
    )
