"""Hypothesis strategies for tables: few keys, so that tables meet; every setting."""

from hypothesis import strategies as st

from tests.contract import variants
from xenlb.ipvs.diff import Owned
from xenlb.ipvs.table import (
    AddressKey,
    Entry,
    Family,
    Forwarding,
    MarkKey,
    Protocol,
    SchedulerFlags,
    Server,
    ServerKey,
    Service,
    ServiceKey,
    Table,
    Tunnel,
    TunnelChecksum,
    TunnelType,
)

ports = st.integers(0, 65535)
marks = st.integers(1, 2**32 - 1)
families = st.sampled_from(Family)
addresses = st.ip_addresses()


@st.composite
def keys(draw: st.DrawFn) -> ServiceKey:
    if draw(st.booleans()):
        return MarkKey(family=draw(families), mark=draw(marks))
    return AddressKey(
        protocol=draw(st.sampled_from(Protocol)), address=draw(addresses), port=draw(ports)
    )


@st.composite
def services(draw: st.DrawFn, key: ServiceKey) -> Service:
    """As one can be read back: no netmask without persistence."""
    persistence = draw(st.none() | st.integers(1, 31 * 86400))
    prefix = key.family.bits
    every_port = isinstance(key, AddressKey) and key.port == 0
    if every_port and persistence is None:
        persistence = 1
    if persistence is not None:
        lowest = 0 if key.family is Family.INET else 1
        prefix = draw(st.integers(lowest, key.family.bits))
    scheduler = draw(st.sampled_from(variants.SCHEDULERS))
    most = 3 if scheduler in {"sh", "mh"} else 7
    udp = isinstance(key, MarkKey) or key.protocol is Protocol.UDP
    return Service(
        key=key,
        scheduler=scheduler,
        flags=SchedulerFlags(draw(st.integers(0, most)) << 3),
        one_packet=udp and draw(st.booleans()),
        persistence=persistence,
        prefix=prefix,
        persistence_engine=draw(st.sampled_from(["", "sip"])),
    )


@st.composite
def tunnels(draw: st.DrawFn) -> Tunnel:
    kind = draw(st.sampled_from(TunnelType))
    if kind is TunnelType.IPIP:
        return Tunnel()
    if kind is TunnelType.GUE:
        checksum = draw(st.sampled_from(TunnelChecksum))
        return Tunnel(type=kind, port=draw(st.integers(1, 65535)), checksum=checksum)
    checksums = (TunnelChecksum.NONE, TunnelChecksum.CHECKSUM)
    return Tunnel(type=kind, checksum=draw(st.sampled_from(checksums)))


@st.composite
def servers(draw: st.DrawFn, key: ServerKey, family: Family) -> Server:
    other = (key.address.version == 4) != (family is Family.INET)
    method = draw(
        st.sampled_from([Forwarding.MASQUERADE, Forwarding.GATEWAYING, Forwarding.TUNNEL])
    )
    method = Forwarding.TUNNEL if other else method
    upper = draw(st.integers(0, 2**32 - 1))
    return Server(
        key=key,
        forwarding=method,
        weight=draw(st.sampled_from([0, 1, 2]) | st.integers(0, 2**31 - 1)),
        upper_threshold=upper,
        lower_threshold=draw(st.integers(0, upper)),
        tunnel=draw(tunnels()) if method is Forwarding.TUNNEL else None,
    )


# A handful, so that two tables have much in common.
SOME_KEYS: list[ServiceKey] = variants.keys()[::3]
SOME_SERVERS = [
    ServerKey(address=address + number, port=port)
    for address in variants.SERVERS.values()
    for number in range(3)
    for port in (25, 26)
]


@st.composite
def tables(draw: st.DrawFn) -> Table:
    entries = {}
    for key in draw(st.sets(st.sampled_from(SOME_KEYS))):
        found = draw(st.sets(st.sampled_from(SOME_SERVERS), max_size=6))
        entries[key] = Entry(
            service=draw(services(key)),
            servers={server: draw(servers(server, key.family)) for server in found},
        )
    return Table(entries=entries)


@st.composite
def owned(draw: st.DrawFn) -> Owned:
    pairs = st.tuples(st.sampled_from(SOME_KEYS), st.sampled_from(SOME_SERVERS))
    return Owned(
        services=draw(st.frozensets(st.sampled_from(SOME_KEYS))),
        servers=draw(st.frozensets(pairs, max_size=40)),
    )
