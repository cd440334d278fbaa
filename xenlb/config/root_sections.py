"""The sections `libvirt`, `guests` and `director`: what applies to this host, not to a service."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from xenlb.config import scalars
from xenlb.config.config_node import ConfigNode
from xenlb.config.invalid_value import InvalidValue
from xenlb.config.keys import ConfigValue, ValueKind, choice, duration, key, parsed, text
from xenlb.ipvs.table import IPAddress
from xenlb.model.settings import KEEPALIVE, AddressPolicy, IPNetwork, SysctlPolicy

T = TypeVar("T")


def _distinct(parse: Callable[[str], T], example: str, **items: Any) -> ValueKind[tuple[T, ...]]:
    """A list without repetition."""

    def parse_list(node: ConfigNode) -> tuple[T, ...]:
        first_paths: dict[T, str] = {}

        def parse_item(item: ConfigNode) -> T:
            value = item.parsed(parse)
            if value in first_paths:
                raise InvalidValue(
                    f"{value} appears twice",
                    hint=f"it is {first_paths[value]} already: remove one",
                )
            first_paths[value] = item.path
            return value

        return node.parsed_items(parse_item, example)

    schema = {"type": "array", "uniqueItems": True, "items": {"type": "string", **items}}
    return ValueKind(parse_list, schema)


_URI_PATTERN: Final = f"^({'|'.join(scalars.DRIVERS)})(\\+({'|'.join(scalars.TRANSPORTS)}))?://"


@dataclass(frozen=True, slots=True, kw_only=True)
class LibvirtDraft:
    """The keys of `libvirt`."""

    uris: ConfigValue[tuple[str, ...]] = key(
        _distinct(scalars.libvirt_uri, "[xen:///system]", pattern=_URI_PATTERN),
        (),
        "The hosts whose guests are watched. Default: libvirt's own default URI.",
    )
    keepalive: ConfigValue[float] = key(
        duration(4, 600),
        KEEPALIVE,
        "The time without an answer after which a connection to libvirtd counts as lost; 4s to"
        " 10m.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestsDraft:
    """The keys of `guests`."""

    networks: ConfigValue[tuple[IPNetwork, ...]] = key(
        _distinct(scalars.network, "[10.0.0.0/24]", pattern="/"),
        (),
        "Networks in which guests may have addresses, among those that this host is connected to."
        " Default: all of these.",
    )
    listen: ConfigValue[tuple[IPAddress, int] | None] = key(
        parsed(scalars.listen_endpoint, pattern=r"^(\[[0-9A-Fa-f:.]+\]|[0-9.]+):[0-9]{1,5}$"),
        None,
        "ADDRESS:PORT of this host, at which guests without xenstore and virtio report their"
        " shutdown by TCP. Default: none.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectorDraft:
    """The keys of `director`."""

    interface: ConfigValue[str | None] = key(
        text(scalars.interface, pattern=r"^[^/:\s]{1,15}$"),
        None,
        "The interface of the service addresses.",
    )
    addresses: ConfigValue[AddressPolicy] = key(
        choice(AddressPolicy),
        AddressPolicy.MANAGE,
        "manage: put the service addresses on the interface; leave: another program does.",
    )
    sysctls: ConfigValue[SysctlPolicy] = key(
        choice(SysctlPolicy),
        SysctlPolicy.IPVS,
        "ipvs: set the net.ipv4.vs.* needed, report the rest; check: report only; apply: set and"
        " persist all.",
    )
