"""The first packets of a connection: their bytes, and the kernel's filter."""

import socket
from ipaddress import ip_address

import pytest

from tests.unit.director.netns import in_own_network, sh
from xenlb.health.transport.sockets import checksum
from xenlb.health.via_vip.syn import (
    ACK,
    RST,
    SYN,
    Endpoints,
    Reply,
    attach_filter,
    packet,
    parse_reply,
)

FOUR = Endpoints(
    source=ip_address("10.0.0.1"), port=40000, destination=ip_address("192.0.2.10"), to_port=80
)
SIX = Endpoints(
    source=ip_address("fd00::1"), port=40000, destination=ip_address("fd00:2::10"), to_port=80
)


def turned(ends: Endpoints) -> Endpoints:
    return Endpoints(
        source=ends.destination,
        port=ends.to_port,
        destination=ends.source,
        to_port=ends.port,
    )


def answer(ends: Endpoints, acknowledged: int, flags: int) -> bytes:
    """Return a server's reply; checksums are not verified."""
    made = bytearray(packet(turned(ends), 7, flags))
    start = 20 if ends.source.version == 4 else 40
    made[start + 8 : start + 12] = acknowledged.to_bytes(4)
    return bytes(made)


def test_the_bytes_of_a_syn() -> None:
    """Written out by hand, by RFC 791 and 9293; the hop limit is 1."""
    assert packet(FOUR, 0x01020304, SYN).hex(" ", 4) == (
        "4500002c 00000000 0106edc1 0a000001 c000020a"
        " 9c400050 01020304 00000000 6002ffff"
        f" {packet(FOUR, 0x01020304, SYN)[36:38].hex()}0000 020405b4"
    )


@pytest.mark.parametrize("ends", [FOUR, SIX])
@pytest.mark.parametrize("flags", [SYN, RST])
def test_the_checksums_are_right(ends: Endpoints, flags: int) -> None:
    made = packet(ends, 0xFFFFFFFF, flags)
    start = 20 if ends.source.version == 4 else 40
    if start == 20:
        assert checksum(made[:20]) == 0
    segment = made[start:]
    pseudo = ends.source.packed + ends.destination.packed
    pseudo += len(segment).to_bytes(4) + socket.IPPROTO_TCP.to_bytes(4)
    assert checksum(pseudo + segment) == 0


@pytest.mark.parametrize("ends", [FOUR, SIX])
def test_replies_are_parsed(ends: Endpoints) -> None:
    heard = Reply(ends=ends, acknowledged=9, refused=False)
    assert parse_reply(answer(ends, 9, SYN | ACK)) == heard
    assert parse_reply(answer(ends, 9, RST | ACK)) == Reply(ends=ends, acknowledged=9, refused=True)
    for flags in (SYN, RST, ACK):
        assert parse_reply(answer(ends, 9, flags)) is None
    whole = answer(ends, 9, SYN | ACK)
    for length in range(len(whole) - 4):
        parse_reply(whole[:length])  # half a packet is no trouble


@in_own_network
def test_the_kernel_passes_on_answers_to_our_ports_only() -> None:
    sh("ip link set lo up")
    for version, ethertype, address in ((4, 0x0800, "127.0.0.1"), (6, 0x86DD, "::1")):
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        own = ip_address(address)
        with (
            socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ethertype)) as hearing,
            socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0) as sending,
            socket.socket(family, socket.SOCK_DGRAM) as other,
        ):
            attach_filter(hearing, version, [40000, 40001, 40002])
            hearing.settimeout(5)
            other.sendto(bytes(60), (address, 40000))
            last = Endpoints(source=own, port=40002, destination=own, to_port=1)
            sent = [
                answer(Endpoints(source=own, port=port, destination=own, to_port=80), port, flags)
                for port in (39999, 40000, 40001, 40003)
                for flags in (SYN, SYN | ACK, ACK, RST, RST | ACK)
            ]
            for each in (*sent, answer(last, 0, RST | ACK)):
                sending.sendto(each, ("lo", ethertype, 0, 0, bytes(6)))
            heard: list[tuple[int, bool]] = []
            while (found := parse_reply(hearing.recv(256))) is not None and found.ends != last:
                heard.append((found.acknowledged, found.refused))
            assert heard == [(40000, False), (40000, True), (40001, False), (40001, True)]
            hearing.setblocking(False)
            with pytest.raises(BlockingIOError):
                hearing.recv(256)
