"""Drains at work: what is left is counted, and libvirt asked when nothing is."""

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import libvirt
import pytest

from tests.fakes.kernel import FakeKernel
from tests.unit.agent.test_loop import KEY, XEN, agent_at_work, guest, key, listed, until
from xenlb import clock
from xenlb.agent import drain_worker
from xenlb.agent.drain_worker import DrainWorker
from xenlb.agent.handlers import Handlers
from xenlb.control.protocol import ControlError
from xenlb.hypervisor.libvirt.queries import CallFailed, Unreachable
from xenlb.hypervisor.libvirt.source import LibvirtSource
from xenlb.hypervisor.threads import CallTimeout, in_thread
from xenlb.ipvs.errors import IpvsError
from xenlb.ipvs.table import Counters
from xenlb.model import drain as drain_module
from xenlb.model.domain import GuestId, RequestKind
from xenlb.model.drain import Outcome
from xenlb.model.events import Died, Disconnected, DrainRequested, UndrainRequested
from xenlb.model.guest import Guest
from xenlb.model.state import State


class FakeLibvirt:
    """Takes requests; raises what is in `troubles` first, one after the other."""

    def __init__(self, *troubles: Exception) -> None:
        self.troubles = list(troubles)
        self.asked: list[tuple[RequestKind, GuestId]] = []

    async def shutdown(self, guest: GuestId) -> None:
        await self._take(RequestKind.POWEROFF, guest)

    async def reboot(self, guest: GuestId) -> None:
        await self._take(RequestKind.REBOOT, guest)

    async def _take(self, ask: RequestKind, guest: GuestId) -> None:
        self.asked.append((ask, guest))
        if self.troubles:
            raise self.troubles.pop(0)


def refused(code: int) -> CallFailed:
    error = libvirt.libvirtError("it is locked")
    error.err = (code, 0, "it is locked", 0, "", None, None, 0, 0)
    return CallFailed(error)


class Bench:
    def __init__(self, folder: Path, *troubles: Exception) -> None:
        self.folder = folder
        self.kernel = FakeKernel()
        self.libvirt = FakeLibvirt(*troubles)

    def play(self, story: Callable[["Bench"], object]) -> None:
        async def main() -> None:
            async with agent_at_work(self.folder, self.kernel) as self.desk:
                await self.desk.say(listed(mail1=5, mail2=4))
                await self.desk.pass_checks()
                sources = {XEN: cast(LibvirtSource, self.libvirt)}
                agent = self.desk.agent
                self.drains = DrainWorker(
                    agent.emit, clock.now, agent.write, sources, kernel=self.kernel
                )
                agent.on_state_change = lambda _before, after: self.drains.on_state_change(after)
                self.drains.on_state_change(agent.state)
                task = asyncio.create_task(self.drains.run())
                try:
                    await story(self)  # type: ignore[misc]
                finally:
                    task.cancel()
                    await asyncio.wait({task})

        asyncio.run(main())

    @property
    def state(self) -> State:
        return self.desk.agent.state

    @property
    def guest(self) -> Guest:
        return self.state.guests[guest(1)]

    def count(self, active: int) -> None:
        self.kernel.count(KEY, key(11), Counters(active_connections=active))

    async def drain(self, then: RequestKind | None = None, within: float | None = None) -> None:
        asked = DrainRequested(at=clock.now(), guest=guest(1), by="root", timeout=within, then=then)
        await self.desk.say(asked)

    async def over(self) -> Outcome | None:
        await until(lambda: self.guest.drain is None or not self.guest.drain.active)
        return None if self.guest.drain is None else self.guest.drain.outcome


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drain_worker, "COUNT", 0.02)
    monkeypatch.setattr(drain_worker, "AGAIN", 0.02)


def test_counts_until_nothing_is_left(tmp_path: Path, quick: None) -> None:
    async def story(bench: Bench) -> None:
        bench.count(3)
        await bench.drain()
        await until(lambda: bench.guest.drain is not None and bench.guest.drain.left == 3)
        assert bench.desk.weights()["10.0.0.11"] == 0
        bench.count(0)
        assert await bench.over() is Outcome.EMPTY
        await asyncio.sleep(0.1)  # one count may have been under way
        reads = bench.kernel.reads
        await asyncio.sleep(0.2)
        assert bench.kernel.reads == reads, "it counts on though nobody waits"
        assert bench.libvirt.asked == []

    Bench(tmp_path).play(story)


def test_a_kernel_that_cannot_be_read_leaves_the_deadline(tmp_path: Path, quick: None) -> None:
    async def story(bench: Bench) -> None:
        await bench.drain(within=0.3)
        bench.kernel.error = IpvsError("no", "no")
        assert await bench.over() is Outcome.DEADLINE
        bench.kernel.error = None

    Bench(tmp_path).play(story)


@pytest.mark.parametrize("ask", [RequestKind.POWEROFF, RequestKind.REBOOT])
def test_then_libvirt_is_asked_once(ask: RequestKind, tmp_path: Path, quick: None) -> None:
    async def story(bench: Bench) -> None:
        bench.count(1)
        await bench.drain(then=ask)
        await until(lambda: bench.guest.drain is not None and bench.guest.drain.left == 1)
        assert bench.libvirt.asked == []
        bench.count(0)
        await until(lambda: bench.guest.request is not None)
        await asyncio.sleep(0.2)
        assert bench.libvirt.asked == [(ask, guest(1))]
        await bench.desk.say(Died(at=clock.now(), guest=guest(1), incarnation=5))
        assert bench.guest.last_drain is not None
        assert bench.guest.last_drain.outcome is Outcome.EMPTY

    Bench(tmp_path).play(story)


def test_a_libvirt_that_is_away_is_waited_for(tmp_path: Path, quick: None) -> None:
    async def story(bench: Bench) -> None:
        await bench.drain(then=RequestKind.POWEROFF)
        await until(lambda: bench.guest.request is not None)
        assert len(bench.libvirt.asked) == 3

    Bench(tmp_path, Unreachable("away"), Unreachable("away")).play(story)


def test_a_libvirt_that_is_away_for_too_long_is_not_asked_any_more(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drain_module, "REQUEST_TIME", 0.3)

    async def story(bench: Bench) -> None:
        await bench.drain(then=RequestKind.POWEROFF, within=0.1)
        await until(lambda: bench.guest.last_drain is not None)
        assert bench.guest.last_drain is not None
        assert bench.guest.last_drain.end is Outcome.UNASKED
        assert bench.desk.weights()["10.0.0.11"] == 1
        told = bench.desk.told()
        assert told.count("the shutdown waits for libvirt: away") == 1
        assert "libvirt could not be reached in time for the shutdown: back into service" in told
        bench.libvirt.troubles.clear()  # it is back
        asked = len(bench.libvirt.asked)
        await asyncio.sleep(0.1)
        assert len(bench.libvirt.asked) == asked
        assert bench.guest.request is None

    Bench(tmp_path, *[Unreachable("away")] * 1000).play(story)


def test_what_cannot_be_done_is_refused(tmp_path: Path) -> None:
    """A plain drain needs no libvirt."""

    async def story(bench: Bench) -> None:
        verbs = Handlers(bench.desk.agent, list)
        lost = Disconnected(at=clock.now(), uri=XEN, reason="connection refused")
        await bench.desk.say(lost)
        for then in RequestKind.POWEROFF, RequestKind.REBOOT:
            with pytest.raises(ControlError) as caught:
                await verbs.drain({"guest": "mail1", "by": "root", "then": then.value})
            assert f"libvirt {XEN} is not connected: connection refused" in str(caught.value)
        assert bench.guest.drain is None
        assert bench.desk.weights()["10.0.0.11"] == 1
        await verbs.drain({"guest": "mail1", "by": "root"})
        assert bench.desk.weights()["10.0.0.11"] == 0

    Bench(tmp_path).play(story)


def test_a_thread_that_was_left_behind_asks_no_guest() -> None:
    """A call that waits for another one, or for its connection, and goes on when given up."""
    asked: list[str] = []
    go_on = threading.Event()

    class Late(LibvirtSource):
        async def call(self, function: Callable[[Any], Any], *, limit: float | None = None) -> Any:
            def wait() -> None:
                go_on.wait()
                function(connection)
                ended.set()

            return await in_thread(wait, limit=0.01)

    domain = SimpleNamespace(
        shutdownFlags=lambda _: asked.append("shutdown"), reboot=lambda _: asked.append("reboot")
    )
    connection = SimpleNamespace(lookupByUUIDString=lambda _: domain, getType=lambda: "Xen")
    for name in ("shutdown", "reboot"):
        go_on.clear()
        ended = threading.Event()
        source = Late(XEN, lambda _: None, clock.now)
        with pytest.raises(CallTimeout):
            asyncio.run(getattr(source, name)(guest(1)))
        go_on.set()
        assert ended.wait(10)
    assert asked == []


def test_what_libvirt_refuses_for_a_moment_is_asked_again(tmp_path: Path, quick: None) -> None:
    async def story(bench: Bench) -> None:
        await bench.drain(then=RequestKind.POWEROFF)
        await until(lambda: bench.guest.request is not None)
        assert bench.guest.drain is not None
        assert bench.guest.drain.failure == ""

    Bench(tmp_path, refused(libvirt.VIR_ERR_OPERATION_FAILED)).play(story)


def test_what_libvirt_refuses_for_good_is_told(tmp_path: Path, quick: None) -> None:
    async def story(bench: Bench) -> None:
        await bench.drain(then=RequestKind.POWEROFF)
        await until(lambda: bench.guest.drain is not None and bench.guest.drain.asked)
        assert bench.guest.drain is not None
        assert bench.guest.drain.failure == "it is locked"
        assert bench.guest.request is None
        assert bench.desk.weights()["10.0.0.11"] == 0
        assert "libvirt refuses the shutdown: it is locked" in bench.desk.told()
        await asyncio.sleep(0.1)
        assert len(bench.libvirt.asked) == drain_worker.REFUSALS

    Bench(tmp_path, *[refused(libvirt.VIR_ERR_OPERATION_FAILED)] * 9).play(story)


def test_undrained_while_libvirt_is_away(tmp_path: Path, quick: None) -> None:
    async def story(bench: Bench) -> None:
        await bench.drain(then=RequestKind.POWEROFF)
        await until(lambda: bool(bench.libvirt.asked))
        await bench.desk.say(UndrainRequested(at=clock.now(), guest=guest(1), by="root"))
        asked = len(bench.libvirt.asked)
        await asyncio.sleep(0.2)
        assert len(bench.libvirt.asked) <= asked + 1
        assert bench.desk.weights()["10.0.0.11"] == 1

    Bench(tmp_path, *[Unreachable("away")] * 1000).play(story)


def test_an_agent_started_anew_goes_on(tmp_path: Path, quick: None) -> None:
    async def begin(bench: Bench) -> None:
        bench.count(1)
        await bench.drain(then=RequestKind.REBOOT)
        await until(lambda: bench.guest.drain is not None and bench.guest.drain.left == 1)

    async def go_on(bench: Bench) -> None:
        bench.count(0)
        await until(lambda: bench.guest.request is not None)
        assert bench.libvirt.asked == [(RequestKind.REBOOT, guest(1))]

    bench = Bench(tmp_path)
    bench.play(begin)
    again = Bench(tmp_path)
    again.kernel = bench.kernel
    again.play(go_on)


def test_what_is_left_is_not_worth_writing_down(tmp_path: Path, quick: None) -> None:
    async def story(bench: Bench) -> None:
        bench.count(2)
        await bench.drain()
        await until(lambda: bench.guest.drain is not None and bench.guest.drain.left == 2)
        file = bench.desk.agent.state_file
        before = file.stat().st_mtime_ns
        bench.count(1)
        await until(lambda: bench.guest.drain is not None and bench.guest.drain.left == 1)
        assert file.stat().st_mtime_ns == before

    Bench(tmp_path).play(story)
