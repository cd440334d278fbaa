"""Members of a service: its configured hosts, and the guests that match, with their addresses.

A guest's address is one of its sources' addresses that fits the service's family and belongs to no
other guest.
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
from xenlb.model.state import Candidate, RealServer, State
from xenlb.model.target import Target

_WRITTEN = {AddressSource.CONFIGURATION, AddressSource.METADATA}


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """A guest in a service, by configuration or metadata.

    `written`: its addresses of configuration and metadata, in this order. `network`: where its
    address must lie, if configured.
    """

    weight: int
    written: tuple[AddressCandidate, ...]
    side: GuestSide
    network: IPNetwork | None = None


def membership(service: ServiceSettings, guest: Guest) -> Membership | None:
    """Return the membership of a guest, None if it does not belong to the service."""
    return _membership(service, guest.name, guest.id.uuid, guest.metadata)


@lru_cache(maxsize=65536)
def _membership(
    service: ServiceSettings, name: str, uuid: UUID, metadata: tuple[MetadataService, ...]
) -> Membership | None:
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
    """Return the services that a guest is in by configuration or metadata."""
    return services_and_addresses(state, guest)[0]


def service_names(state: State, guest: Guest) -> frozenset[str]:
    """Return the names of the services that a change of the guest may affect."""
    return frozenset(service.name for service in services_of(state, guest))


def services_and_addresses(
    state: State, guest: Guest
) -> tuple[tuple[ServiceSettings, ...], tuple[AddressCandidate, ...]]:
    """Return the services of a guest, and its addresses of configuration and metadata."""
    return _memberships(state.settings.services, guest.name, guest.id.uuid, guest.metadata)


@lru_cache(maxsize=4096)
def _memberships(
    services: tuple[ServiceSettings, ...],
    name: str,
    uuid: UUID,
    metadata: tuple[MetadataService, ...],
) -> tuple[tuple[ServiceSettings, ...], tuple[AddressCandidate, ...]]:
    joined: list[ServiceSettings] = []
    written: list[AddressCandidate] = []
    for service in services:
        member = _membership(service, name, uuid, metadata)
        if member is not None:
            joined.append(service)
            written += member.written
    return tuple(joined), tuple(written)


def addresses_of(state: State, guest: Guest) -> dict[str, IPAddress]:
    """Return the known addresses of the guest's servers, by service name."""
    return {
        service.name: candidate.server.key.address
        for service in services_of(state, guest)
        for candidate in state.derived.candidates[service.name]
        if candidate.owner == guest.id and candidate.server is not None
    }


def side_of(service: ServiceSettings, name: str, uuid: UUID) -> GuestSide:
    """Return the `guest-side` settings of a service for a guest."""
    return _side(service, _entry(service, name, uuid))


def _entry(service: ServiceSettings, name: str, uuid: UUID) -> Member | None:
    """Return the entry that names the guest, else the first whose pattern fits."""
    uuid_text = str(uuid)
    fitting = [member for member in service.servers if member.matches(name, uuid_text)]
    named = (member for member in fitting if member.names(name, uuid_text))
    return next(named, fitting[0] if fitting else None)


def _side(service: ServiceSettings, member: Member | None) -> GuestSide:
    return service.side if member is None or member.side is None else member.side


def needs_address(service: ServiceSettings, guest: Guest) -> bool:
    """Return whether neither configuration nor metadata has the guest's address."""
    member = membership(service, guest)
    return member is None or not member.written


def needs_address_check(service: ServiceSettings, guest: Guest) -> bool:
    """Return whether the guest's address is checked against the host: not a configured one."""
    member = membership(service, guest)
    return member is None or all(
        address.source is AddressSource.METADATA for address in member.written
    )


def metadata_rejection(candidate: AddressCandidate, state: State) -> str:
    """Return why an address of metadata is not used; "" if it may be.

    Addresses of all other sources were checked before.
    """
    if candidate.source is not AddressSource.METADATA:
        return ""
    return rejection_reason(
        candidate.address, state.observed.host, addresses_in_use(state.settings.services)
    )


def candidates(
    service: ServiceSettings, state: State, owners: Mapping[IPAddress, GuestId | None]
) -> Iterator[Candidate]:
    """Yield the service's servers, for each of its kernel services, in configuration order.

    `owners`: `address_owners` of the same state. Guests that do not run are candidates too.
    """
    keys = service.kernel_keys()
    guests = []
    for guest in state.guests.values():
        member = membership(service, guest)
        if member is not None:
            addresses, why = _addresses(service, guest, member, owners, state)
            at = {
                address: tuple(
                    _candidate(service, key, guest.id, address, weight=member.weight)
                    for key in keys
                )
                for address in addresses
            }
            chosen = (
                address_choice.choose(service, guest, at, state) if len(at) > 1 else addresses[:1]
            )
            guests.append((guest.name, guest.id, member.weight, chosen, at, why))
    guests.sort(key=lambda item: item[:2])
    for index, key in enumerate(keys):
        taken: set[ServerKey] = set()
        for host in service.servers:
            if host.host is not None:
                weight = service.weight if host.weight is None else host.weight
                candidate = _candidate(service, key, None, host.host, weight=weight)
                yield _not_twice(candidate, taken)
        for _, owner, weight, chosen, at, why in guests:
            if not chosen:
                yield Candidate(
                    owner=owner, service=key, server=None, targets=(), weight=weight, reason=why
                )
                continue
            first, *others = (at[address][index] for address in chosen)
            yield _not_twice(replace(first, alternatives=tuple(others)) if others else first, taken)


def _addresses(
    service: ServiceSettings,
    guest: Guest,
    member: Membership,
    owners: Mapping[IPAddress, GuestId | None],
    state: State,
) -> tuple[tuple[IPAddress, ...], str]:
    """Return the addresses that the guest's server may have, best first; if none, why.

    An address of configuration or metadata is the only one.
    """
    why = "its address is not known yet"
    usable: dict[IPAddress, list[AddressCandidate]] = {}
    for candidate in (*member.written, *guest.candidates):
        address, written = candidate.address, candidate.source in _WRITTEN
        if not _fits(service, address):
            why = f"its address {address} is not of the service's family"
        elif reason := metadata_rejection(candidate, state):
            return (), f"its address {candidate} is refused: {reason}"
        elif address in owners and owners[address] != guest.id:
            owner = owner_name(owners[address], state)
            why = f"its address {candidate} is refused: it belongs to {owner}"
            if written:
                return (), why
        elif written:
            return (address,), ""
        elif member.network is not None and address not in member.network:
            why = f"its address {candidate} is not in {member.network}"
        else:
            usable.setdefault(address, []).append(candidate)
    if guest.rejected and not guest.candidates:
        rejected = guest.rejected[0]
        why = f"{rejected.text} ({rejected.source}) is refused: {rejected.reason}"
    return address_choice.ranked(usable, guest), why


def owner_name(owner: GuestId | None, state: State) -> str:
    """Return the owner of an address, for messages."""
    if owner is None:
        return "a configured host"
    guest = state.guests.get(owner)
    return f"guest {owner.uuid if guest is None else guest.name}"


def _fits(service: ServiceSettings, address: IPAddress) -> bool:
    """Return whether the kernel can forward to it: between families by tunnel only."""
    return service.forwarding is Forwarding.TUNNEL or family_of(address) is service.family


def _candidate(
    service: ServiceSettings,
    key: ServiceKey,
    owner: GuestId | None,
    address: IPAddress,
    *,
    weight: int,
) -> Candidate:
    server_key = ServerKey(address=address, port=_server_port(service, key))
    return Candidate(
        owner=owner,
        service=key,
        server=RealServer(owner=owner, service=key, key=server_key),
        targets=_targets(service, key, address),
        weight=weight,
    )


def _not_twice(candidate: Candidate, taken: set[ServerKey]) -> Candidate:
    """Return the candidate, without a server if another candidate has the same one."""
    assert candidate.server is not None
    key = candidate.server.key
    if key in taken:
        why = f"{key.address} port {key.port} is a server of this service already"
        return replace(candidate, server=None, targets=(), reason=why, alternatives=())
    taken.add(key)
    return candidate


def _server_port(service: ServiceSettings, key: ServiceKey) -> int:
    match key:
        case MarkKey():
            return 0
        case AddressKey(port=port):
            return port if service.server_port is None else service.server_port


def _targets(service: ServiceSettings, key: ServiceKey, address: IPAddress) -> tuple[Target, ...]:
    """Return the probed target of each check that applies to a server."""
    return tuple(
        _target(service, check, address, port)
        for check in service.checks
        if (port := _probed_port(service, key, check)) is not None
    )


def _target(service: ServiceSettings, check: Check, address: IPAddress, port: int) -> Target:
    target = Target(check=check, address=address, port=port)
    return replace(target, vip=service.address, tunnel=service.tunnel) if check.via_vip else target


def sorry_target(service: ServiceSettings, key: ServiceKey) -> Target | None:
    """Return the target of the sorry server's probe, a TCP connection.

    Its protocol may differ from the servers', so their checks do not apply. None without a sorry
    server, without checks, and where it is not reached by TCP.
    """
    sorry = service.sorry_key(key)
    tcp = isinstance(key, AddressKey) and key.protocol is Protocol.TCP
    if sorry is None or not sorry.port or not tcp or not service.checks:
        return None
    first = service.checks[0]
    check = Check(interval=first.interval, timeout=first.timeout, via_vip=first.via_vip)
    return _target(service, check, sorry.address, sorry.port)


def _probed_port(service: ServiceSettings, key: ServiceKey, check: Check) -> int | None:
    """Return the port of a check: its own, else the server's, else the service's first that fits.

    A port fits if it has the check's protocol. 0: the check needs no port, as icmp or a program.
    """
    if check.port is not None:
        return check.port
    protocols = protocols_of(type(check.asks))
    for other in (key, *service.kernel_keys()):
        if isinstance(other, AddressKey) and other.protocol in protocols and other.port:
            return _server_port(service, other)
    return 0 if isinstance(check.asks, Icmp | Exec) else None


def guests_needing_address(state: State) -> dict[GuestId, int | None]:
    """Return the running guests whose address is not configured, with their domain ids."""
    return {
        guest.id: guest.incarnation
        for guest in state.guests.values()
        if guest.phase is not Phase.ABSENT
        and any(needs_address_check(service, guest) for service in services_of(state, guest))
    }


def metadata_addresses(state: State) -> frozenset[IPAddress]:
    """Return the addresses in the metadata of guests."""
    return frozenset(
        entry.address
        for guest in state.guests.values()
        for entry in guest.metadata
        if entry.address is not None
    )
