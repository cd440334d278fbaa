"""Messages: what was packed is read back, by us and by pyroute2's decoder."""

import struct
import sys
from ipaddress import IPv4Address, ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.generic.ipvs import ipvsmsg

from tests.unit.ipvs.strategies import addresses, keys, ports, servers, services, tables
from xenlb.ipvs import netlink, netlink_codec
from xenlb.ipvs.diff import Owned, diff
from xenlb.ipvs.op import (
    AddServer,
    AddService,
    DeleteServer,
    DeleteService,
    Op,
    SetServer,
    SetService,
)
from xenlb.ipvs.table import (
    AddressKey,
    Counters,
    Family,
    Forwarding,
    MarkKey,
    Protocol,
    Server,
    ServerKey,
    Service,
    ServiceKey,
    Table,
    Tunnel,
    mask_of,
    prefix_of,
)

ADD_SERVICE, SET_SERVICE, DELETE_SERVICE = 1, 2, 3
ADD_SERVER, SET_SERVER, DELETE_SERVER = 5, 6, 7
COUNTERS = Counters(
    active_connections=1,
    inactive_connections=2,
    persistent_connections=3,
    connections=4,
    packets_in=5,
    packets_out=6,
    bytes_in=7,
    bytes_out=8,
)


@st.composite
def service_values(draw: st.DrawFn) -> Service:
    return draw(services(draw(keys())))


@st.composite
def server_values(draw: st.DrawFn) -> tuple[ServiceKey, Server]:
    key = draw(keys())
    server_key = ServerKey(address=draw(addresses), port=draw(ports))
    return key, draw(servers(server_key, key.family))


def message_of(op: Op) -> tuple[bytes, int, int]:
    data = netlink_codec.encode([op], family=30, sequence=9)
    [(kind, flags, sequence, start, end)] = netlink.messages(data)
    assert (kind, flags, sequence) == (30, netlink.NLM_F_REQUEST | netlink.NLM_F_ACK, 9)
    assert end == len(data)
    return data, start, end


# ---- what the kernel would send, built here attribute by attribute ----


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", len(value) + 4, kind) + value + bytes(-len(value) % 4)


def u32(value: int) -> bytes:
    return struct.pack("=I", value)


def u16(value: int) -> bytes:
    return struct.pack("=H", value)


def statistics(size: int) -> bytes:
    """IPVS_*_ATTR_STATS (size 4, bytes still in 64 bits) or STATS64 (size 8)."""
    values = [*range(4, 9), 0, 0, 0, 0, 0]
    wide = (4, 5)
    return b"".join(
        attribute(kind, struct.pack("=Q" if size == 8 or kind in wide else "=I", value))
        for kind, value in enumerate(values, 1)
    )


def dumped_server(
    server: Server,
    *,
    family: bool = True,
    tunnels: bool = True,
    wide: bool = True,
    padding: bool = False,
) -> bytes:
    """A server as Linux 6.1 sends it, or as older kernels did."""
    tunnel = server.tunnel or Tunnel()
    kinds = {"ipip": 0, "gue": 1, "gre": 2}
    flags = {"nocsum": 0, "csum": 1, "remcsum": 2}
    methods = {Forwarding.MASQUERADE: 0, Forwarding.TUNNEL: 2, Forwarding.GATEWAYING: 3}
    address = server.key.address
    parts = [
        attribute(1, address.packed.ljust(16, b"\0")),
        attribute(2, struct.pack("!H", server.key.port)),
        attribute(3, u32(methods[server.forwarding])),
        attribute(4, u32(server.weight)),
    ]
    if tunnels:
        parts += [
            attribute(13, bytes([kinds[tunnel.type]])),
            attribute(14, struct.pack("!H", tunnel.port)),
            attribute(15, u16(flags[tunnel.checksum])),
        ]
    parts += [
        attribute(5, u32(server.upper_threshold)),
        attribute(6, u32(server.lower_threshold)),
        *(attribute(kind, u32(kind - 6)) for kind in (7, 8, 9)),
    ]
    if family:
        parts.append(attribute(11, u16(2 if address.version == 4 else 10)))
    parts.append(attribute(10, (attribute(11, b"") if padding else b"") + statistics(4)))
    if wide:
        parts.append(attribute(12, (attribute(11, b"") if padding else b"") + statistics(8)))
    return attribute(2, b"".join(parts))


@given(service_values())
def test_a_service_is_read_back(service: Service) -> None:
    for op in (AddService(service=service), SetService(service=service)):
        data, start, end = message_of(op)
        assert data[start - 4] == {AddService: ADD_SERVICE, SetService: SET_SERVICE}[type(op)]
        assert netlink_codec.decode_service(data, start, end) == service


@given(server_values())
def test_a_server_is_read_back(pair: tuple[ServiceKey, Server]) -> None:
    key, server = pair
    for op in (AddServer(service=key, server=server), SetServer(service=key, server=server)):
        data, start, end = message_of(op)
        assert data[start - 4] == {AddServer: ADD_SERVER, SetServer: SET_SERVER}[type(op)]
        assert netlink_codec.decode_server(data, start, end, family=key.family) == (
            server,
            Counters(),
        )


@given(server_values())
def test_servers_of_every_age_of_the_kernel(pair: tuple[ServiceKey, Server]) -> None:
    key, server = pair
    for body in (
        dumped_server(server),
        dumped_server(server, wide=False),
        # Where 64-bit numbers are aligned by empty attributes.
        dumped_server(server, padding=True),
        dumped_server(server) + attribute(77, b"from the future"),
    ):
        data = b"head" + body
        assert netlink_codec.decode_server(data, 4, len(data), family=key.family) == (
            server,
            COUNTERS,
        )
        without = netlink_codec.decode_server(data, 4, len(data), family=key.family, counters=False)
        assert without == (server, None)
    if server.forwarding is not Forwarding.TUNNEL:
        # Before Linux 3.18 there was no family of a server, before 5.3 no kind of tunnel.
        own = Family.INET if server.key.address.version == 4 else Family.INET6
        body = dumped_server(server, family=False, tunnels=False, wide=False)
        assert netlink_codec.decode_server(body, 0, len(body), family=own) == (server, COUNTERS)


def test_a_tunnel_of_a_kernel_that_knows_ipip_only() -> None:
    key = ServerKey(address=IPv4Address("10.0.0.11"), port=25)
    server = Server(key=key, forwarding=Forwarding.TUNNEL, weight=1, tunnel=Tunnel())
    body = dumped_server(server, tunnels=False)
    assert netlink_codec.decode_server(body, 0, len(body), family=Family.INET)[0] == server


def test_the_kernels_own_flag_is_not_read() -> None:
    service = Service(key=MarkKey(family=Family.INET, mark=7), scheduler="sh", prefix=32)
    data, start, end = message_of(AddService(service=service))
    hashed = data.replace(
        struct.pack("=HHI", 12, 7, 0), struct.pack("=HHI", 12, 7, 2), 1
    )  # fmt: skip
    assert hashed != data
    assert netlink_codec.decode_service(hashed, start, end) == service


def test_a_protocol_that_ipvs_cannot_balance() -> None:
    key = AddressKey(protocol=Protocol.TCP, address=IPv4Address("192.0.2.1"), port=1)
    data, start, end = message_of(AddService(service=Service(key=key, prefix=32)))
    other = data.replace(attribute(2, u16(6)), attribute(2, u16(50)), 1)
    assert other != data
    assert netlink_codec.decode_service(other, start, end) is None


# ---- by an independent reader ----


def by_pyroute2(data: bytes) -> Any:
    message = ipvsmsg(data)
    message.decode()
    return message


@given(service_values())
def test_pyroute2_reads_a_service(service: Service) -> None:
    message = by_pyroute2(
        netlink_codec.encode([AddService(service=service)], family=30, sequence=9)
    )
    assert message["cmd"] == ADD_SERVICE
    check_service_key(message, service.key)
    found = message.get_attr("IPVS_CMD_ATTR_SERVICE")
    assert found.get_attr("IPVS_SVC_ATTR_SCHED_NAME") == service.scheduler
    assert found.get_attr("IPVS_SVC_ATTR_PE_NAME") == (service.persistence_engine or None)
    assert found.get_attr("IPVS_SVC_ATTR_TIMEOUT") == (service.persistence or 0)
    flags = found.get_attr("IPVS_SVC_ATTR_FLAGS")
    assert flags["mask"] == 0x3D
    assert flags["flags"] == int(service.flags) | (
        (1 if service.persistence is not None else 0) | (4 if service.one_packet else 0)
    )
    mask = IPv4Address(found.get_attr("IPVS_SVC_ATTR_NETMASK"))
    if service.key.family is Family.INET:
        assert int(mask) == mask_of(service.prefix)
    else:
        assert int.from_bytes(mask.packed, sys.byteorder) == service.prefix


@given(server_values())
def test_pyroute2_reads_a_server(pair: tuple[ServiceKey, Server]) -> None:
    key, server = pair
    data = netlink_codec.encode([SetServer(service=key, server=server)], family=30, sequence=9)
    message = by_pyroute2(data)
    assert message["cmd"] == SET_SERVER
    check_service_key(message, key)
    found = message.get_attr("IPVS_CMD_ATTR_DEST")
    check_server_key(found, server.key)
    assert found.get_attr("IPVS_DEST_ATTR_WEIGHT") == server.weight
    assert found.get_attr("IPVS_DEST_ATTR_U_THRESH") == server.upper_threshold
    assert found.get_attr("IPVS_DEST_ATTR_L_THRESH") == server.lower_threshold
    if server.tunnel:
        port = found.get_attr("IPVS_DEST_ATTR_TUN_PORT")
        assert port.to_bytes(2, sys.byteorder) == server.tunnel.port.to_bytes(2, "big")


@given(keys(), addresses, ports)
def test_pyroute2_reads_deletions(key: ServiceKey, address: Any, port: int) -> None:
    message = by_pyroute2(netlink_codec.encode([DeleteService(key=key)], family=30, sequence=9))
    assert message["cmd"] == DELETE_SERVICE
    check_service_key(message, key)
    server = ServerKey(address=address, port=port)
    op = DeleteServer(service=key, key=server)
    message = by_pyroute2(netlink_codec.encode([op], family=30, sequence=9))
    assert message["cmd"] == DELETE_SERVER
    check_service_key(message, key)
    check_server_key(message.get_attr("IPVS_CMD_ATTR_DEST"), server)


def check_service_key(message: Any, key: ServiceKey) -> None:
    found = message.get_attr("IPVS_CMD_ATTR_SERVICE")
    assert found.get_attr("IPVS_SVC_ATTR_AF") == (2 if key.family is Family.INET else 10)
    if isinstance(key, MarkKey):
        assert found.get_attr("IPVS_SVC_ATTR_FWMARK") == key.mark
    else:
        assert found.get_attr("IPVS_SVC_ATTR_PROTOCOL") == key.protocol.number
        assert ip_address(found.get_attr("IPVS_SVC_ATTR_ADDR")) == plain(key.address)
        assert found.get_attr("IPVS_SVC_ATTR_PORT") == key.port


def check_server_key(found: Any, key: ServerKey) -> None:
    family = 2 if key.address.version == 4 else 10
    assert found.get_attr("IPVS_DEST_ATTR_ADDR_FAMILY") == family
    assert found.get_attr("IPVS_DEST_ATTR_PORT") == key.port
    # The address stands before its family there, so pyroute2 may show the bytes alone.
    shown = found.get_attr("IPVS_DEST_ATTR_ADDR")
    assert ip_address(shown) == plain(key.address)


def plain(address: Any) -> Any:
    return ip_address(address.packed)


# ---- many ----


@given(tables())
def test_many_operations_in_one_piece(table: Table) -> None:
    ops = diff(table, Table(), Owned())
    data = netlink_codec.encode(ops, family=30, sequence=1000)
    found = list(netlink.messages(data))
    assert [sequence for _, _, sequence, _, _ in found] == list(range(1000, 1000 + len(ops)))
    acknowledged = [flags & netlink.NLM_F_ACK for _, flags, _, _, _ in found]
    assert acknowledged == [0] * (len(ops) - 1) + [4] * bool(ops)
    for op, (_, _, _, start, end) in zip(ops, found, strict=True):
        assert data[start - 20 : end] == alone(op, start - 20, data)


def alone(op: Op, start: int, data: bytes) -> bytes:
    """The same operation by itself, with flags and sequence number of its place in `data`."""
    single = netlink_codec.encode([op], family=30, sequence=1)
    return single[:6] + data[start + 6 : start + 12] + single[12:]


@pytest.mark.parametrize("cut", [1, 4, 15, 40])
def test_a_message_that_is_cut_off(cut: int) -> None:
    data = netlink_codec.encode(
        [DeleteService(key=MarkKey(family=Family.INET, mark=7))], family=1, sequence=1
    )
    with pytest.raises(ValueError, match="netlink message"):
        list(netlink.messages(data + struct.pack("=IHHII", 60, 0, 0, 0, 0) + bytes(cut)))


def test_the_answer_of_the_family_look_up() -> None:
    body = attribute(2, b"IPVS\0") + attribute(1, u16(33)) + attribute(3, u32(1))
    assert netlink.family_number(body, 0, len(body)) == 33
    request = netlink.family_request(5)
    [(kind, flags, sequence, start, end)] = netlink.messages(request)
    assert (kind, flags, sequence, request[start:end]) == (16, 1, 5, attribute(2, b"IPVS\0"))


@given(st.integers(0, 32))
def test_netmasks_that_are_prefixes(prefix: int) -> None:
    assert prefix_of(mask_of(prefix)) == prefix


@given(st.integers(0, 2**32 - 1))
def test_every_netmask_comes_back(mask: int) -> None:
    assert mask_of(prefix_of(mask)) == mask
