"""Reads `guest-side`, what is said of the inside of guests: with a service, or with one server of
it, whose keys go over the service's."""

from dataclasses import dataclass
from typing import Any, Final

from xenlb.config import scalars
from xenlb.config.cursor import Cursor, Fields, Report, Value
from xenlb.config.invalid_value import InvalidValue
from xenlb.ipvs.table import Forwarding, IPAddress
from xenlb.model.guest_side import Delivery, GuestSide, Init, OnBoot, ReturnPath, System

SIDE_KEYS: Final = (
    "delivery",
    "on-boot",
    "system",
    "init",
    "interface",
    "return-path",
    "gateway",
    "addresses",
    "table",
    "tx-checksums",
    "ssh",
)
# 253 … 255 are the kernel's own tables.
LOWEST_TABLE: Final = 256
HIGHEST_TABLE: Final = 65000


@dataclass(frozen=True, slots=True, kw_only=True)
class SideDraft:
    delivery: Value[Delivery | None]
    on_boot: Value[OnBoot]
    system: Value[System | None]
    init: Value[Init | None]
    interface: Value[str]
    return_path: Value[ReturnPath]
    gateways: Value[tuple[IPAddress, ...]]
    addresses: Value[tuple[IPAddress, ...]]
    table: Value[int]
    tx_checksums: Value[bool]
    ssh: Value[str | None]

    def settings(self) -> GuestSide:
        return GuestSide(
            delivery=self.delivery.value,
            on_boot=self.on_boot.value,
            system=self.system.value,
            init=self.init.value,
            interface=self.interface.value,
            return_path=self.return_path.value,
            gateways=self.gateways.value,
            addresses=self.addresses.value,
            table=self.table.value,
            tx_checksums=self.tx_checksums.value,
            ssh=self.ssh.value,
        )


def read(fields: Fields) -> SideDraft:
    default = GuestSide()
    return SideDraft(
        delivery=fields.read("delivery", lambda c: c.choice(Delivery), None),
        on_boot=fields.read("on-boot", lambda c: c.choice(OnBoot), default.on_boot),
        system=fields.read("system", lambda c: c.choice(System), None),
        init=fields.read("init", lambda c: c.choice(Init), None),
        interface=fields.read(
            "interface", lambda c: c.name(scalars.guest_interface), default.interface
        ),
        return_path=fields.read("return-path", lambda c: c.choice(ReturnPath), default.return_path),
        gateways=fields.read("gateway", _gateways, ()),
        addresses=fields.read("addresses", _addresses, ()),
        table=fields.read(
            "table", lambda c: c.whole_number(LOWEST_TABLE, HIGHEST_TABLE), default.table
        ),
        tx_checksums=fields.read("tx-checksums", Cursor.true_or_false, default.tx_checksums),
        ssh=fields.read("ssh", lambda c: c.name(scalars.ssh_destination), None),
    )


def _gateways(cursor: Cursor) -> tuple[IPAddress, ...]:
    """ADDRESS, or one of each family."""
    try:
        items = cursor.items("[10.0.0.1, 'fd00::1']")
    except InvalidValue:
        return (cursor.parsed(scalars.server_address),)
    found = tuple(item.parsed(scalars.server_address) for item in items)
    if not found or len({address.version for address in found}) < len(found):
        raise InvalidValue("is not one address of each family", hint="write [10.0.0.1, 'fd00::1']")
    return found


def _addresses(cursor: Cursor) -> tuple[IPAddress, ...]:
    found = cursor.each(lambda item: item.parsed(scalars.service_address), "[192.0.2.10]")
    if len(set(found)) < len(found):
        raise InvalidValue("an address stands here twice", hint="remove one")
    return found


def report_problems(
    side: SideDraft, report: Report, *, forwarding: Forwarding, by_mark: bool
) -> None:
    """What the keys mean together. A key of another level without meaning here is no error."""

    def add(value: Value[Any], message: str, hint: str) -> None:
        if value.place is not None:
            report.add(value.place, message, hint)

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
