"""The xenstore source against a fake xenstored: requests, deaths, reconnecting."""

import asyncio
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.xenstored import READ, UNWATCH, FakeXenstored
from tests.unit.hypervisor.running import clock, ended, run, until
from xenlb.hypervisor.xenstore import source
from xenlb.hypervisor.xenstore.client import XenstoreClient, XenstoreUnavailable
from xenlb.hypervisor.xenstore.source import XenstoreSource
from xenlb.hypervisor.xenstore.wire import Decoder, Garbled, Message, Type, encode, strings
from xenlb.model.domain import GuestId, RequestKind
from xenlb.model.events import Died, HypervisorEvent, ShutdownRequested

URI = "xen:///system"
MAIL, WEB = UUID(int=1), UUID(int=2)


def guest(uuid: UUID) -> GuestId:
    return GuestId(uri=URI, uuid=uuid)


class Running:
    """A source on a fake xenstored, with what it emitted."""

    def __init__(self, folder: Path, clock: Callable[[], float] = clock) -> None:
        self.path = str(folder / "socket")
        self.daemon = FakeXenstored(self.path)
        self.events: list[HypervisorEvent] = []
        self.dead: set[int] = set()
        self.source = XenstoreSource(
            URI, self.events.append, clock, socket_path=self.path, find_dead=self.find_dead
        )
        self.task: asyncio.Task[None] | None = None

    async def find_dead(self) -> frozenset[int]:
        return frozenset(self.dead)

    async def __aenter__(self) -> "Running":
        await self.daemon.start()
        self.task = asyncio.create_task(self.source.run())
        await until(lambda: self.source.connected, "connected")
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self.task is not None
        await ended(self.task)
        await self.daemon.stop()

    async def settled(self) -> None:
        """Wait until everything sent so far was handled."""
        await asyncio.sleep(0.05)

    def asks(self) -> list[tuple[int | None, RequestKind]]:
        return [(e.incarnation, e.kind) for e in self.events if isinstance(e, ShutdownRequested)]

    def deaths(self) -> list[tuple[UUID, int | None]]:
        return [(e.guest.uuid, e.incarnation) for e in self.events if isinstance(e, Died)]

    def request(self, domid: int, word: str) -> None:
        self.daemon.write(f"/local/domain/{domid}/control/shutdown", word)


@pytest.mark.parametrize(
    ("word", "ask"),
    [
        ("poweroff", RequestKind.POWEROFF),
        ("halt", RequestKind.POWEROFF),
        ("reboot", RequestKind.REBOOT),
        ("suspend", RequestKind.SUSPEND),
        ("dance", RequestKind.POWERDOWN),
    ],
)
def test_request_is_reported_with_its_kind_and_incarnation(
    short: Path, word: str, ask: RequestKind
) -> None:
    async def main() -> None:
        async with Running(short) as it:
            it.daemon.create(4, str(MAIL))
            it.daemon.create(7, str(WEB))
            await it.settled()
            it.request(7, word)
            await until(it.asks, "the request")
            it.request(7, "")
            await it.settled()
            assert it.asks() == [(7, ask)]
            (event,) = it.events
            assert isinstance(event, ShutdownRequested)
            assert event.guest == guest(WEB)

    run(main)


def test_domains_there_before_the_agent_are_watched(short: Path) -> None:
    async def main() -> None:
        it = Running(short)
        it.daemon.create(4, str(MAIL))
        async with it:
            await it.settled()
            assert it.events == []
            it.request(4, "reboot")
            await until(it.asks, "the request")
            assert it.asks() == [(4, RequestKind.REBOOT)]

    run(main)


def test_creating_a_domain_is_not_reported_as_a_request(short: Path) -> None:
    async def main() -> None:
        async with Running(short) as it:
            # Another domain's introduction makes the source look while this one is half made.
            it.daemon.write("/local/domain/5/vm", f"/vm/{MAIL}")
            it.daemon.create(6, str(WEB))
            await it.settled()
            it.daemon.create(5, str(MAIL))
            await it.settled()
            assert it.events == []
            assert it.source.missed_requests == 0

    run(main)


def test_request_that_the_guest_cleared_before_the_read_is_reported(short: Path) -> None:
    async def main() -> None:
        async with Running(short) as it:
            it.daemon.create(4, str(MAIL))
            await it.settled()
            it.daemon.answering.clear()  # the agent or xenstored is slow
            it.request(4, "poweroff")
            it.request(4, "")
            await it.settled()
            it.daemon.answering.set()
            await until(it.asks, "the request")
            assert it.asks() == [(4, RequestKind.POWERDOWN)]
            assert it.source.missed_requests == 1
            it.request(4, "")  # one firing alone is no request
            await it.settled()
            assert len(it.asks()) == 1

    run(main)


def test_read_is_sent_from_within_the_watch_callback(short: Path) -> None:
    """Nothing runs between the watch's firing and the read."""

    async def main() -> None:
        async with FakeXenstored(str(short / "socket")) as daemon:
            written: list[int] = []

            def watched(path: str, _token: str) -> None:
                client.request(Type.READ, path)
                written.append(len(client._unsent))

            client = XenstoreClient(watched)
            client.connect(daemon.path)
            await client.watch("/a", "token")
            await until(lambda: written, "the firing")
            # request() has written its bytes to the socket before it returned.
            assert written == [0]
            await until(lambda: (READ, ("/a",)) in daemon.requests, "the read")
            client.close()

    run(main)


def test_death_seen_by_libvirt_is_reported_once(short: Path) -> None:
    async def main() -> None:
        async with Running(short) as it:
            it.daemon.create(4, str(MAIL))
            it.daemon.create(7, str(WEB))
            await it.settled()
            it.daemon.release()
            await asyncio.sleep(0.03)
            assert it.deaths() == []
            it.dead = {4}  # libvirt's state follows a little later
            await until(it.deaths, "the death")
            it.daemon.destroy(4)
            await it.settled()
            assert it.deaths() == [(MAIL, 4)]
            await until(
                lambda: (
                    (UNWATCH, ("/local/domain/4/control/shutdown", "shutdown-4"))
                    in it.daemon.requests
                ),
                "the watch's end",
            )

    run(main)


def test_death_is_reported_when_the_domain_is_destroyed(short: Path) -> None:
    async def main() -> None:
        async with Running(short) as it:
            it.daemon.create(4, str(MAIL))
            await it.settled()
            it.daemon.destroy(4)
            await until(it.deaths, "the death")
            assert it.deaths() == [(MAIL, 4)]

    run(main)


def test_reboot_reports_the_old_domain_and_watches_the_new(short: Path) -> None:
    async def main() -> None:
        async with Running(short) as it:
            it.daemon.create(4, str(MAIL))
            await it.settled()
            it.request(4, "reboot")
            await until(it.asks, "the request")
            it.request(4, "")
            it.dead = {4}
            it.daemon.release()
            it.daemon.create(5, str(MAIL))
            it.daemon.destroy(4)
            await it.settled()
            it.request(5, "poweroff")
            await until(lambda: len(it.asks()) == 2, "the second request")
            assert it.asks() == [(4, RequestKind.REBOOT), (5, RequestKind.POWEROFF)]
            assert it.deaths() == [(MAIL, 4)]

    run(main)


def test_reconnecting_restores_every_watch(short: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with Running(short) as it:
            it.daemon.create(4, str(MAIL))
            it.daemon.create(7, str(WEB))
            await it.settled()
            for _ in range(3):
                it.daemon.drop()
                await until(lambda: not it.source.connected, "lost")
                await until(lambda: it.source.connected, "connected again")
            it.daemon.destroy(7)
            await until(it.deaths, "the death")
            it.request(4, "poweroff")
            await until(it.asks, "the request")
            assert it.asks() == [(4, RequestKind.POWEROFF)]
            assert it.deaths() == [(WEB, 7)]

    run(main)
    assert len([r for r in caplog.records if r.levelname == "WARNING"]) == 3


def test_missing_xenstored_is_logged_once_and_retried(
    short: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "SHORTEST_PAUSE", 0.05)

    async def main() -> None:
        it = Running(short)
        task = asyncio.create_task(it.source.run())
        await asyncio.sleep(0.4)  # three attempts
        assert not it.source.connected
        await it.daemon.start()
        await until(lambda: it.source.connected, "connected")
        it.daemon.create(4, str(MAIL))
        await it.settled()
        it.request(4, "poweroff")
        await until(it.asks, "the request")
        await ended(task)
        await it.daemon.stop()

    run(main)
    assert len([r for r in caplog.records if r.levelname == "WARNING"]) == 1


def test_addresses_that_a_guest_reports(short: Path) -> None:
    async def main() -> None:
        async with Running(short) as it:
            base = "/local/domain/4"
            it.daemon.write(f"{base}/attr/vif/0/ipv4/0", "10.0.0.4")
            it.daemon.write(f"{base}/attr/vif/0/ipv6/0", "fe80::1")
            it.daemon.write(f"{base}/attr/vif/0/ipv6/1", "fd00::4")
            it.daemon.write(f"{base}/attr/eth0/ip", "10.0.0.5")
            it.daemon.write(f"{base}/data/ip", "x" * 2000)
            assert await it.source.reported_addresses(4, 16) == (
                "10.0.0.4",
                "fd00::4",
                "10.0.0.5",
                "x" * 2000,
            )
            assert await it.source.reported_addresses(4, 2) == ("10.0.0.4", "fd00::4")
            assert await it.source.reported_addresses(5, 16) == ()

    run(main)


def test_requests_end_with_the_connection(short: Path) -> None:
    async def main() -> None:
        async with FakeXenstored(str(short / "socket")) as daemon:
            client = XenstoreClient(lambda _path, _token: None)
            client.connect(daemon.path)
            daemon.answering.clear()
            waiting = asyncio.create_task(client.read("/a"))
            await asyncio.sleep(0.05)
            daemon.answering.set()
            daemon.drop()
            with pytest.raises(XenstoreUnavailable):
                await waiting
            assert "closed" in await client.lost
            with pytest.raises(XenstoreUnavailable):
                await client.read("/a")

    run(main)


# --- the bytes -----------------------------------------------------------------------------------

MESSAGES = st.lists(
    st.tuples(st.integers(0, 20), st.integers(0, 2**32 - 1), st.binary(max_size=60)),
    max_size=8,
)


def _pieces(data: bytes, sizes: Iterable[int]) -> Iterable[bytes]:
    for size in sizes:
        yield data[:size]
        data = data[size:]
    yield data


@given(messages=MESSAGES, sizes=st.lists(st.integers(0, 40), max_size=20))
def test_decoder_does_not_depend_on_the_pieces(
    messages: list[tuple[int, int, bytes]], sizes: list[int]
) -> None:
    data = b"".join(
        struct.pack("=IIII", kind, request, 0, len(payload)) + payload
        for kind, request, payload in messages
    )
    decoder = Decoder()
    seen = [m for piece in _pieces(data, sizes) for m in decoder.feed(piece)]
    assert seen == [Message(kind, request, payload) for kind, request, payload in messages]


def test_decoder_refuses_a_stream_that_is_not_xenstore() -> None:
    with pytest.raises(Garbled):
        list(Decoder().feed(b"HTTP/1.1 400 Bad Request\r\n"))


def test_bytes_of_a_request() -> None:
    assert encode(Type.WATCH, 9, "@releaseDomain", "t") == (
        struct.pack("=IIII", 4, 9, 0, 17) + b"@releaseDomain\0t\0"
    )
    assert strings(b"a\0b\0") == ("a", "b")
    assert strings(b"") == ()
