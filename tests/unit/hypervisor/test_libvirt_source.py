"""The libvirt source with libvirt's test driver, in this process and in a real libvirtd."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import libvirt
import pytest

from tests.soak import often
from tests.unit.hypervisor.daemon import BINARY, Daemon
from tests.unit.hypervisor.running import clock, ended, run, until
from xenlb.hypervisor.libvirt import connections, event_loop, queries
from xenlb.hypervisor.libvirt import source as source_module
from xenlb.hypervisor.libvirt.metadata import NAMESPACE
from xenlb.hypervisor.libvirt.queries import CallFailed, Unreachable
from xenlb.hypervisor.libvirt.source import LibvirtSource
from xenlb.model.domain import DomainState, GuestId, MetadataService, StopReason
from xenlb.model.events import (
    Disconnected,
    GuestsListed,
    HypervisorEvent,
    MetadataChanged,
    Paused,
    Resumed,
    Started,
    Stopped,
    Undefined,
)
from xenlb.model.settings import KEEPALIVE

ROOT = Path(__file__).parents[3]
UUID_OF_TEST = UUID("6695eb01-f6a4-8304-79aa-97f2502e193f")
E = TypeVar("E")

needs_daemon = pytest.mark.skipif(
    not os.path.exists(BINARY), reason="libvirtd is missing (apt install libvirt-daemon)"
)


def _idle() -> bool:
    return event_loop.IMPLEMENTATION.idle


class Running:
    def __init__(self, uri: str, *, keepalive: float = KEEPALIVE) -> None:
        self.events: list[HypervisorEvent] = []
        self.source = LibvirtSource(uri, self.events.append, clock, keepalive=keepalive)
        self.guest = GuestId(uri=uri, uuid=UUID_OF_TEST)
        self.task: asyncio.Task[None] | None = None
        self.hung = False

    async def __aenter__(self) -> "Running":
        self.task = asyncio.create_task(self.source.run())
        await until(lambda: self.source.connected, "connected")
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self.task is not None
        await ended(self.task)
        if not self.hung:
            await until(_idle, "the end of libvirt's handles and timers")

    def of(self, kind: type[E]) -> list[E]:
        return [event for event in self.events if isinstance(event, kind)]

    async def seen(self, kind: type[E], number: int = 1) -> E:
        await until(lambda: len(self.of(kind)) >= number, f"{kind.__name__} number {number}")
        return self.of(kind)[number - 1]


def _reset(domain: Any) -> None:
    """Reset the test driver, which lives as long as the process: running, without metadata."""
    if not domain.isActive():
        domain.create()
    elif domain.state()[0] == libvirt.VIR_DOMAIN_PAUSED:
        domain.resume()
    domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, None, "xenlb", NAMESPACE, 0)


@pytest.fixture
def domain() -> Iterator[Any]:
    connection = libvirt.open("test:///default")
    found = connection.lookupByName("test")
    _reset(found)
    yield found
    _reset(found)
    connection.close()


@pytest.fixture
def daemon(short: Path) -> Iterator[Daemon]:
    folder = short / "d"
    folder.mkdir()
    short.chmod(0o755)
    made = Daemon(folder)
    yield made
    made.kill()


METADATA = "<services><service name='mail' weight='2'/></services>"


async def _life(it: Running, do: Callable[[str], object]) -> None:
    """`do` one of suspend, resume, metadata, shutdown, create, destroy, in a thread."""
    (listed,) = it.of(GuestsListed)
    (guest,) = listed.guests
    assert (guest.guest, guest.name, guest.domain_state) == (it.guest, "test", DomainState.RUNNING)
    assert guest.incarnation is not None
    assert listed.requested_at <= listed.at
    first = guest.incarnation

    await asyncio.to_thread(do, "suspend")
    assert (await it.seen(Paused)).incarnation == first
    await asyncio.to_thread(do, "resume")
    assert (await it.seen(Resumed)).incarnation == first
    assert await it.source.call(queries.live_ids) == {first}

    await asyncio.to_thread(do, "metadata")
    changed = await it.seen(MetadataChanged)
    assert changed.services == (MetadataService(name="mail", weight=2),)

    await asyncio.to_thread(do, "shutdown")
    stopped = await it.seen(Stopped)
    assert (stopped.guest, stopped.reason) == (it.guest, StopReason.SHUTDOWN)
    assert stopped.incarnation in {None, first}
    assert await it.source.call(queries.live_ids) == frozenset()

    await asyncio.to_thread(do, "create")
    started = await it.seen(Started)
    assert (started.guest, started.name) == (it.guest, "test")
    assert started.incarnation != first
    # What was known of the metadata comes with it; what it is now follows.
    assert started.metadata == changed.services
    await it.seen(MetadataChanged, 2)

    await asyncio.to_thread(do, "destroy")
    assert (await it.seen(Stopped, 2)).reason is StopReason.DESTROYED
    await asyncio.to_thread(do, "create")
    again = await it.seen(Started, 2)

    await it.source.relist()
    relisted = it.of(GuestsListed)[-1]
    assert [g.incarnation for g in relisted.guests] == [again.incarnation]
    order = [type(e) for e in it.events if not isinstance(e, MetadataChanged)]
    assert order == [
        GuestsListed,
        Paused,
        Resumed,
        Stopped,
        Started,
        Stopped,
        Started,
        GuestsListed,
    ]
    assert [e.at for e in it.events] == sorted(e.at for e in it.events)


def test_life_of_a_guest_in_this_process(domain: Any) -> None:
    def do(what: str) -> None:
        if what == "metadata":
            kind = libvirt.VIR_DOMAIN_METADATA_ELEMENT
            domain.setMetadata(kind, METADATA, "xenlb", NAMESPACE, 0)
        else:
            getattr(domain, what)()

    async def main() -> None:
        async with Running("test:///default") as it:
            assert it.source.hypervisor_type == "TEST"
            await _life(it, do)

    run(main)


@needs_daemon
def test_life_of_a_guest_in_a_daemon(daemon: Daemon) -> None:
    daemon.start()

    def do(what: str) -> None:
        metadata = f'metadata test {NAMESPACE} --key xenlb --set "{METADATA}"'
        daemon.virsh({"metadata": metadata, "create": "start test"}.get(what, f"{what} test"))

    async def main() -> None:
        async with Running(daemon.uri) as it:
            await _life(it, do)

    run(main)


def test_shutdown_and_reboot_requests(domain: Any) -> None:
    async def main() -> None:
        async with Running("test:///default") as it:
            await it.source.shutdown(it.guest)
            assert (await it.seen(Stopped)).reason is StopReason.SHUTDOWN
            gone = GuestId(uri=it.guest.uri, uuid=UUID(int=1))
            with pytest.raises(CallFailed, match="Domain not found"):
                await it.source.shutdown(gone)
        with pytest.raises(Unreachable):
            await it.source.shutdown(it.guest)

    run(main)


def test_transient_and_undefined_guests() -> None:
    xml = (
        "<domain type='test'><name>{}</name><memory>1024</memory><os><type>hvm</type></os></domain>"
    )

    async def main() -> None:
        async with Running("test:///default") as it:
            connection = libvirt.open("test:///default")
            transient = connection.createXML(xml.format("transient"))
            started = await it.seen(Started)
            assert (started.name, started.guest.uuid) == (
                "transient",
                UUID(transient.UUIDString()),
            )
            transient.destroy()
            assert (await it.seen(Stopped)).guest == started.guest
            defined = connection.defineXML(xml.format("defined"))
            uuid = UUID(defined.UUIDString())
            # Nothing runs because of it, but it can be spoken of.
            await until(
                lambda: uuid in {g.guest.uuid for g in it.of(GuestsListed)[-1].guests}, "listed"
            )
            described = {g.guest.uuid: g for g in it.of(GuestsListed)[-1].guests}[uuid]
            assert (described.domain_state, described.incarnation) == (DomainState.OFF, None)
            defined.undefine()
            assert (await it.seen(Undefined)).guest.uuid == uuid
            connection.close()

    run(main)


@needs_daemon
def test_missing_daemon_is_logged_once_and_retried(
    daemon: Daemon, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_module, "SHORTEST_PAUSE", 0.05)

    async def main() -> None:
        it = Running(daemon.uri)
        task = asyncio.create_task(it.source.run())
        await it.seen(Disconnected)
        await asyncio.sleep(0.4)  # three attempts
        assert [type(e) for e in it.events] == [Disconnected]
        await asyncio.to_thread(daemon.start)
        await it.seen(GuestsListed)
        await ended(task)

    run(main)
    # The one warning is made of the event.
    assert not [r for r in caplog.records if r.levelname == "WARNING" and "libvirt" in r.name]


@needs_daemon
def test_daemon_killed_and_started_again(daemon: Daemon) -> None:
    daemon.start()

    async def main() -> None:
        async with Running(daemon.uri) as it:
            for number in range(1, 4):
                daemon.kill()
                await it.seen(Disconnected, number)
                assert not it.source.connected
                with pytest.raises(Unreachable):
                    await it.source.call(queries.live_ids)
                await asyncio.to_thread(daemon.start)
                await it.seen(GuestsListed, number + 1)
            # Its events come again.
            await asyncio.to_thread(daemon.virsh, "destroy test")
            await it.seen(Stopped)
            assert len(it.of(Disconnected)) == 3
            assert len(it.of(Stopped)) == 1

    run(main, limit=60)


@needs_daemon
def test_hung_daemon_is_detected_and_reconnected(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A daemon on a busy machine may be slow for a second or two, and has not hung yet.
    monkeypatch.setattr(connections, "PING_INTERVAL", 1)
    monkeypatch.setattr(source_module, "SHORTEST_PAUSE", 0.05)
    daemon.start()

    async def main() -> None:
        async with Running(daemon.uri, keepalive=4) as it:
            monkeypatch.setattr(source_module, "CONNECT", 0.05)
            threads = threading.active_count()
            daemon.signal(signal.SIGSTOP)
            call = asyncio.create_task(it.source.call(queries.live_ids))
            relist = asyncio.create_task(it.source.relist())
            lost = await it.seen(Disconnected)
            assert "keepalive" in lost.reason
            with pytest.raises(Unreachable):
                await call
            await relist
            await asyncio.sleep(0.4)
            # The daemon accepts connections but does not answer: all attempts share one thread.
            assert threading.active_count() <= threads + 1
            daemon.signal(signal.SIGCONT)
            await it.seen(GuestsListed, 2)

    run(main)


@needs_daemon
def test_daemon_that_hangs_in_the_first_listing_is_detected(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "PING_INTERVAL", 1)
    daemon.start()
    list_domains = queries.list_domains

    def hang(connection: Any, uri: str) -> Any:
        daemon.signal(signal.SIGSTOP)
        return list_domains(connection, uri)

    monkeypatch.setattr(queries, "list_domains", hang)

    async def main() -> None:
        it = Running(daemon.uri, keepalive=4)
        task = asyncio.create_task(it.source.run())
        lost = await it.seen(Disconnected)
        assert "keepalive" in lost.reason
        monkeypatch.setattr(queries, "list_domains", list_domains)
        daemon.signal(signal.SIGCONT)
        await it.seen(GuestsListed)
        await ended(task)
        await until(_idle, "the end of libvirt's handles and timers")

    run(main)


def _end_left_behind(folder: Path) -> None:
    """Kill the daemon of a program that could not."""
    with suppress(FileNotFoundError, ProcessLookupError):
        number = int((folder / "run" / "libvirt" / "libvirtd.pid").read_text())
        if bytes(folder) in Path(f"/proc/{number}/environ").read_bytes():  # it is still that one
            os.kill(number, signal.SIGKILL)


@needs_daemon
def test_slow_daemon_does_not_end_the_process(short: Path) -> None:
    """libvirt before 10.4 (CVE-2024-4418) crashes on two calls on one connection, and on keepalive
    beside a call: an agent that did both ended with SIGSEGV in the second round."""
    folder = short / "d"
    folder.mkdir()
    short.chmod(0o755)
    rounds = often(3, soak=12)  # one of each kind
    program = [sys.executable, "-X", "dev", "-m", "tests.unit.hypervisor.slow_daemon"]
    try:
        ended = subprocess.run(
            [*program, str(rounds), str(folder)],
            check=False,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
        )
    finally:
        _end_left_behind(folder)
    assert ended.returncode == 0, ended.stdout[-1000:] + ended.stderr[-4000:]
    assert f"round {rounds - 1}" in ended.stdout


@needs_daemon
def test_ends_promptly_while_the_daemon_hangs(daemon: Daemon) -> None:
    daemon.start()

    async def main() -> float:
        async with Running(daemon.uri) as it:
            daemon.signal(signal.SIGSTOP)
            it.hung = True
            begun = time.monotonic()
        took = time.monotonic() - begun
        daemon.signal(signal.SIGCONT)  # the thread that was left behind ends now
        await until(_idle, "the end of libvirt's handles and timers")
        return took

    assert run(main) < 2 * connections.CLOSE


@needs_daemon
def test_events_during_calls_keep_their_order(daemon: Daemon) -> None:
    """Threads of calls read the connection, including events."""
    daemon.start()

    async def main() -> None:
        async with Running(daemon.uri) as it:
            work = asyncio.create_task(
                asyncio.to_thread(daemon.virsh, *["suspend test", "resume test"] * 40)
            )
            while not work.done():
                await asyncio.gather(it.source.relist(), it.source.call(queries.live_ids))
            await it.seen(Resumed, 40)
            kinds = [type(e) for e in it.events if isinstance(e, (Paused, Resumed))]
            assert kinds == [Paused, Resumed] * 40

    run(main)


@needs_daemon
def test_event_for_an_unlisted_guest_waits_for_the_listing(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon.start()
    held = threading.Event()
    list_domains = queries.list_domains

    def slow(connection: Any, uri: str) -> Any:
        guests = list_domains(connection, uri)
        daemon.virsh("suspend test")
        held.wait(10)
        return guests

    monkeypatch.setattr(queries, "list_domains", slow)

    async def main() -> None:
        it = Running(daemon.uri)
        task = asyncio.create_task(it.source.run())
        await asyncio.sleep(0.3)
        assert it.events == []
        held.set()
        await it.seen(Paused)
        assert [type(e) for e in it.events] == [GuestsListed, Paused]
        listed, paused = it.events
        assert isinstance(listed, GuestsListed)
        assert isinstance(paused, Paused)
        assert listed.requested_at < paused.at < listed.at  # so the model knows which is newer
        await ended(task)

    run(main)
