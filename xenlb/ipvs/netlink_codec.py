"""Encode operations as generic netlink messages of IPVS, and decode the kernel's answers. Pure.

Numbers are those of <linux/ip_vs.h>. Everything is in host byte order except addresses, ports and
IPv4 netmasks.

For tables of 10,000 servers, a message is one `struct` call with constant attribute headers, and
repeated parts (a service's identity, equal servers) are cached. A server whose attributes are not
in the order of Linux since 5.3 is decoded attribute by attribute.
"""

import struct
from collections.abc import Sequence
from functools import lru_cache

from xenlb.ipvs.netlink import (
    MESSAGE,
    NLATTR,
    NLM_F_ACK,
    NLM_F_REQUEST,
    PAYLOAD,
    attributes,
    header,
    number,
    padded,
)
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
    IPAddress,
    MarkKey,
    Protocol,
    SchedulerFlags,
    Server,
    ServerKey,
    Service,
    ServiceKey,
    Tunnel,
    TunnelChecksum,
    TunnelType,
    address,
    mask_of,
    prefix_of,
)

_VERSION = 1
_CMD_NEW_SERVICE, _CMD_SET_SERVICE, _CMD_DEL_SERVICE, CMD_GET_SERVICE = 1, 2, 3, 4
_CMD_NEW_DEST, _CMD_SET_DEST, _CMD_DEL_DEST, CMD_GET_DEST = 5, 6, 7, 8
_COMMANDS: dict[type[Op], int] = {
    AddService: _CMD_NEW_SERVICE,
    SetService: _CMD_SET_SERVICE,
    DeleteService: _CMD_DEL_SERVICE,
    AddServer: _CMD_NEW_DEST,
    SetServer: _CMD_SET_DEST,
    DeleteServer: _CMD_DEL_DEST,
}

_FAMILIES = {Family.INET: 2, Family.INET6: 10}
_AF_INET6 = 10
_PROTOCOLS = {protocol.number: protocol for protocol in Protocol}
_FORWARDINGS = {
    Forwarding.MASQUERADE: 0,
    Forwarding.LOCALNODE: 1,
    Forwarding.TUNNEL: 2,
    Forwarding.GATEWAYING: 3,
    Forwarding.BYPASS: 4,
}
_FORWARDING_OF = {number: method for method, number in _FORWARDINGS.items()}
_FORWARDING_MASK = 0x7
_TUNNEL_TYPES = {TunnelType.IPIP: 0, TunnelType.GUE: 1, TunnelType.GRE: 2}
_TUNNEL_TYPE_OF = {number: kind for kind, number in _TUNNEL_TYPES.items()}
_CHECKSUMS = {TunnelChecksum.NONE: 0, TunnelChecksum.CHECKSUM: 1, TunnelChecksum.REMOTE: 2}

_F_PERSISTENT = 0x1
_F_ONE_PACKET = 0x4
_F_SCHEDULER = int(SchedulerFlags.ONE | SchedulerFlags.TWO | SchedulerFlags.THREE)
# The flags that xenlb sets. HASHED (0x2) is the kernel's own, so it is not compared either.
_F_MASK = _F_PERSISTENT | _F_ONE_PACKET | _F_SCHEDULER

_NETWORK16 = struct.Struct("!H")
_NETWORK32 = struct.Struct("!I")

# Encoding

_SERVICE_AT_ADDRESS = struct.Struct("=I IHxx IHxx I16s I2sxx")
_SERVICE_AT_MARK = struct.Struct("=I IHxx II")
_ADDRESS_HEADERS = (
    header(1, _SERVICE_AT_ADDRESS.size - 4),
    *(header(1, 2), header(2, 2), header(3, 16), header(4, 2)),
)
_MARK_HEADERS = (header(1, _SERVICE_AT_MARK.size - 4), header(1, 2), header(5, 4))

_DEST_KEY = struct.Struct("=I I16s I2sxx IHxx")
_DEST = struct.Struct("=I I16s I2sxx IHxx II Ii II II")
_DEST_TUNNEL = struct.Struct("=I I16s I2sxx IHxx II Ii II II IBxxx I2sxx IHxx")
_A_ADDR, _A_PORT, _A_FAMILY = header(1, 16), header(2, 2), header(11, 2)
_A_FORWARD, _A_WEIGHT, _A_UPPER, _A_LOWER = (header(kind, 4) for kind in (3, 4, 5, 6))
_A_TUN_TYPE, _A_TUN_PORT, _A_TUN_FLAGS = header(13, 1), header(14, 2), header(15, 2)
_DEST_KEY_HEADER = header(2, _DEST_KEY.size - 4)
_DEST_HEADER = header(2, _DEST.size - 4)
_DEST_TUNNEL_HEADER = header(2, _DEST_TUNNEL.size - 4)


def request(
    command: int, *, family: int, sequence: int, flags: int, key: ServiceKey | None = None
) -> bytes:
    """A request: CMD_GET_SERVICE or CMD_GET_DEST, for one service or (dump) for all."""
    body = b"" if key is None else _identity(key)
    length = PAYLOAD + len(body)
    flags |= NLM_F_REQUEST
    return MESSAGE.pack(length, family, flags, sequence, 0, command, _VERSION, 0) + body


def encode(ops: Sequence[Op], *, family: int, sequence: int) -> bytes:
    """The messages of `ops`, joined; op N has sequence number `sequence` + N.

    The last requests an acknowledgement. Of the others, the kernel answers failures only.
    """
    parts: list[bytes] = []
    last = sequence + len(ops) - 1
    key: ServiceKey | None = None
    identity = b""
    for position, op in enumerate(ops, sequence):
        if isinstance(op, AddServer | SetServer):
            if op.service is not key:
                key = op.service
                identity = _identity(key)
            body = _server(op.server)
            length = PAYLOAD + len(identity) + len(body)
        elif isinstance(op, DeleteServer):
            identity, body = _identity(op.service), _server_key(op.key)
            key = op.service
            length = PAYLOAD + len(identity) + len(body)
        else:
            identity, key, body = b"", None, _service_body(op)
            length = PAYLOAD + len(body)
        flags = NLM_F_REQUEST if position != last else NLM_F_REQUEST | NLM_F_ACK
        command = _COMMANDS[type(op)]
        parts += (
            MESSAGE.pack(length, family, flags, position, 0, command, _VERSION, 0),
            identity,
            body,
        )
    return b"".join(parts)


@lru_cache(maxsize=16384)
def _identity(key: ServiceKey) -> bytes:
    """The attribute that identifies a service."""
    if isinstance(key, MarkKey):
        outer, family, mark = _MARK_HEADERS
        return _SERVICE_AT_MARK.pack(outer, family, _FAMILIES[key.family], mark, key.mark)
    outer, family, protocol, address_header, port = _ADDRESS_HEADERS
    return _SERVICE_AT_ADDRESS.pack(
        *(outer, family, _FAMILIES[key.family], protocol, key.protocol.number),
        *(address_header, key.address.packed, port, _NETWORK16.pack(key.port)),
    )


def _service_body(op: AddService | SetService | DeleteService) -> bytes:
    if isinstance(op, DeleteService):
        return _identity(op.key)
    service = op.service
    flags = int(service.flags) & _F_SCHEDULER
    if service.persistence is not None:
        flags |= _F_PERSISTENT
    if service.one_packet:
        flags |= _F_ONE_PACKET
    scheduler = service.scheduler.encode() + b"\0"
    # The kernel keeps a netmask without persistence too, so send the same one always.
    prefix = service.key.family.bits if service.persistence is None else service.prefix
    netmask = (
        _NETWORK32.pack(mask_of(prefix))
        if service.key.family is Family.INET
        else struct.pack("=I", prefix)
    )
    parts = [
        _identity(service.key)[4:],
        NLATTR.pack(len(scheduler) + 4, 6) + padded(scheduler),
        struct.pack("=HHII", 12, 7, flags, _F_MASK),
        struct.pack("=HHI", 8, 8, service.persistence or 0),
        struct.pack("=HH4s", 8, 9, netmask),
    ]
    if service.persistence_engine:
        engine = service.persistence_engine.encode() + b"\0"
        parts.append(NLATTR.pack(len(engine) + 4, 11) + padded(engine))
    body = b"".join(parts)
    return NLATTR.pack(len(body) + 4, 1) + body


def _family_number(value: IPAddress) -> int:
    return 2 if value.version == 4 else _AF_INET6


def _server_key(key: ServerKey) -> bytes:
    return _DEST_KEY.pack(
        *(_DEST_KEY_HEADER, _A_ADDR, key.address.packed, _A_PORT, _NETWORK16.pack(key.port)),
        *(_A_FAMILY, _family_number(key.address)),
    )


def _server(server: Server) -> bytes:
    """All fields, for SetServer too: the kernel sets a missing field to zero."""
    key = server.key
    address = key.address
    tunnel = server.tunnel
    if tunnel is None or server.forwarding is not Forwarding.TUNNEL:
        return _DEST.pack(
            _DEST_HEADER,
            _A_ADDR,
            address.packed,
            _A_PORT,
            _NETWORK16.pack(key.port),
            _A_FAMILY,
            2 if address.version == 4 else _AF_INET6,
            _A_FORWARD,
            _FORWARDINGS[server.forwarding],
            _A_WEIGHT,
            server.weight,
            _A_UPPER,
            server.upper_threshold,
            _A_LOWER,
            server.lower_threshold,
        )
    return _DEST_TUNNEL.pack(
        *(_DEST_TUNNEL_HEADER, _A_ADDR, address.packed, _A_PORT, _NETWORK16.pack(key.port)),
        *(_A_FAMILY, _family_number(address), _A_FORWARD, _FORWARDINGS[server.forwarding]),
        *(_A_WEIGHT, server.weight),
        *(_A_UPPER, server.upper_threshold, _A_LOWER, server.lower_threshold),
        *(_A_TUN_TYPE, _TUNNEL_TYPES[tunnel.type], _A_TUN_PORT, _NETWORK16.pack(tunnel.port)),
        *(_A_TUN_FLAGS, _CHECKSUMS[tunnel.checksum]),
    )


# Decoding


def _port_number(value: bytes | None) -> int:
    return int(_NETWORK16.unpack(value)[0]) if value else 0


def _address_of(value: bytes, family: int) -> IPAddress:
    return address(value[:16] if family == _AF_INET6 else value[:4])


def decode_service(data: bytes, start: int, end: int) -> Service | None:
    """The service in the body of an answer to CMD_GET_SERVICE.

    None for a protocol that IPVS does not balance; the kernel accepts any number.
    """
    outer = attributes(data, start, end)[1]
    values = attributes(outer, 0, len(outer))
    family_number = number(values[1])
    family = Family.INET6 if family_number == _AF_INET6 else Family.INET
    flags = number(values[7][:4])
    prefix = family.bits
    if not flags & _F_PERSISTENT:
        persistence = None
    else:
        persistence = number(values[8])
        netmask = values[9]
        prefix = (
            number(netmask)
            if family is Family.INET6
            else prefix_of(int(_NETWORK32.unpack(netmask)[0]))
        )
    key: ServiceKey
    if 5 in values:
        key = MarkKey(family=family, mark=number(values[5]))
    else:
        protocol = _PROTOCOLS.get(number(values[2]))
        if protocol is None:
            return None
        key = AddressKey(
            protocol=protocol,
            address=_address_of(values[3], family_number),
            port=_port_number(values[4]),
        )
    return Service(
        key=key,
        scheduler=_text(values[6]),
        flags=SchedulerFlags(flags & _F_SCHEDULER),
        one_packet=bool(flags & _F_ONE_PACKET),
        persistence=persistence,
        prefix=prefix,
        persistence_engine=_text(values.get(11, b"")),
    )


def _text(value: bytes) -> str:
    return value.partition(b"\0")[0].decode("ascii", "replace")


# A server as Linux sends it since 5.3: attribute headers and values in turn, up to the family;
# then the statistics in 32 bits (ignored) and in 64.
_DUMPED = struct.Struct("=II16s I2sxx II Ii IBxxx I2sxx IHxx II II II II II IHxx I88x I IQIQIQIQIQ")
_DUMPED_HEADERS = (
    *(_A_ADDR, _A_PORT, _A_FORWARD, _A_WEIGHT, _A_TUN_TYPE, _A_TUN_PORT, _A_TUN_FLAGS),
    *(_A_UPPER, _A_LOWER, *(header(kind, 4) for kind in (7, 8, 9)), _A_FAMILY),
)
_DUMPED_STATS = (header(10, 88), header(12, 120), *(header(n, 8) for n in range(1, 6)))


def decode_server(
    data: bytes, start: int, end: int, *, family: Family, counters: bool = True
) -> tuple[Server, Counters | None]:
    """The server and its counters in the body of an answer to CMD_GET_DEST.

    `family`: the service's; it is the server's too if a kernel before 3.18 sends none. `counters`:
    whether to decode the counters.
    """
    if end - start >= _DUMPED.size:
        fields = _DUMPED.unpack_from(data, start)
        if fields[1:27:2] == _DUMPED_HEADERS:
            server = _dumped_server(data[start + 4 : start + 88], fields[26])
            if not counters:
                return server, None
            if (*fields[27:29], *fields[29:39:2]) == _DUMPED_STATS:
                return server, Counters(
                    active_connections=fields[20],
                    inactive_connections=fields[22],
                    persistent_connections=fields[24],
                    connections=fields[30],
                    packets_in=fields[32],
                    packets_out=fields[34],
                    bytes_in=fields[36],
                    bytes_out=fields[38],
                )
    outer = attributes(data, start, end)[2]
    values = attributes(outer, 0, len(outer))
    server = _server_of(values, number(values.get(11)) or _FAMILIES[family])
    return server, _counters(values) if counters else None


@lru_cache(maxsize=32768)
def _dumped_server(settings: bytes, family: int) -> Server:
    return _server_of(attributes(settings, 0, len(settings)), family)


def _server_of(values: dict[int, bytes], family: int) -> Server:
    forwarding = _FORWARDING_OF.get(number(values[3]) & _FORWARDING_MASK, Forwarding.BYPASS)
    return Server(
        key=ServerKey(address=_address_of(values[1], family), port=_port_number(values[2])),
        forwarding=forwarding,
        weight=number(values[4]),
        upper_threshold=number(values.get(5)),
        lower_threshold=number(values.get(6)),
        tunnel=_tunnel(values) if forwarding is Forwarding.TUNNEL else None,
    )


def _tunnel(values: dict[int, bytes]) -> Tunnel:
    kind = _TUNNEL_TYPE_OF.get(number(values.get(13)), TunnelType.IPIP)
    if kind is TunnelType.IPIP:
        return Tunnel()
    flags = number(values.get(15))
    checksum = TunnelChecksum.CHECKSUM if flags & 1 else TunnelChecksum.NONE
    return Tunnel(
        type=kind,
        port=_port_number(values.get(14)) if kind is TunnelType.GUE else 0,
        checksum=TunnelChecksum.REMOTE if flags & 2 else checksum,
    )


def _counters(values: dict[int, bytes]) -> Counters:
    stats = values.get(12) or values.get(10, b"")
    sums = attributes(stats, 0, len(stats))
    return Counters(
        active_connections=number(values.get(7)),
        inactive_connections=number(values.get(8)),
        persistent_connections=number(values.get(9)),
        connections=number(sums.get(1)),
        packets_in=number(sums.get(2)),
        packets_out=number(sums.get(3)),
        bytes_in=number(sums.get(4)),
        bytes_out=number(sums.get(5)),
    )
