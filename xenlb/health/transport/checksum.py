"""The checksum of IPv4, ICMP, TCP and UDP (RFC 1071)."""

import struct


def checksum(data: bytes) -> int:
    """Return the checksum of a whole number of 16-bit words."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
