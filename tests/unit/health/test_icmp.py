"""The icmp probe on loopback, in a network of its own."""

import asyncio
import os
import socket
import struct

import pytest

from tests.unit.director.netns import in_own_network, sh
from tests.unit.health.datagrams import target
from xenlb.health.registry import run_probe
from xenlb.health.transport.result import Answer, answer_budget
from xenlb.health.transport.sockets import checksum
from xenlb.model.checks import Icmp


def test_the_checksum_is_that_of_the_rfc() -> None:
    assert checksum(bytes.fromhex("0001f203f4f5f6f7")) == 0xFFFF & ~0xDDF2
    assert checksum(b"\xff\xff\x00\x00") == 0


@in_own_network
def test_hosts_that_answer() -> None:
    sh("""
    ip link set lo up
    ip addr add 127.0.0.7/32 dev lo
    """)

    async def main() -> None:
        before = set(os.listdir("/proc/self/fd"))
        targets = [target(Icmp(), 80, each) for each in ("127.0.0.1", "127.0.0.7", "::1")]
        answers = await asyncio.gather(
            *(run_probe(each, answer_budget()) for each in targets * 200)
        )
        assert answers[:3] == [
            Answer(up=True, detail=f"{each.address} answers echo requests") for each in targets
        ]
        assert all(answer.up for answer in answers)
        assert set(os.listdir("/proc/self/fd")) == before

    asyncio.run(asyncio.wait_for(main(), 30))


@in_own_network
def test_replies_to_other_programs_do_not_count() -> None:
    """Replies with another payload, identifier or sender do not count."""
    sh("""
    ip link set lo up
    ip addr add 127.0.0.7/32 dev lo
    sysctl -qw net.ipv4.icmp_echo_ignore_all=1
    """)

    def forged(request: bytes, change: str) -> bytes:
        _, _, _, identifier, number = struct.unpack_from("!BBHHH", request)
        payload = request[8:]
        if change == "payload":
            payload = bytes(len(payload))
        if change == "identifier":
            identifier ^= 1
        bare = struct.pack("!BBHHH", 0, 0, 0, identifier, number) + payload
        return struct.pack("!BBHHH", 0, 0, checksum(bare), identifier, number) + payload

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw:
            raw.settimeout(5)
            probe = asyncio.create_task(run_probe(target(Icmp(), 80, "127.0.0.1"), answer_budget()))
            packet = await asyncio.to_thread(raw.recv, 2048)
            request = packet[20:]
            assert request[0] == 8
            for change in ("payload", "identifier"):
                raw.sendto(forged(request, change), ("127.0.0.1", 0))
            with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as other:
                other.bind(("127.0.0.7", 0))
                other.sendto(forged(request, ""), ("127.0.0.1", 0))
            done, _ = await asyncio.wait([probe], timeout=0.3)
            assert not done
            raw.sendto(forged(request, ""), ("127.0.0.1", 0))
            assert (await asyncio.wait_for(probe, 5)).up
            assert loop is asyncio.get_running_loop()

    asyncio.run(asyncio.wait_for(main(), 30))


@in_own_network
def test_a_cancelled_probe_leaves_nothing_open() -> None:
    sh("""
    ip link set lo up
    sysctl -qw net.ipv4.icmp_echo_ignore_all=1
    """)

    async def main() -> None:
        before = set(os.listdir("/proc/self/fd"))
        probes = [
            asyncio.create_task(run_probe(target(Icmp(), 80), answer_budget())) for _ in range(3)
        ]
        await asyncio.sleep(0.1)
        assert len(set(os.listdir("/proc/self/fd")) - before) == 1, "one socket for all"
        for probe in probes:
            probe.cancel()
        await asyncio.wait(probes)
        assert set(os.listdir("/proc/self/fd")) == before

    asyncio.run(main())


@in_own_network
def test_no_route() -> None:
    answer = asyncio.run(run_probe(target(Icmp(), 80, "10.10.0.2"), answer_budget()))
    assert answer == Answer(up=False, detail="no route to the network of 10.10.0.2")


@pytest.mark.skipif(os.geteuid() != 0, reason="the privilege is dropped from root")
def test_without_the_capability_nothing_is_known() -> None:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setresuid(65534, 65534, 65534)
            answer = asyncio.run(run_probe(target(Icmp(), 80), answer_budget()))
            status = 0 if answer.up is None and "not permitted" in answer.detail else 2
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
