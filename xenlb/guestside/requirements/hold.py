"""Compiler from the services of a guest to the settings of its hold: pure.

The hold is a script in the guest. It delays the guest's shutdown until the connections to its
services have ended. It reads its settings as NAME=VALUE lines and never executes them. Values are
numbers, addresses, UUIDs, fixed words and hexadecimal digits, never names of guests or services.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv6Address
from uuid import UUID

from xenlb.ipvs.table import AddressKey, Forwarding, IPAddress, MarkKey, Protocol
from xenlb.model.settings import DrainUntil, ServiceSettings

STOP_MARGIN = 30  # seconds beyond drain.timeout before systemd kills the hold


class NotifyVia(StrEnum):
    """The channel by which a guest notifies its host of its shutdown."""

    XENSTORE = "xenstore"
    VIRTIO = "virtio"
    TCP = "tcp"
    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """Connections to wait for, by their local end.

    `address` None: any address of the guest but loopback. `port` None: every port; with any
    address, every port that the guest listens on but 22, which an administrator may be using.
    """

    address: IPAddress | None
    port: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """The settings of a hold.

    `timeout`: whole seconds. `agent` and `secret`, for NotifyVia.TCP: the address where the agent
    listens, and the guest's secret.
    """

    uuid: UUID
    tell: NotifyVia
    timeout: int
    until: DrainUntil
    watches: tuple[Watch, ...]
    agent: tuple[IPAddress, int] | None = None
    secret: str = ""


def notify_via_of(uri: str) -> NotifyVia:
    """The channel that the driver of a libvirt URI offers.

    The agent sees the xenstore of its own host only. QEMU's events reach it from other hosts too.
    """
    scheme, _, rest = uri.partition("://")
    driver = scheme.partition("+")[0].lower()
    if driver == "xen" and rest.startswith("/"):
        return NotifyVia.XENSTORE
    return NotifyVia.VIRTIO if driver == "qemu" else NotifyVia.TCP


def reachable_notify_via(uri: str, agent: tuple[IPAddress, int] | None) -> NotifyVia:
    """The channel of the driver; NONE instead of TCP if no agent listens."""
    via = notify_via_of(uri)
    return NotifyVia.NONE if via is NotifyVia.TCP and agent is None else via


def compile_hold(
    services: Iterable[ServiceSettings],
    uuid: UUID,
    *,
    tell: NotifyVia,
    agent: tuple[IPAddress, int] | None = None,
    secret: str = "",
) -> Hold:
    """The hold of a guest in one or more services; the longest of their drains counts.

    UDP and SCTP have no connections to wait for. Raises ValueError for TCP without agent or secret.
    """
    services = tuple(services)
    if tell is NotifyVia.TCP and not (agent and secret):
        raise ValueError("to notify by TCP needs an agent that listens, and a secret")
    watches = dict.fromkeys(watch for service in services for watch in _watches(service))
    wait_for_all = any(service.drain.until is DrainUntil.ALL for service in services)
    return Hold(
        uuid=uuid,
        tell=tell,
        timeout=max(math.ceil(service.drain.timeout) for service in services),
        until=DrainUntil.ALL if wait_for_all else DrainUntil.ESTABLISHED,
        watches=tuple(watches),
        agent=agent if tell is NotifyVia.TCP else None,
        secret=secret if tell is NotifyVia.TCP else "",
    )


def _watches(service: ServiceSettings) -> Iterable[Watch]:
    """With masquerading the destination is the guest's own address, else the service's."""
    masqueraded = service.forwarding is Forwarding.MASQUERADE
    for key in service.kernel_keys():
        match key:
            case MarkKey():
                # Only the firewall rules define the addresses and ports of a mark.
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
        "# Settings of xenlb-hold, made by `xenlb guest render` on the host.",
        f"tell={hold.tell}",
        f"timeout={hold.timeout}",
        f"until={hold.until}",
    ]
    if hold.agent is not None:
        if not set(hold.secret) <= set("0123456789abcdef"):
            raise ValueError("a secret has hexadecimal digits only")
        address, port = hold.agent
        lines += [f"agent={address} {port}", f"uuid={hold.uuid}", f"secret={hold.secret}"]
    lines += [f"watch={_address(watch.address)} {watch.port or 'any'}" for watch in hold.watches]
    return "\n".join(lines) + "\n"


def _address(address: IPAddress | None) -> str:
    match address:
        case None:
            return "any"
        case IPv6Address():
            return address.exploded.upper()  # the script parses the full form only
        case _:
            return str(address)


def template_values(hold: Hold) -> Mapping[str, int]:
    """The values of the hold's templates, which are numbers only."""
    return {"timeout_stop": hold.timeout + STOP_MARGIN}
