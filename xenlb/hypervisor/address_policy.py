"""PURE. Which texts of a source are addresses that a guest may have.

Three checks: the text is an address that a server can have (`parse_address`), the address is not
reserved (model/reserved_addresses.py), and it lies in a network of the guest's interfaces. Which of
several guests may use an address is decided in the model, which knows all guests.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import AddressValueError, IPv4Address, IPv6Address

from xenlb.ipvs.table import IPAddress
from xenlb.model.addresses import AddressCandidate, AddressSource, RejectedAddress
from xenlb.model.reserved_addresses import AddressesInUse, HostNetwork, rejection_reason
from xenlb.model.settings import IPNetwork
from xenlb.untrusted.printable import printable

LONGEST = 64  # characters


class UnusableAddress(ValueError):
    """The text is not an address that a server can have; the message gives the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyContext:
    """What an address is checked against.

    `networks`: of this host's interfaces that carry the guest; `within`: those of the
    configuration, which narrow that if there are any.
    """

    host: HostNetwork = field(default_factory=HostNetwork)
    taken: AddressesInUse = field(default_factory=AddressesInUse)
    networks: tuple[IPNetwork, ...] = ()
    within: tuple[IPNetwork, ...] = ()


def parse_address(text: str) -> IPAddress:
    """Parse a unicast address in its usual notation; raises UnusableAddress."""
    if len(text) > LONGEST:
        raise UnusableAddress(f"longer than {LONGEST} characters")
    if "%" in text:
        raise UnusableAddress("it has a zone, which means something on one host only")
    try:
        address: IPAddress = IPv6Address(text) if ":" in text else IPv4Address(text)
    except (AddressValueError, ValueError):
        raise UnusableAddress("it is not an IPv4 or IPv6 address") from None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        raise UnusableAddress("it is an IPv4 address in IPv6 notation")
    for property_, reason in (
        ("is_unspecified", "it is the unspecified address"),
        ("is_loopback", "it is a loopback address"),
        ("is_multicast", "it is a multicast address"),
        ("is_link_local", "it is link-local"),
    ):
        if getattr(address, property_):
            raise UnusableAddress(reason)
    if address.version == 4 and (int(address) >= 0xF0000000 or int(address) < 0x01000000):
        raise UnusableAddress("it is reserved")
    return address


def check_address(
    candidate: str | bytes, source: AddressSource, context: PolicyContext
) -> AddressCandidate | RejectedAddress:
    """Check one text of a source. Never raises."""
    if isinstance(candidate, bytes):
        # Too long even if every byte becomes one replacement character.
        candidate = candidate[: LONGEST + 1].decode("ascii", errors="replace")
    text = printable(candidate, LONGEST)
    try:
        address = parse_address(candidate)
        text = str(address)  # the notation that the model compares
        _check_usable(address, source, context)
    except UnusableAddress as error:
        return RejectedAddress(text=text, source=source, reason=str(error))
    return AddressCandidate(address=address, source=source)


def _check_usable(address: IPAddress, source: AddressSource, context: PolicyContext) -> None:
    if reason := rejection_reason(address, context.host, context.taken):
        raise UnusableAddress(reason)
    if source.trusted:
        return
    networks = [network for network in context.networks if _contains(network, address)]
    if not networks:
        raise UnusableAddress(
            "it lies in no network of this host's interfaces that carry the guest"
        )
    if any(_is_edge(address, network) for network in networks):
        raise UnusableAddress("it is the network's own or its broadcast address")
    if context.within and not any(_contains(network, address) for network in context.within):
        raise UnusableAddress("it lies in none of guests.networks")


def _contains(network: IPNetwork, address: IPAddress) -> bool:
    return network.version == address.version and address in network


def _is_edge(address: IPAddress, network: IPNetwork) -> bool:
    if network.prefixlen >= network.max_prefixlen - 1:
        return False
    if address == network.network_address:
        return True
    return address.version == 4 and address == network.broadcast_address


def check_addresses(
    candidates: Iterable[tuple[str | bytes, AddressSource]], context: PolicyContext
) -> tuple[tuple[AddressCandidate, ...], tuple[RejectedAddress, ...]]:
    """Check texts of several sources; return usable and rejected addresses.

    Each appears once, with its best source. Usable ones are in the order of AddressSource, then by
    the number of sources that give them; rejected ones in the order of AddressSource.
    """
    order = {source: rank for rank, source in enumerate(AddressSource)}
    usable: dict[IPAddress, AddressCandidate] = {}
    sources: dict[IPAddress, set[AddressSource]] = {}
    rejected: dict[str, RejectedAddress] = {}
    for candidate, source in sorted(candidates, key=lambda pair: order[pair[1]]):
        match check_address(candidate, source, context):
            case AddressCandidate() as address:
                usable.setdefault(address.address, address)
                sources.setdefault(address.address, set()).add(source)
            case RejectedAddress() as rejection:
                rejected.setdefault(rejection.text, rejection)
    ranked = sorted(
        usable.values(), key=lambda usable: (order[usable.source], -len(sources[usable.address]))
    )
    return tuple(ranked), tuple(rejected.values())
