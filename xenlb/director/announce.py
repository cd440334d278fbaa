"""Announce an address to neighbours: gratuitous ARP, unsolicited neighbour advertisements.

Hosts and switches that had the address elsewhere update their entries at once. Without CAP_NET_RAW,
and on interfaces other than Ethernet, nothing is sent.
"""

import logging
import socket
import struct
from ipaddress import IPv6Address

from xenlb.director.interface import Interface
from xenlb.ipvs.table import IPAddress

log = logging.getLogger(__name__)

BROADCAST = b"\xff" * 6
ETH_P_ARP = 0x0806
NEIGHBOUR_ADVERTISEMENT = 136
OVERRIDE = 0x20000000
TARGET_LINK_LAYER_ADDRESS = 2


def announce(link: Interface, address: IPAddress) -> None:
    """Send one packet. A failure is only logged: the address works without it."""
    if link.hardware is None or not link.running:
        return
    try:
        if isinstance(address, IPv6Address):
            _advertise(link, link.hardware, address)
        else:
            frame = arp_frame(link.hardware, address.packed)
            with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
                sender.bind((link.name, 0))
                sender.send(frame)
    except OSError as error:
        log.debug("%s not announced on %s: %s", address, link.name, error)


def arp_frame(hardware: bytes, packed: bytes) -> bytes:
    """An ARP request for the sender's own address (RFC 5227, 3), which updates all receivers."""
    return (
        BROADCAST
        + hardware
        + struct.pack("!HHHBBH", ETH_P_ARP, 1, 0x0800, 6, 4, 1)
        + hardware
        + packed
        + b"\0" * 6
        + packed
    )


def _advertise(link: Interface, hardware: bytes, address: IPv6Address) -> None:
    body = struct.pack("!BBHI", NEIGHBOUR_ADVERTISEMENT, 0, 0, OVERRIDE) + address.packed
    body += struct.pack("!BB", TARGET_LINK_LAYER_ADDRESS, 1) + hardware
    with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as sender:
        # With 255 the receiver knows that the packet passed no router (RFC 4861, 7.1.2).
        sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, link.index)
        sender.bind((str(address), 0, 0, link.index))
        sender.sendto(body, ("ff02::1", 0, 0, link.index))
