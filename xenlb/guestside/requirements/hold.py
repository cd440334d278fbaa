"""What a guest's hold needs to know: pure, from the services of the guest to its settings file.

The hold is the script templates/hold.sh, which runs in the guest and waits at its shutdown until
the connections to its services are over. It reads its settings as plain NAME=VALUE lines and never
runs them; here no value gets in that is not made of a number, an address, a UUID, a word of ours or
hexadecimal digits. Names of guests and services do not get in at all.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv6Address
from uuid import UUID

from xenlb.ipvs.table import AddressKey, Forwarding, IPAddress, MarkKey, Protocol
from xenlb.model.settings import DrainUntil, ServiceSettings

# On top of drain.timeout, before systemd ends the hold: telling the host, and a last slow look.
STOP_MARGIN = 30


class NotifyVia(StrEnum):
    """How a guest tells its host that it is about to leave."""

    XENSTORE = "xenstore"
    VIRTIO = "virtio"
    TCP = "tcp"
    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """Connections to wait for, by their local end. `address` None is any of the guest's own but
    loopback; `port` None every port, or, of any address, every port that the guest listens on but
    22: there may sit whoever types the shutdown."""

    address: IPAddress | None
    port: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """`agent` and `secret` are for Tell.TCP: where the agent listens, and by what it knows the
    guest. `timeout`: whole seconds."""

    uuid: UUID
    tell: NotifyVia
    timeout: int
    until: DrainUntil
    watches: tuple[Watch, ...]
    agent: tuple[IPAddress, int] | None = None
    secret: str = ""


def notify_via_of(uri: str) -> NotifyVia:
    """The way that the driver of a libvirt URI gives. The agent sees the xenstore of its own host
    only; QEMU's events reach it from other hosts too, through their libvirt."""
    scheme, _, rest = uri.partition("://")
    driver = scheme.partition("+")[0].lower()
    if driver == "xen" and rest.startswith("/"):
        return NotifyVia.XENSTORE
    return NotifyVia.VIRTIO if driver == "qemu" else NotifyVia.TCP


def reachable_notify_via(uri: str, agent: tuple[IPAddress, int] | None) -> NotifyVia:
    """As tell_by(); none where that would be TCP and no agent listens: the hold only waits then."""
    way = notify_via_of(uri)
    return NotifyVia.NONE if way is NotifyVia.TCP and agent is None else way


def compile_hold(
    services: Iterable[ServiceSettings],
    uuid: UUID,
    *,
    tell: NotifyVia,
    agent: tuple[IPAddress, int] | None = None,
    secret: str = "",
) -> Hold:
    """The hold of a guest in these services, of which there is at least one.

    There is one hold for all of them, so it waits as the most patient of their drains. Of UDP and
    SCTP there is nothing to count. Raises ValueError where Tell.TCP has no agent or secret.
    """
    mine = tuple(services)
    if tell is NotifyVia.TCP and not (agent and secret):
        raise ValueError("to tell by TCP takes an agent that listens, and a secret")
    watches = dict.fromkeys(watch for service in mine for watch in _watches(service))
    return Hold(
        uuid=uuid,
        tell=tell,
        timeout=max(math.ceil(service.drain.timeout) for service in mine),
        until=max(
            (service.drain.until for service in mine), key=lambda until: until is DrainUntil.ALL
        ),
        watches=tuple(watches),
        agent=agent if tell is NotifyVia.TCP else None,
        secret=secret if tell is NotifyVia.TCP else "",
    )


def _watches(service: ServiceSettings) -> Iterable[Watch]:
    """With masquerading packets come to the guest's own address, else to the service's."""
    masqueraded = service.forwarding is Forwarding.MASQUERADE
    for key in service.kernel_keys():
        match key:
            case MarkKey():
                # Which addresses and ports have the mark only the firewall's rules know.
                yield Watch(address=None, port=None)
            case AddressKey(protocol=Protocol.TCP, address=address, port=port):
                yield Watch(
                    address=None if masqueraded else address,
                    port=(service.server_port or port or None) if masqueraded else port or None,
                )
            case AddressKey():
                pass


def settings_text(hold: Hold) -> str:
    """The settings file of hold.sh."""
    lines = [
        "# The settings of xenlb-hold; `xenlb guest render` on the host makes them.",
        f"tell={hold.tell}",
        f"timeout={hold.timeout}",
        f"until={hold.until}",
    ]
    if hold.agent is not None:
        if not set(hold.secret) <= set("0123456789abcdef"):
            raise ValueError("a secret is made of hexadecimal digits")
        address, port = hold.agent
        lines += [f"agent={address} {port}", f"uuid={hold.uuid}", f"secret={hold.secret}"]
    lines += [f"watch={_address(watch.address)} {watch.port or 'any'}" for watch in hold.watches]
    return "\n".join(lines) + "\n"


def _address(address: IPAddress | None) -> str:
    match address:
        case None:
            return "any"
        case IPv6Address():
            return address.exploded.upper()  # the script knows no abbreviation
        case _:
            return str(address)


def template_values(hold: Hold) -> Mapping[str, int]:
    """What the templates say of this hold. Numbers only: they cannot be anything else there."""
    return {"timeout_stop": hold.timeout + STOP_MARGIN}
