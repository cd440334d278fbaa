"""Reads a service: which keys there are, merged over the defaults, and what each may say.

Keys are looked at one by one here; what they mean together is in service_rules.py.
"""

from typing import Final

from xenlb.config import check_parser, guest_side, quantities, scalars, yaml_nodes
from xenlb.config.cursor import Cursor, Fields, Location, Value, keys_of
from xenlb.config.draft import Draft, MemberDraft, TunnelDraft
from xenlb.config.invalid_value import InvalidValue, quoted
from xenlb.config.yaml_nodes import NodeKind, Scalar
from xenlb.ipvs.table import (
    Family,
    Forwarding,
    IPAddress,
    SchedulerFlags,
    TunnelChecksum,
    TunnelType,
)
from xenlb.model.settings import DrainPolicy, DrainUntil, OnFailure, Port

# Those that say which service it is and who serves it have no common default.
OWN_KEYS: Final = ("address", "fwmark", "ports", "servers")
DEFAULT_KEYS: Final = (
    "family",
    "scheduler",
    "scheduler-flags",
    "one-packet",
    "persistence",
    "persistence-netmask",
    "forwarding",
    "tunnel",
    "server-port",
    "weight",
    "upper-threshold",
    "lower-threshold",
    "check",
    "flush",
    "on-failure",
    "keep-in-service",
    "slow-start",
    "sorry-server",
    "drain",
    "from-metadata",
    "guest-side",
)
SERVICE_KEYS: Final = OWN_KEYS + DEFAULT_KEYS
SERVER_KEYS: Final = ("guest", "host", "address", "network", "weight", "guest-side")
TUNNEL_KEYS: Final = ("type", "port", "checksum")
DRAIN_KEYS: Final = ("timeout", "until", "udp", "shutdown-grace")

# flag → the scheduler that reads it, and its bit
SCHEDULER_FLAGS: Final = {
    "sh-fallback": ("sh", SchedulerFlags.ONE),
    "sh-port": ("sh", SchedulerFlags.TWO),
    "mh-fallback": ("mh", SchedulerFlags.ONE),
    "mh-port": ("mh", SchedulerFlags.TWO),
}
READ_ONLY: Final = (Forwarding.LOCALNODE, Forwarding.BYPASS)
FORWARDING_ELSEWHERE: Final = {
    **dict.fromkeys(("nat", "masq", "masquerading"), Forwarding.MASQUERADE),
    **dict.fromkeys(("dr", "gate", "gateway", "direct", "droute"), Forwarding.GATEWAYING),
    **dict.fromkeys(("tun", "ipip", "tunneling"), Forwarding.TUNNEL),
}
MOST_WEIGHT: Final = 65535
U32: Final = 2**32 - 1
THRESHOLD: Final = 2**31 - 1  # Linux 6.12 refuses more


def read(name: str, place: Location, fields: Fields) -> Draft:
    """The draft of a service; every value that cannot be taken is in the report."""
    sides = _side_fields(fields)
    return Draft(
        name=name,
        place=place,
        address=fields.read("address", lambda c: c.parsed(scalars.service_address), None),
        fwmark=fields.read("fwmark", lambda c: c.whole_number(1, U32), None),
        written_family=fields.read("family", lambda c: c.choice(Family), Family.INET),
        placed_ports=fields.read("ports", _ports, ()),
        scheduler=fields.read(
            "scheduler", lambda c: c.word(scalars.SCHEDULERS, "a scheduler of the kernel"), "wlc"
        ),
        flags=fields.read("scheduler-flags", _flags, ()),
        one_packet=fields.read("one-packet", Cursor.true_or_false, False),
        persistence=fields.read("persistence", lambda c: c.parsed(quantities.persistence), None),
        netmask=fields.read("persistence-netmask", lambda c: c.parsed(scalars.netmask), None),
        forwarding=fields.read("forwarding", _forwarding, Forwarding.MASQUERADE),
        tunnel=_tunnel(fields),
        server_port=fields.read("server-port", _port_number, None),
        weight=fields.read("weight", _weight, 1),
        upper_threshold=fields.read("upper-threshold", lambda c: c.whole_number(0, THRESHOLD), 0),
        lower_threshold=fields.read("lower-threshold", lambda c: c.whole_number(0, THRESHOLD), 0),
        check=check_parser.read(fields),
        flush=fields.read("flush", Cursor.true_or_false, False),
        on_failure=fields.read("on-failure", lambda c: c.choice(OnFailure), OnFailure.REMOVE),
        keep_in_service=fields.read("keep-in-service", lambda c: c.parsed(quantities.percent), 0.0),
        slow_start=fields.read("slow-start", lambda c: _duration(c, 0, quantities.DAY), 0.0),
        sorry_server=fields.read("sorry-server", lambda c: c.parsed(scalars.endpoint), None),
        drain=_drain(fields),
        servers=fields.read("servers", lambda c: _servers(c, sides), ()),
        from_metadata=fields.read("from-metadata", Cursor.true_or_false, False),
        side=guest_side.read(sides),
    )


def read_defaults(cursor: Cursor | None) -> dict[str, Cursor]:
    """The keys of `defaults`; they are checked even where no service uses them."""
    found = keys_of(cursor, SERVICE_KEYS)
    for key in OWN_KEYS:
        if key in found:
            found.pop(key).wrong(
                "belongs to one service and has no default", "move it to its service"
            )
    place = cursor.place if cursor is not None else Location(line=1, column=1, path="defaults")
    read("", place, Fields(own={}, inherited=found))
    return found


def _forwarding(cursor: Cursor) -> Forwarding:
    return cursor.choice(Forwarding, also=FORWARDING_ELSEWHERE, without=READ_ONLY)


def _duration(cursor: Cursor, least: float, most: float) -> float:
    return cursor.parsed(lambda text: quantities.duration(text, least=least, most=most))


def _port_number(cursor: Cursor) -> int:
    return cursor.whole_number(1, 65535)


def _weight(cursor: Cursor) -> int:
    return cursor.whole_number(0, MOST_WEIGHT)


def _ports(cursor: Cursor) -> tuple[tuple[Port, Location], ...]:
    ports = cursor.each(lambda item: (item.parsed(scalars.port), item.place), "[25, 465/tcp]")
    if not ports:
        raise InvalidValue("has no port", hint="write at least one: [25]")
    return ports


def _flags(cursor: Cursor) -> tuple[str, ...]:
    known = tuple(SCHEDULER_FLAGS)

    def flag(item: Cursor) -> str:
        return item.word(known, "a flag")

    flags = cursor.each(flag, "[sh-fallback, sh-port]")
    if len(set(flags)) < len(flags):
        raise InvalidValue("a flag stands here twice", hint="remove one")
    return flags


def _section(fields: Fields, key: str, known: tuple[str, ...]) -> Fields:
    """A nested mapping, its keys merged over those of the same mapping under defaults."""

    def keys(cursor: Cursor | None) -> dict[str, Cursor]:
        return keys_of(cursor, known) if _is_mapping(cursor) else {}

    return Fields(own=keys(fields.own.get(key)), inherited=keys(fields.inherited.get(key)))


def _is_mapping(cursor: Cursor | None) -> bool:
    return cursor is not None and isinstance(cursor.node, yaml_nodes.Mapping)


def _tunnel(fields: Fields) -> TunnelDraft:
    def section(cursor: Cursor) -> None:
        if not _is_mapping(cursor):
            cursor.entries()  # raises what it is instead

    nested = _section(fields, "tunnel", TUNNEL_KEYS)
    return TunnelDraft(
        section=fields.read("tunnel", section, None),
        type=nested.read("type", lambda c: c.choice(TunnelType), TunnelType.IPIP),
        port=nested.read("port", _port_number, None),
        checksum=nested.read("checksum", lambda c: c.choice(TunnelChecksum), TunnelChecksum.NONE),
    )


def _drain(fields: Fields) -> DrainPolicy:
    default = DrainPolicy()
    for layer in (fields.own, fields.inherited):
        if not _is_mapping(layer.get("drain")):
            keys_of(layer.get("drain"), DRAIN_KEYS)  # reports what it is instead
    nested = _section(fields, "drain", DRAIN_KEYS)
    week = 7 * quantities.DAY
    return DrainPolicy(
        timeout=nested.read("timeout", lambda c: _duration(c, 0, week), default.timeout).value,
        until=nested.read("until", lambda c: c.choice(DrainUntil), default.until).value,
        udp=nested.read("udp", lambda c: _duration(c, 0, week), default.udp).value,
        shutdown_grace=nested.read(
            "shutdown-grace", lambda c: _duration(c, 0, week), default.shutdown_grace
        ).value,
    )


def _side_fields(fields: Fields) -> Fields:
    for layer in (fields.own, fields.inherited):
        if not _is_mapping(layer.get("guest-side")):
            keys_of(layer.get("guest-side"), guest_side.SIDE_KEYS)  # reports what it is instead
    return _section(fields, "guest-side", guest_side.SIDE_KEYS)


def _servers(cursor: Cursor, sides: Fields) -> tuple[MemberDraft, ...]:
    """Those that can be read; one that is no mapping is reported, and does not hide the others."""
    members = []
    for item in cursor.items("- guest: mail1"):
        try:
            if isinstance(item.node, Scalar) and item.node.kind is NodeKind.TEXT:
                text = item.raw().text[:60]
                raise InvalidValue(
                    f"{quoted(text)} is neither guest nor host", hint=f"write - guest: {text}"
                )
            members.append(_plain_host(item) or _member(item, sides))
        except InvalidValue as wrong:
            item.report_wrong(wrong)
    return tuple(members)


_NO_GUEST: Final[Value[str | None]] = Value(None)
_NO_ADDRESS: Final[Value[IPAddress | None]] = Value(None)
_NO_WEIGHT: Final[Value[int | None]] = Value(None)


def _plain_host(cursor: Cursor) -> MemberDraft | None:
    """What _member() makes of `host: ADDRESS` and nothing else, where nothing is wrong with it.

    There may be ten thousand of them, and this is the most of what a large file costs.
    """
    match cursor.node:
        case yaml_nodes.Mapping(
            entries=((Scalar(text="host", trap=None), Scalar(trap=None) as node),), trap=None
        ):
            address = scalars.plain_ipv4(node.text)
            if address is not None:
                place = Location(node.line, node.column, f"{cursor.path}.host"[:200])
                return MemberDraft(_NO_GUEST, Value(address, place), _NO_ADDRESS, _NO_WEIGHT, None)
    return None


def _member(cursor: Cursor, sides: Fields) -> MemberDraft:
    fields = Fields(own=cursor.keys(SERVER_KEYS))
    own_side = fields.own.get("guest-side")
    behind = {**sides.inherited, **sides.own}
    member = MemberDraft(
        guest=fields.read("guest", Cursor.text, None),
        host=fields.read("host", lambda c: c.parsed(scalars.server_address), None),
        address=fields.read("address", lambda c: c.parsed(scalars.server_address), None),
        weight=fields.read("weight", _weight, None),
        side=None
        if own_side is None
        else guest_side.read(Fields(own=keys_of(own_side, guest_side.SIDE_KEYS), inherited=behind)),
        network=fields.read("network", lambda c: c.parsed(scalars.network), None),
    )
    if member.network.given and (member.host.given or member.address.given):
        fields.own["network"].wrong(
            "the network is where an address is looked for, and this server has one", "remove it"
        )
    if own_side is not None and member.host.given:
        own_side.wrong("a host is no guest, so nothing is put into it", "remove guest-side")
    if member.guest.given and member.host.given:
        fields.own["host"].wrong("guest and host exclude each other", "make two servers of them")
    elif not member.guest.given and not member.host.given:
        cursor.wrong("is neither guest nor host", "add guest: NAME or host: ADDRESS")
    if member.host.given and member.address.given and not member.guest.given:
        fields.own["address"].wrong(
            "a host is its address already", "remove address, or write guest instead of host"
        )
    return member
