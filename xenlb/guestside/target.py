"""A guest with its services and addresses: the input of access and of the compiler of needs."""

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
    """A guest to work on.

    `uri`: the real one of its libvirt. `side`: the access and the platform, the same in all
    bindings. `address`: for ssh without a configured destination. `hold` None: the guest is in no
    service. `domid` None: it is off.
    """

    name: str
    uuid: UUID
    uri: str
    side: GuestSide
    address: IPAddress | None = None
    bindings: tuple[ServiceBinding, ...] = ()
    hold: Hold | None = None
    domid: int | None = None

    @property
    def container(self) -> bool:
        """Whether the guest shares the host's kernel."""
        return self.uri.startswith(("lxc:", "lxc+", "openvz", "vz"))


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
    """The target for a guest; `addresses`: of its servers, by name of the service.

    The gateway is the address from which the director sends to the guest, unless one is configured.
    Raises NeedsError where services contradict each other.
    """
    from xenlb.director.interface import source_addresses  # noqa: PLC0415  (loads pyroute2)

    director_addresses = await source_addresses(set(addresses.values())) if addresses else {}
    bindings = []
    for service in services:
        side, address = side_of(service, name, uuid), addresses.get(service.name)
        routed = [director_addresses[address]] if address in director_addresses else []
        gateways = {family_of(gateway): gateway for gateway in (*routed, *side.gateways)}
        bindings.append(
            ServiceBinding(service=service, side=side, address=address, gateways=gateways)
        )
    _check_same_side(name, bindings)
    return GuestTarget(
        name=name,
        uuid=uuid,
        uri=uri,
        side=bindings[0].side if bindings else GuestSide(),
        address=min(addresses.values(), key=lambda address: address.version, default=None),
        bindings=tuple(bindings),
        hold=hold,
        domid=domid,
    )


def _check_same_side(name: str, bindings: Iterable[ServiceBinding]) -> None:
    """A guest has one platform and one access."""
    for key in ("delivery", "system", "init", "ssh", "table"):
        values = {getattr(binding.side, key): binding.service.name for binding in bindings}
        if len(values) > 1:
            one, other, *_ = values.values()
            raise NeedsError(
                f"services {one} and {other} differ in guest-side.{key} of guest {name}: "
                + " and ".join("default" if value is None else str(value) for value in values),
                hint="set the same value in both, or set it once under defaults",
            )
