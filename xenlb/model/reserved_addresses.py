"""Addresses that no guest may have, whatever their source: metadata, XML, lease, neighbour, guest.

Addresses of the configuration are not checked: the operator decides.
"""

from dataclasses import dataclass
from functools import lru_cache

from xenlb.ipvs.table import IPAddress
from xenlb.model.settings import ServiceSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class HostNetwork:
    """The network of this host.

    `own`: its addresses; `gateways`: the next hops of its routes; `strangers`: neighbours whose MAC
    addresses belong to no guest.
    """

    own: frozenset[IPAddress] = frozenset()
    gateways: frozenset[IPAddress] = frozenset()
    strangers: frozenset[IPAddress] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class HostNetworkChanged:
    """The event that the host's network was read for the first time, or changed."""

    at: float
    host: HostNetwork


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressesInUse:
    """Addresses of the configuration: `services` of services, `sorry` of sorry servers."""

    services: frozenset[IPAddress] = frozenset()
    sorry: frozenset[IPAddress] = frozenset()


STRANGER = (
    "by its MAC address, a machine that is no guest of a service has it (if that is the guest,"
    " write the address into the configuration)"
)


def rejection_reason(address: IPAddress, host: HostNetwork, in_use: AddressesInUse) -> str:
    """Return why no guest may have the address; "" if one may."""
    for addresses, reason in (
        (in_use.services, "it is a service address"),
        (host.own, "it is an address of this host"),
        (host.gateways, "it is a gateway of this host"),
        (in_use.sorry, "it is the address of a sorry server"),
        (host.strangers, STRANGER),
    ):
        if address in addresses:
            return reason
    return ""


@lru_cache(maxsize=16)
def addresses_in_use(services: tuple[ServiceSettings, ...]) -> AddressesInUse:
    """Return the addresses of services and of sorry servers."""
    return AddressesInUse(
        services=frozenset(s.address for s in services if s.address is not None),
        sorry=frozenset(s.sorry_server[0] for s in services if s.sorry_server is not None),
    )
