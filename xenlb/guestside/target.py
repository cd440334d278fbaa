"""Which guest, in which of its services, at which addresses: what its needs are compiled from.

Made by the command line for one guest that an operator names, and by the agent for those that it
lets in.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from uuid import UUID

from xenlb.guestside.requirements.compile import NeedsError, ServiceBinding
from xenlb.guestside.requirements.hold import Hold
from xenlb.ipvs.table import IPAddress, family_of
from xenlb.model.guest_side import GuestSide
from xenlb.model.membership import side_of
from xenlb.model.settings import ServiceSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestTarget:
    """A guest and its places. `uri`: of its libvirt, a real one. `side`: how it is reached and what
    it is, the same in all places. `hold` None: it is in no service. `domid` None: it is off."""

    name: str
    uuid: UUID
    uri: str
    places: tuple[ServiceBinding, ...]
    side: GuestSide
    hold: Hold | None
    domid: int | None

    @property
    def container(self) -> bool:
        """Does it share the host's kernel?"""
        return self.uri.startswith(("lxc:", "lxc+", "openvz", "vz"))

    @property
    def address(self) -> IPAddress | None:
        """An address of its own at which it can be reached; IPv4 where there is one."""
        known = [place.address for place in self.places if place.address is not None]
        return min(known, key=lambda address: address.version, default=None)


async def guest_target(
    *,
    name: str,
    uuid: UUID,
    uri: str,
    services: Iterable[ServiceSettings],
    addresses: Mapping[str, IPAddress],
    hold: Hold | None,
    domid: int | None,
) -> GuestTarget:
    """`addresses`: of the guest's servers, by the names of services. Raises NeedsError where its
    services contradict each other."""
    from xenlb.director.interface import source_addresses  # noqa: PLC0415  (loads pyroute2)

    ways = await source_addresses(set(addresses.values())) if addresses else {}
    places = tuple(
        _place(service, side_of(service, name, uuid), addresses.get(service.name), ways)
        for service in services
    )
    _agree(name, places)
    side = places[0].side if places else GuestSide()
    return GuestTarget(
        name=name, uuid=uuid, uri=uri, places=places, side=side, hold=hold, domid=domid
    )


def _place(
    service: ServiceSettings,
    side: GuestSide,
    address: IPAddress | None,
    ways: Mapping[IPAddress, IPAddress],
) -> ServiceBinding:
    """The director is reached at the address from which it sends to the guest, unless another is
    configured."""
    found = [ways[address]] if address is not None and address in ways else []
    gateways = {family_of(each): each for each in (*found, *side.gateways)}
    return ServiceBinding(service=service, side=side, address=address, gateways=gateways)


def _agree(name: str, places: tuple[ServiceBinding, ...]) -> None:
    """One guest has one system and is reached in one way."""
    for key in ("delivery", "system", "init", "ssh", "table"):
        said = {getattr(place.side, key): place.service.name for place in places}
        if len(said) > 1:
            one, other, *_ = said.values()
            raise NeedsError(
                f"services {one} and {other} say different things of guest {name}: "
                f"guest-side.{key} is " + " and ".join(str(each or "left out") for each in said),
                hint="say the same in both, or once under defaults",
            )
