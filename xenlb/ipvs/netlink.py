"""Netlink messages, attributes, and the controller of generic netlink. Pure.

Numbers are those of <linux/netlink.h> and <linux/genetlink.h>. Everything is in host byte order.
"""

import struct
from collections.abc import Iterator

# struct nlmsghdr, the same followed by struct genlmsghdr, struct nlattr; types and flags.
_NLMSG = struct.Struct("=IHHII")
MESSAGE = struct.Struct("=IHHIIBBH")
PAYLOAD = MESSAGE.size
NLATTR = struct.Struct("=HH")
NLMSG_ERROR = 2
NLMSG_DONE = 3
NLM_F_REQUEST = 0x1
NLM_F_ACK = 0x4
NLM_F_DUMP_INTR = 0x10
NLM_F_DUMP = 0x300

# The controller of generic netlink, which assigns numbers to families.
_GENL_ID_CTRL = 0x10
_CTRL_CMD_GETFAMILY = 3
_CTRL_ATTR_FAMILY_ID = 1
_CTRL_ATTR_FAMILY_NAME = 2


def header(kind: int, size: int) -> int:
    """Return struct nlattr as one 32-bit number, for a payload of `size` bytes."""
    return int(struct.unpack("=I", struct.pack("=HH", size + 4, kind))[0])


def family_request(sequence: int) -> bytes:
    """The request for the number of the generic netlink family IPVS."""
    name = b"IPVS\0"
    body = NLATTR.pack(len(name) + 4, _CTRL_ATTR_FAMILY_NAME) + padded(name)
    head = MESSAGE.pack(
        *(PAYLOAD + len(body), _GENL_ID_CTRL, NLM_F_REQUEST, sequence, 0),
        *(_CTRL_CMD_GETFAMILY, 1, 0),
    )
    return head + body


def family_number(data: bytes, start: int, end: int) -> int:
    """The family's number, from the body of the answer to family_request()."""
    return number(attributes(data, start, end)[_CTRL_ATTR_FAMILY_ID])


def padded(value: bytes) -> bytes:
    """The payload with its padding to a multiple of 4 bytes."""
    return value + bytes(-len(value) % 4)


def messages(data: bytes) -> Iterator[tuple[int, int, int, int, int]]:
    """Type, flags, sequence, start of the body and end of each message in one datagram.

    Raises ValueError for a message that is longer than the datagram.
    """
    offset = 0
    size = len(data)
    while offset + 16 <= size:
        length, kind, flags, sequence, _port = _NLMSG.unpack_from(data, offset)
        if length < 16 or offset + length > size:
            raise ValueError(f"a netlink message of {length} bytes in {size - offset}")
        header = 16 if kind in (NLMSG_ERROR, NLMSG_DONE) else PAYLOAD
        yield kind, flags, sequence, offset + header, offset + length
        offset += length + 3 & ~3


def error_number(data: bytes, start: int) -> int:
    """The errno in NLMSG_ERROR or NLMSG_DONE; 0 for success."""
    return -int(struct.unpack_from("=i", data, start)[0])


def attributes(data: bytes, start: int, end: int) -> dict[int, bytes]:
    """The attributes between two offsets, by their type."""
    values: dict[int, bytes] = {}
    while start + 4 <= end:
        length, kind = NLATTR.unpack_from(data, start)
        if length < 4:
            break
        values[kind & 0x3FFF] = data[start + 4 : start + length]
        start += length + 3 & ~3
    return values


def number(value: bytes | None) -> int:
    """A number of 1, 2, 4 or 8 bytes in host order; 0 for no bytes."""
    if not value:
        return 0
    formats = {1: "=B", 2: "=H", 4: "=I", 8: "=Q"}
    return int(struct.unpack(formats[len(value)], value)[0])
