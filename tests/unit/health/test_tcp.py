"""The tcp probe against real sockets, on loopback and (as root) in a network of its own."""

import asyncio
import contextlib
import errno
import os
import resource
import socket
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from tests.unit.director.netns import in_own_network, sh
from xenlb.health.probes import tcp
from xenlb.health.runner import HealthRunner
from xenlb.health.transport.result import Answer, answer_budget, failed
from xenlb.model.events import ProbeFinished
from xenlb.model.health import Health
from xenlb.model.settings import Check
from xenlb.model.target import Target


def target(port: int, address: str = "127.0.0.1", timeout: float = 3.0) -> Target:
    check = Check(interval=0.05, timeout=timeout)
    return Target(check=check, address=ip_address(address), port=port)


@contextlib.contextmanager
def listening(
    address: str = "127.0.0.1", port: int = 0, backlog: int = 5
) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((address, port))
        server.listen(backlog)
        server.settimeout(5)
        yield server


@contextlib.contextmanager
def full_backlog() -> Iterator[int]:
    """A port whose listener never accepts and whose queue is full: the kernel drops SYNs."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(listening(backlog=0))
        where = server.getsockname()
        for _ in range(10):
            client = stack.enter_context(socket.socket())
            client.settimeout(0.1)
            try:
                client.connect(where)
            except TimeoutError:
                yield where[1]
                return
        raise AssertionError("the backlog did not fill up")


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_up(address: str) -> None:
    with listening(address) as server:
        port = server.getsockname()[1]
        answer = asyncio.run(tcp.probe(target(port, address), answer_budget()))
        assert answer == Answer(up=True, detail=f"{address} accepts connections on port {port}")
        connection, _ = server.accept()
        with connection:
            connection.settimeout(5)
            assert connection.recv(1) == b"", "closed with a FIN: no reset, nothing said"


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_refused(address: str) -> None:
    with listening(address) as server:
        port = server.getsockname()[1]
    answer = asyncio.run(tcp.probe(target(port, address), answer_budget()))
    assert answer == Answer(up=False, detail=f"connection refused by {address} port {port}")


def test_a_cancelled_probe_leaves_nothing_open() -> None:
    async def main(port: int) -> None:
        before = set(os.listdir("/proc/self/fd"))
        task = asyncio.create_task(tcp.probe(target(port), answer_budget()))
        await asyncio.sleep(0.05)
        assert not task.done(), "it hangs"
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert set(os.listdir("/proc/self/fd")) == before

    with full_backlog() as port:
        asyncio.run(main(port))


def test_too_many_open_files_is_no_verdict() -> None:
    async def main() -> Answer:
        taken = [os.open("/dev/null", os.O_RDONLY)]
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(taken) + 1, hard))
        try:
            with contextlib.suppress(OSError):  # fill what is free below
                while True:
                    taken.append(os.open("/dev/null", os.O_RDONLY))
            return await tcp.probe(target(1), answer_budget())
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for each in taken:
                os.close(each)

    assert asyncio.run(main()) == Answer(
        up=None, detail="this host cannot probe 127.0.0.1 port 1: too many open files"
    )


@pytest.mark.parametrize(
    ("code", "up", "detail"),
    [
        (errno.ECONNRESET, False, "connection reset by 10.0.0.11 port 25"),
        (errno.ENETUNREACH, False, "no route to the network of 10.0.0.11"),
        (errno.ETIMEDOUT, False, "no answer from 10.0.0.11 port 25"),
        (errno.EPROTO, False, "10.0.0.11 port 25: protocol error"),
        (
            errno.EADDRNOTAVAIL,
            None,
            "this host cannot probe 10.0.0.11 port 25: cannot assign requested address",
        ),
    ],
)
def test_details_of_errors(code: int, up: bool | None, detail: str) -> None:
    answer = failed(target(25, "10.0.0.11"), OSError(code, "words of the C library"))
    assert answer == Answer(up=up, detail=detail)


def test_a_server_that_starts_later_is_reported() -> None:
    async def main() -> list[ProbeFinished]:
        results: list[ProbeFinished] = []
        with listening() as server:
            port = server.getsockname()[1]
        refused, accepted = asyncio.Event(), asyncio.Event()

        def emit(result: ProbeFinished) -> None:
            results.append(result)
            (accepted if result.up else refused).set()

        runner = HealthRunner(emit, asyncio.get_running_loop().time)
        runner.set_targets({target(port): Health(valid_from=0.0)})
        task = asyncio.create_task(runner.run())
        await asyncio.wait_for(refused.wait(), 10)
        with listening(port=port):
            await asyncio.wait_for(accepted.wait(), 10)
            task.cancel()
            await asyncio.wait([task])
        return results

    results = asyncio.run(main())
    refused, accepted = results[0], results[-1]
    assert not refused.up
    assert refused.detail.startswith("connection refused by 127.0.0.1 port ")
    assert accepted.up


def test_a_server_that_hangs_is_reported_after_the_timeout() -> None:
    async def main(port: int) -> ProbeFinished:
        told: asyncio.Queue[ProbeFinished] = asyncio.Queue()
        runner = HealthRunner(told.put_nowait, asyncio.get_running_loop().time)
        runner.set_targets({target(port, timeout=0.2): Health(valid_from=0.0)})
        task = asyncio.create_task(runner.run())
        result = await asyncio.wait_for(told.get(), 10)
        task.cancel()
        await asyncio.wait([task])
        return result

    with full_backlog() as port:
        result = asyncio.run(main(port))
        assert not result.up
        assert result.detail == f"no answer within 0.2 s from 127.0.0.1 port {port}"
        assert result.at - result.started >= 0.19


@in_own_network
def test_an_address_without_an_owner() -> None:
    """ARP without an answer, as of a booting guest."""
    sh("""
    ip link add v0 type veth peer name v1
    ip addr add 10.9.0.1/24 dev v0
    ip link set v0 up
    ip link set v1 up
    ip link set lo up
    ip -4 ntable change name arp_cache dev v0 retrans 50
    """)
    answer = asyncio.run(asyncio.wait_for(tcp.probe(target(25, "10.9.0.2"), answer_budget()), 20))
    assert answer == Answer(
        up=False,
        detail="no route to 10.9.0.2: it does not answer ARP, or a router said so",
    )
    answer = asyncio.run(tcp.probe(target(25, "10.10.0.2"), answer_budget()))
    assert answer == Answer(up=False, detail="no route to the network of 10.10.0.2")
