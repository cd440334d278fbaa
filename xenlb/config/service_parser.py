"""Read a service: every key on its own, merged over `defaults`."""

from typing import Final

from xenlb.config import check_parser, scalars, yaml_nodes
from xenlb.config.config_node import ConfigNode, optional_values
from xenlb.config.draft import (
    OWN_KEYS,
    SERVICE_KEYS,
    DrainDraft,
    MemberDraft,
    ServiceDraft,
    TunnelDraft,
)
from xenlb.config.guest_side import GuestSideDraft
from xenlb.config.invalid_value import InvalidValue
from xenlb.config.keys import (
    ConfigValue,
    KeyLayers,
    is_mapping,
    key_names,
    plain_values,
)
from xenlb.config.problem_report import Location
from xenlb.config.yaml_nodes import NodeKind, Scalar
from xenlb.ipvs.table import IPAddress
from xenlb.model.settings import DrainPolicy
from xenlb.untrusted.printable import quoted


def read_service(name: str, location: Location, layers: KeyLayers) -> ServiceDraft:
    """The draft of a service; every refused value is in the report."""
    sides = layers.nested("guest-side", GuestSideDraft)
    drain = layers.nested("drain", DrainDraft).read_keys(DrainDraft)
    tunnel = layers.nested("tunnel", TunnelDraft)
    return layers.read_keys(
        ServiceDraft,
        name=name,
        location=location,
        tunnel=tunnel.read_keys(TunnelDraft, written=layers.read("tunnel", _mapping, None)),
        check=check_parser.read_checks(layers),
        drain=DrainPolicy(**plain_values(drain)),
        servers=layers.read("servers", lambda node: _servers(node, sides), ()),
        side=sides.read_keys(GuestSideDraft),
    )


def read_defaults(node: ConfigNode | None) -> dict[str, ConfigNode]:
    """The keys of `defaults`; they are checked even if no service uses them."""
    defaults = optional_values(node, SERVICE_KEYS)
    for name in OWN_KEYS:
        if name in defaults:
            defaults.pop(name).add_problem(
                "belongs to one service and has no default", "move it to its service"
            )
    location = node.location if node is not None else Location(1, 1, "defaults")
    read_service("", location, KeyLayers(own={}, inherited=defaults))
    return defaults


def _mapping(node: ConfigNode) -> None:
    """Refuse what is no mapping."""
    if not is_mapping(node):
        node.entries()


def _servers(node: ConfigNode, sides: KeyLayers) -> tuple[MemberDraft, ...]:
    """The readable servers; a bad entry is reported and does not hide the others."""
    return node.parsed_items(lambda item: _server(item, sides), "- guest: mail1", skip_bad=True)


def _server(node: ConfigNode, sides: KeyLayers) -> MemberDraft:
    if isinstance(node.node, Scalar) and node.node.kind is NodeKind.TEXT:
        text = node.scalar().text[:60]
        raise InvalidValue(
            f"{quoted(text)} is neither guest nor host", hint=f"write - guest: {text}"
        )
    return _plain_host(node) or _member(node, sides)


_NO_TEXT: Final[ConfigValue[str | None]] = ConfigValue(None)
_NO_ADDRESS: Final[ConfigValue[IPAddress | None]] = ConfigValue(None)
_NO_WEIGHT: Final[ConfigValue[int | None]] = ConfigValue(None)


def _plain_host(node: ConfigNode) -> MemberDraft | None:
    """The result of _member() for a valid `host: ADDRESS` alone, much faster.

    Ten thousand such servers are most of the time that a large file takes.
    """
    match node.node:
        case yaml_nodes.Mapping(
            entries=((Scalar(text="host", refused=None), Scalar(refused=None) as value),),
            refused=None,
        ):
            address = scalars.plain_ipv4(value.text)
            if address is not None:
                location = Location(value.line, value.column, f"{node.path}.host"[:200])
                return MemberDraft(
                    guest=_NO_TEXT,
                    host=ConfigValue(address, location),
                    address=_NO_ADDRESS,
                    network=ConfigValue(None),
                    weight=_NO_WEIGHT,
                    side=None,
                )
    return None


def _member(node: ConfigNode, sides: KeyLayers) -> MemberDraft:
    layers = KeyLayers(own=node.values_by_key(key_names(MemberDraft)))
    own_side = layers.own.get("guest-side")
    side = None
    if own_side is not None:
        side = KeyLayers(
            own=optional_values(own_side, key_names(GuestSideDraft)),
            inherited={**sides.inherited, **sides.own},
        ).read_keys(GuestSideDraft)
    member = layers.read_keys(MemberDraft, side=side)
    if member.network.given and (member.host.given or member.address.given):
        layers.own["network"].add_problem(
            "the network is where an address is looked for, and this server has one", "remove it"
        )
    if own_side is not None and member.host.given:
        own_side.add_problem("a host is no guest, so nothing is put into it", "remove guest-side")
    if member.guest.given and member.host.given:
        layers.own["host"].add_problem(
            "guest and host exclude each other", "make two servers of them"
        )
    elif not member.guest.given and not member.host.given:
        node.add_problem("is neither guest nor host", "add guest: NAME or host: ADDRESS")
    if member.host.given and member.address.given and not member.guest.given:
        layers.own["address"].add_problem(
            "a host is its address already", "remove address, or write guest instead of host"
        )
    return member
