"""Which addresses are no guest's, whoever gives them: metadata, XML, lease, neighbour or guest.

What the operator wrote in the configuration is believed, and is not judged. How a text becomes an
address, and in which networks it may lie: hypervisor/address_policy.py. Whose of several guests an
address is: address_claims.py.
"""

from dataclasses import dataclass
from functools import lru_cache

from xenlb.ipvs.table import IPAddress
from xenlb.model.settings import ServiceSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class HostNetwork:
    """What this host knows of its network. `own`: its addresses; `gateways`: the next hops of its
    routes; `strangers`: neighbours whose MAC addresses are those of no guest."""

    own: frozenset[IPAddress] = frozenset()
    gateways: frozenset[IPAddress] = frozenset()
    strangers: frozenset[IPAddress] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class HostNetworkChanged:
    """The event that this host's network is seen, for the first time or changed. `at` as in
    events.py."""

    at: float
    host: HostNetwork


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressesInUse:
    """Addresses of the configuration: `services` of services, `sorry` of sorry servers."""

    services: frozenset[IPAddress] = frozenset()
    sorry: frozenset[IPAddress] = frozenset()


STRANGER = (
    "a machine that is no guest of a service has it, as its MAC address shows (if that is the"
    " guest, write the address into the configuration)"
)


def rejection_reason(address: IPAddress, host: HostNetwork, taken: AddressesInUse) -> str:
    """Why no guest may have the address; "" if one may."""
    for addresses, reason in (
        (taken.services, "it is a service address"),
        (host.own, "it is an address of this host"),
        (host.gateways, "it is a gateway of this host"),
        (taken.sorry, "it is the address of a sorry server"),
        (host.strangers, STRANGER),
    ):
        if address in addresses:
            return reason
    return ""


@lru_cache(maxsize=16)
def addresses_in_use(services: tuple[ServiceSettings, ...]) -> AddressesInUse:
    """What a configuration takes."""
    return AddressesInUse(
        services=frozenset(each.address for each in services if each.address is not None),
        sorry=frozenset(each.sorry_server[0] for each in services if each.sorry_server is not None),
    )
