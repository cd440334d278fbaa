"""Which guests are inspected or configured from this host, and for which services."""

from dataclasses import dataclass

from xenlb.ipvs.table import IPAddress
from xenlb.model.domain import GuestId
from xenlb.model.guest import Phase
from xenlb.model.guest_side import Delivery, OnBoot
from xenlb.model.membership import membership, services_of
from xenlb.model.settings import ServiceSettings
from xenlb.model.state import State


@dataclass(frozen=True, slots=True, kw_only=True)
class ProvisionRequest:
    """Why a guest is inspected; another request is another inspection.

    `listen`: where guests report by TCP. `addresses`: of its servers, by service name. `apply`:
    apply what is missing. `configures_itself`: the guest reads its settings from xenstore.
    """

    name: str
    listen: tuple[IPAddress, int] | None
    booted: float
    incarnation: int | None
    services: tuple[ServiceSettings, ...]
    addresses: tuple[tuple[str, IPAddress], ...]
    apply: bool
    configures_itself: bool = False


def provision_requests(state: State) -> dict[GuestId, ProvisionRequest]:
    """Return the request for each running guest whose service has `on-boot`."""
    services = [service for service in state.settings.services if _has_on_boot(service)]
    if not services:
        return {}
    addresses: dict[GuestId, dict[str, IPAddress]] = {}
    for service in state.settings.services:
        for candidate in state.derived.candidates[service.name]:
            if candidate.owner is not None and candidate.server is not None:
                known = addresses.setdefault(candidate.owner, {})
                known[service.name] = candidate.server.key.address
    requests = {}
    for guest in state.guests.values():
        if guest.phase is not Phase.UP:
            continue
        members = (membership(service, guest) for service in services)
        sides = [member.side for member in members if member is not None]
        on_boot = {side.on_boot for side in sides}
        if on_boot - {OnBoot.OFF}:
            requests[guest.id] = ProvisionRequest(
                name=guest.name,
                listen=state.settings.listen,
                booted=guest.booted,
                incarnation=guest.incarnation,
                services=services_of(state, guest),
                addresses=tuple(addresses.get(guest.id, {}).items()),
                apply=OnBoot.APPLY in on_boot,
                configures_itself=all(side.delivery is Delivery.XENSTORE for side in sides),
            )
    return requests


def _has_on_boot(service: ServiceSettings) -> bool:
    sides = (service.side, *(member.side for member in service.servers))
    return any(side is not None and side.on_boot is not OnBoot.OFF for side in sides)
