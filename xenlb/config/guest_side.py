"""The section `guest-side`: how xenlb reaches and configures the inside of guests.

It belongs to a service, or to one server of it, whose keys override the service's.
"""

from dataclasses import dataclass
from typing import Any, Final

from xenlb.config import scalars
from xenlb.config.config_node import ConfigNode
from xenlb.config.invalid_value import InvalidValue
from xenlb.config.keys import (
    BOOLEAN,
    ConfigValue,
    ValueKind,
    choice,
    key,
    plain_values,
    text,
    whole_number,
)
from xenlb.config.problem_report import ProblemReport
from xenlb.ipvs.table import Forwarding, IPAddress
from xenlb.model.guest_side import Delivery, GuestSide, Init, OnBoot, ReturnPath, System

_DEFAULT: Final = GuestSide()
# 253 … 255 are the kernel's own tables.
LOWEST_TABLE: Final = 256
HIGHEST_TABLE: Final = 65000


def _gateways(node: ConfigNode) -> tuple[IPAddress, ...]:
    """ADDRESS, or one of each family."""
    try:
        items = node.items("[10.0.0.1, 'fd00::1']")
    except InvalidValue:
        return (node.parsed(scalars.server_address),)
    gateways = tuple(item.parsed(scalars.server_address) for item in items)
    if not gateways or len({address.version for address in gateways}) < len(gateways):
        raise InvalidValue("is not one address of each family", hint="write [10.0.0.1, 'fd00::1']")
    return gateways


def _addresses(node: ConfigNode) -> tuple[IPAddress, ...]:
    addresses = node.parsed_items(lambda item: item.parsed(scalars.service_address), "[192.0.2.10]")
    if len(set(addresses)) < len(addresses):
        raise InvalidValue("an address appears twice", hint="remove one")
    return addresses


_STRING: Final = {"type": "string"}
_GATEWAYS: Final = ValueKind(
    _gateways,
    {"oneOf": [_STRING, {"type": "array", "minItems": 1, "maxItems": 2, "items": _STRING}]},
)
_ADDRESSES: Final = ValueKind(_addresses, {"type": "array", "uniqueItems": True, "items": _STRING})


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestSideDraft:
    """The keys of `guest-side`."""

    delivery: ConfigValue[Delivery | None] = key(
        choice(Delivery),
        None,
        "How files get into the guests: ssh, QEMU's guest agent, the file system of a guest that is"
        " off, or xenstore, from which guests configure themselves.",
    )
    on_boot: ConfigValue[OnBoot] = key(
        choice(OnBoot),
        _DEFAULT.on_boot,
        "What a guest must pass before it gets weight: apply installs what is missing, verify only"
        " inspects.",
    )
    system: ConfigValue[System | None] = key(
        choice(System), None, "What configures the guests' network. Default: detected in the guest."
    )
    init: ConfigValue[Init | None] = key(
        choice(Init), None, "What starts services in the guests. Default: detected in the guest."
    )
    interface: ConfigValue[str] = key(
        text(scalars.guest_interface, pattern=f"^{scalars.GUEST_INTERFACE}$"),
        _DEFAULT.interface,
        "The guests' interface on the director's side.",
    )
    return_path: ConfigValue[ReturnPath] = key(
        choice(ReturnPath),
        _DEFAULT.return_path,
        "With masquerade, how replies come back through the director: it is the default gateway, a"
        " rule by the guest's address, or a mark of the connection.",
    )
    gateways: ConfigValue[tuple[IPAddress, ...]] = key(
        _GATEWAYS,
        (),
        "The director as the guests reach it. One address, or one of each family. Default: from the"
        " host's routes.",
        name="gateway",
    )
    addresses: ConfigValue[tuple[IPAddress, ...]] = key(
        _ADDRESSES, (), "The service addresses of a fwmark service."
    )
    table: ConfigValue[int] = key(
        whole_number(LOWEST_TABLE, HIGHEST_TABLE),
        _DEFAULT.table,
        "The first of the routing tables in the guests, one for each interface; also the mark of"
        " their connections.",
    )
    tx_checksums: ConfigValue[bool] = key(
        BOOLEAN, _DEFAULT.tx_checksums, "false: the guests complete checksums themselves."
    )
    ssh: ConfigValue[str | None] = key(
        text(scalars.ssh_destination, pattern=f"^{scalars.SSH_DESTINATION}$"),
        None,
        "The destination for ssh. Default: root at the guest's address.",
    )

    def settings(self) -> GuestSide:
        """The settings for the model; a refused value is replaced by its default."""
        return GuestSide(**plain_values(self))


def report_problems(
    side: GuestSideDraft, report: ProblemReport, *, forwarding: Forwarding, by_mark: bool
) -> None:
    """Report keys that contradict each other or the service.

    An inherited key without meaning for the service is no problem.
    """

    def add(value: ConfigValue[Any], message: str, hint: str) -> None:
        if value.location is not None:
            report.add(value.location, message, hint)

    delivery, on_boot = side.delivery, side.on_boot
    if on_boot.value is not OnBoot.OFF and not delivery.bad:
        if delivery.value is None:
            add(on_boot, f"on-boot {on_boot.value} needs a delivery", "add delivery: ssh")
        elif delivery.value is Delivery.ROOTFS:
            add(
                on_boot,
                "rootfs reaches a guest only while it is off",
                "remove on-boot, or use another delivery",
            )
    if side.return_path.own and forwarding is not Forwarding.MASQUERADE:
        add(
            side.return_path,
            f"return-path has no meaning for forwarding {forwarding.value}",
            "remove it: replies go to the clients directly",
        )
    if side.addresses.own and not by_mark:
        add(side.addresses, "addresses are for a fwmark service", "remove them")
    if side.ssh.own and delivery.value is not Delivery.SSH and not delivery.bad:
        add(side.ssh, "a destination for ssh without delivery: ssh", "add it, or remove ssh")
