"""Calls and their connections, against a real libvirtd: never two calls on one connection."""

import asyncio
import os
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from tests.unit.hypervisor.daemon import BINARY, Daemon
from tests.unit.hypervisor.running import clock, ended, run, until
from xenlb.hypervisor.libvirt import connections, event_loop, queries, session
from xenlb.hypervisor.libvirt.queries import CallFailed, Connection, Unreachable
from xenlb.hypervisor.libvirt.source import LibvirtSource
from xenlb.hypervisor.threads import CallTimeout
from xenlb.model.domain import GuestId
from xenlb.model.events import Disconnected, GuestsListed, HypervisorEvent, Paused, Stopped
from xenlb.model.settings import KEEPALIVE

pytestmark = pytest.mark.skipif(
    not os.path.exists(BINARY), reason="libvirtd is missing (apt install libvirt-daemon)"
)


@pytest.fixture
def daemon(short: Path) -> Iterator[Daemon]:
    folder = short / "d"
    folder.mkdir()
    short.chmod(0o755)
    made = Daemon(folder)
    made.start()
    yield made
    made.kill()


@asynccontextmanager
async def running(
    uri: str, events: list[HypervisorEvent], *, keepalive: float = KEEPALIVE
) -> AsyncIterator[LibvirtSource]:
    source = LibvirtSource(uri, events.append, clock, keepalive=keepalive)
    task = asyncio.create_task(source.run())
    await until(lambda: source.connected, "connected")
    yield source
    await ended(task)
    loop = event_loop.IMPLEMENTATION
    await until(lambda: loop.idle, "the end of libvirt's handles and timers")


class Gate:
    """A call that blocks until `go` is set; `inside`: connections in a call now, `seen`: ever."""

    def __init__(self) -> None:
        self.inside: list[int] = []
        self.seen: list[int] = []
        self.go = threading.Event()

    def __call__(self, connection: Connection) -> frozenset[int]:
        self.inside.append(id(connection))
        self.seen.append(id(connection))
        self.go.wait(10)
        try:
            return queries.live_ids(connection)
        finally:
            self.inside.remove(id(connection))


def test_concurrent_calls_use_one_connection_each(daemon: Daemon) -> None:
    async def main() -> None:
        gate = Gate()
        async with running(daemon.uri, []) as source:
            calls = [
                asyncio.create_task(source.call(gate))
                for _ in range(connections.MAX_CONNECTIONS + 2)
            ]
            await until(lambda: len(gate.inside) == connections.MAX_CONNECTIONS, "as many as may")
            assert len(set(gate.inside)) == connections.MAX_CONNECTIONS
            gate.go.set()
            assert len({await call for call in calls}) == 1
            # Those that had to wait took over what others had left.
            assert len(gate.seen) == connections.MAX_CONNECTIONS + 2
            assert len(set(gate.seen)) == connections.MAX_CONNECTIONS

    run(main)


def test_sequential_calls_share_one_connection(daemon: Daemon) -> None:
    async def main() -> None:
        gate = Gate()
        gate.go.set()
        async with running(daemon.uri, []) as source:
            for _ in range(5):
                await source.call(gate)
            with pytest.raises(CallFailed, match="Domain not found"):  # spoils nothing
                await source.shutdown(GuestId(uri=source.uri, uuid=UUID(int=1)))
            await source.call(gate)
        assert len(set(gate.seen)) == 1

    run(main)


def test_listing_does_not_delay_calls_and_keeps_its_connection(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    list_domains = queries.list_domains
    gate, lists = Gate(), list[int]()

    def held(connection: Any, uri: str) -> Any:
        lists.append(id(connection))
        gate(connection)
        return list_domains(connection, uri)

    async def main() -> None:
        calls = Gate()
        calls.go.set()
        events: list[HypervisorEvent] = []
        async with running(daemon.uri, events) as source:
            monkeypatch.setattr(queries, "list_domains", held)
            first = asyncio.create_task(source.relist())
            await until(lambda: gate.inside, "the listing")
            # Whoever gives up waiting for a listing does not end it: the next one waits for it.
            first.cancel()
            second = asyncio.create_task(source.relist())
            assert len(await source.call(calls)) == 1
            # Events go on, on the connection that the listing keeps.
            await asyncio.to_thread(daemon.virsh, "suspend test")
            await until(lambda: any(isinstance(e, Paused) for e in events), "the event")
            assert len(lists) == 1
            gate.go.set()
            await second
            assert len(set(lists)) == 1
            assert len(lists) == 2
            assert not set(calls.seen) & set(lists)

    run(main)


def test_abandoned_call_frees_its_slot(daemon: Daemon) -> None:
    async def main() -> None:
        async with running(daemon.uri, []) as source:
            alive = await source.call(queries.live_ids)
            threads = threading.active_count()
            daemon.signal(signal.SIGSTOP)
            for _ in range(connections.MAX_CONNECTIONS + 2):
                with pytest.raises(CallTimeout, match=r"within 0\.1 s"):
                    await source.call(queries.live_ids, limit=0.1)
            # The connections were hung up: their threads are not left with a daemon that hangs.
            # (libvirt.open connects, which the daemon's backlog takes, and then asks.)
            await until(lambda: threading.active_count() <= threads, "the end of the threads")
            daemon.signal(signal.SIGCONT)
            assert await source.call(queries.live_ids) == alive

    run(main)


def test_lost_connection_ends_running_and_waiting_calls(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "PING_INTERVAL", 1)

    async def main() -> None:
        async with running(daemon.uri, [], keepalive=2) as source:
            gate = Gate()
            gate.go.set()
            await source.call(gate)
            daemon.signal(signal.SIGSTOP)
            calls = [
                asyncio.create_task(source.call(gate, limit=None))
                for _ in range(connections.MAX_CONNECTIONS + 2)
            ]
            done, _ = await asyncio.wait(calls, timeout=10)
            assert [type(call.exception()) for call in done] == [Unreachable] * len(calls)
            daemon.signal(signal.SIGCONT)
            await until(lambda: source.connected, "connected again")
            assert len(await source.call(queries.live_ids)) == 1

    run(main)


def test_daemon_that_is_slow_for_less_than_keepalive_stays_connected(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And later events are reported, without a new listing."""
    monkeypatch.setattr(connections, "PING_INTERVAL", 1)

    async def main() -> None:
        events: list[HypervisorEvent] = []
        async with running(daemon.uri, events, keepalive=60) as source:
            daemon.signal(signal.SIGSTOP)
            # Real time, as libvirt counts seconds itself. With keepalive=2 it would be lost.
            await asyncio.sleep(3)
            assert source.connected
            daemon.signal(signal.SIGCONT)
            await asyncio.to_thread(daemon.virsh, "suspend test")
            await until(lambda: any(isinstance(e, Paused) for e in events), "the event")
        assert [type(event) for event in events] == [GuestsListed, Paused]

    run(main)


@pytest.mark.parametrize(("keepalive", "pings"), [(4, 1), (8, 3), (9, 3), (30, 14), (600, 299)])
def test_allowed_number_of_unanswered_pings(keepalive: float, pings: int) -> None:
    assert connections.missed_pings_allowed(keepalive) == pings


def test_broken_connection_is_replaced(daemon: Daemon) -> None:
    async def main() -> None:
        gate = Gate()
        gate.go.set()
        async with running(daemon.uri, []) as source:
            await source.call(gate)
            loop = event_loop.IMPLEMENTATION
            loop.hang_up(max(loop._open))  # the one that was opened last
            await asyncio.sleep(0.1)
            await source.call(gate)
            assert source.connected
        assert len(set(gate.seen)) == 2

    run(main)


def test_listing_that_never_ends_ends_the_connection(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    list_domains = queries.list_domains
    gate = Gate()

    def held(connection: Any, uri: str) -> Any:
        gate(connection)
        return list_domains(connection, uri)

    async def main() -> None:
        events: list[HypervisorEvent] = []
        async with running(daemon.uri, events) as source:
            monkeypatch.setattr(queries, "list_domains", held)
            monkeypatch.setattr(session, "LISTING", 0.3)
            await source.relist()
            monkeypatch.undo()
            await until(lambda: any(isinstance(e, Disconnected) for e in events), "the loss")
            gate.go.set()
            await until(lambda: source.connected, "connected again")
            assert [type(e) for e in events] == [GuestsListed, Disconnected, GuestsListed]

    run(main)


def test_driver_in_this_process_has_one_connection(short: Path) -> None:
    """Another connection to test:///FILE would show different guests."""
    file = short / "node.xml"
    file.write_text(
        "<node><domain type='test'><name>mine</name><memory>1024</memory>"
        "<uuid>00000000-0000-0000-0000-000000000007</uuid><os><type>hvm</type></os></domain></node>"
    )

    async def main() -> None:
        events: list[HypervisorEvent] = []
        async with running(f"test://{file}", events) as source:
            (listed,) = events
            assert isinstance(listed, GuestsListed)
            await source.shutdown(listed.guests[0].guest)
            await until(lambda: any(isinstance(e, Stopped) for e in events), "the event")
            assert await source.call(queries.live_ids) == frozenset()

    run(main)
