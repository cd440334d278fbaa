"""Finds the guest that an operator names, with its services and addresses.

The agent has read the metadata of all guests; without an agent they are read from libvirt.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path
from uuid import UUID

from xenlb import clock
from xenlb.control import client
from xenlb.control.protocol import ControlError
from xenlb.ipvs.table import IPAddress
from xenlb.model.settings import ServiceSettings, Settings
from xenlb.untrusted.printable import quoted


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestIdentity:
    """A guest and its part in services.

    `uri`: of its libvirt, or OWN_CHOICE. `addresses`: those known of its servers, by service name.
    `domid`: of its domain while it runs.
    """

    name: str
    uuid: UUID
    uri: str
    services: tuple[ServiceSettings, ...]
    addresses: Mapping[str, IPAddress]
    domid: int | None


def by_agent(socket: Path, settings: Settings, text: str) -> GuestIdentity:
    """Raises ControlError: no agent runs, or it knows no such guest."""
    answer = client.call(socket, "why", guest=text)
    if not isinstance(answer, Mapping):
        raise ControlError(
            "the agent's answer cannot be read",
            hint="restart the agent if it is of another version",
        )
    names = set(answer["services"])
    return GuestIdentity(
        name=str(answer["guest"]),
        uuid=UUID(str(answer["uuid"])),
        uri=str(answer["uri"]),
        services=tuple(service for service in settings.services if service.name in names),
        addresses={
            str(server["service"]): ip_address(server["address"])
            for server in answer["servers"]
            if server["address"] is not None
        },
        domid=None if answer["phase"] == "absent" else answer["domain_id"],
    )


def by_libvirt(settings: Settings, text: str) -> GuestIdentity:
    """Raises SourceUnavailable without libvirt, ControlError for no such guest, or several."""
    from xenlb.control import answers  # noqa: PLC0415
    from xenlb.model.events import Configured  # noqa: PLC0415
    from xenlb.model.guest import Phase  # noqa: PLC0415
    from xenlb.model.membership import addresses_of, services_of  # noqa: PLC0415
    from xenlb.model.reducer import reduce  # noqa: PLC0415
    from xenlb.model.settings import needed_uris  # noqa: PLC0415
    from xenlb.model.state import State  # noqa: PLC0415
    from xenlb.oneshot.collect import collect_addresses  # noqa: PLC0415  (loads asyncio and libvirt)

    settings = replace(settings, uris=needed_uris(settings))
    state = collect_addresses(reduce(State(), Configured(at=clock.now(), settings=settings)).state)
    guests = answers.guests_named(state, text)
    match guests:
        case (guest,):
            return GuestIdentity(
                name=guest.name,
                uuid=guest.id.uuid,
                uri=guest.id.uri,
                services=services_of(state, guest),
                addresses=addresses_of(state, guest),
                domid=None if guest.phase is Phase.ABSENT else guest.incarnation,
            )
        case ():
            raise ControlError(
                f"no guest {quoted(text)} is known here",
                hint="virsh list --all shows the guests of this host",
            )
        case _:
            raise ControlError(
                f"several guests are called {quoted(text)}",
                hint="give a UUID: " + ", ".join(f"{g.id.uuid} ({g.id.uri})" for g in guests),
            )
