"""PURE. Which text of a source is an address that a guest may have, and why not.

Three questions stand apart: is the text an address that a server can have (`parse`), may any guest
have it (model/reserved_addresses.py), and does it lie where the guest's own network cards are.
Which of several guests has it is seen by the model, which knows all guests
(model/address_claims.py).
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import AddressValueError, IPv4Address, IPv6Address

from xenlb.ipvs.table import IPAddress
from xenlb.model.addresses import AddressCandidate, AddressSource, RejectedAddress
from xenlb.model.reserved_addresses import AddressesInUse, HostNetwork, rejection_reason
from xenlb.model.settings import IPNetwork
from xenlb.untrusted.printable import printable

LONGEST = 64


class NoAddress(ValueError):
    """The text is no address that a server can have; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyContext:
    """What an address is held against.

    `networks`: of this host's interfaces on which the guest's network cards are; `within`: those
    of the configuration, which narrow that; none: they do not.
    """

    host: HostNetwork = field(default_factory=HostNetwork)
    taken: AddressesInUse = field(default_factory=AddressesInUse)
    networks: tuple[IPNetwork, ...] = ()
    within: tuple[IPNetwork, ...] = ()


def parse(text: str) -> IPAddress:
    """One unicast address in its usual notation; raises NoAddress."""
    if len(text) > LONGEST:
        raise NoAddress(f"longer than {LONGEST} characters")
    if "%" in text:
        raise NoAddress("it has a zone, which means something on one host only")
    try:
        address: IPAddress = IPv6Address(text) if ":" in text else IPv4Address(text)
    except (AddressValueError, ValueError):
        raise NoAddress("it is not an IPv4 or IPv6 address") from None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        raise NoAddress("it is an IPv4 address in IPv6 notation")
    for property_, what in (
        ("is_unspecified", "it is the unspecified address"),
        ("is_loopback", "it is a loopback address"),
        ("is_multicast", "it is a multicast address"),
        ("is_link_local", "it is link-local"),
    ):
        if getattr(address, property_):
            raise NoAddress(what)
    if address.version == 4 and (int(address) >= 0xF0000000 or int(address) < 0x01000000):
        raise NoAddress("it is reserved")
    return address


def check_address(
    candidate: str | bytes, source: AddressSource, context: PolicyContext
) -> AddressCandidate | RejectedAddress:
    """Never raises, whatever the candidate is."""
    if isinstance(candidate, bytes):
        # Longer than the longest even if every byte became one replacement character.
        candidate = candidate[: LONGEST + 1].decode("ascii", errors="replace")

    def refused(reason: str) -> RejectedAddress:
        return RejectedAddress(text=text, source=source, reason=reason)

    text = printable(candidate, LONGEST)
    try:
        address = parse(candidate)
    except NoAddress as error:
        return refused(str(error))
    text = str(address)  # so that the model knows it again
    if reason := rejection_reason(address, context.host, context.taken):
        return refused(reason)
    if not source.trusted:
        inside = [n for n in context.networks if n.version == address.version and address in n]
        if not inside:
            return refused("it lies in no network of this host's interfaces that carry the guest")
        if any(_edge(address, network) for network in inside):
            return refused("it is the network's own or its broadcast address")
        if context.within and not any(
            n.version == address.version and address in n for n in context.within
        ):
            return refused("it lies in none of guests.networks")
    return AddressCandidate(address=address, source=source)


def _edge(address: IPAddress, network: IPNetwork) -> bool:
    if network.prefixlen >= network.max_prefixlen - 1:
        return False
    if address == network.network_address:
        return True
    return address.version == 4 and address == network.broadcast_address


def check_addresses(
    candidates: Iterable[tuple[str | bytes, AddressSource]], context: PolicyContext
) -> tuple[tuple[AddressCandidate, ...], tuple[RejectedAddress, ...]]:
    """Each address once, from its best source, in the order of Source and then by the number of
    sources that give it; refusals likewise."""
    order = {source: place for place, source in enumerate(AddressSource)}
    found: dict[IPAddress, AddressCandidate] = {}
    sources: dict[IPAddress, set[AddressSource]] = {}
    refused: dict[str, RejectedAddress] = {}
    for candidate, source in sorted(candidates, key=lambda pair: order[pair[1]]):
        match check_address(candidate, source, context):
            case AddressCandidate() as good:
                found.setdefault(good.address, good)
                sources.setdefault(good.address, set()).add(source)
            case RejectedAddress() as bad:
                refused.setdefault(bad.text, bad)
    ranked = sorted(
        found.values(), key=lambda each: (order[each.source], -len(sources[each.address]))
    )
    return tuple(ranked), tuple(refused.values())
