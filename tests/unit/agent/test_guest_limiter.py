"""How often a guest is heard, over all its ways of speaking."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import pytest

from tests.fakes.kernel import FakeKernel
from tests.fakes.xenstored import FakeXenstored
from tests.unit.agent.test_loop import XEN, agent_at_work, guest, listed
from xenlb import clock
from xenlb.agent import guest_limiter
from xenlb.agent.guest_limiter import BURST, GuestLimiter
from xenlb.hypervisor.xenstore.source import XenstoreSource
from xenlb.model.domain import GuestId, RequestKind
from xenlb.model.events import Died, Event, ShutdownCancelled, ShutdownRequested

MAIL, WEB = (GuestId(uri="xen:///system", uuid=UUID(int=n)) for n in (1, 2))


class World:
    """Time that passes at once: `run` lets what is held come."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.events: list[Event] = []
        self.notes: list[tuple[str, GuestId]] = []
        self.limiter = GuestLimiter(self._emit, lambda: self.now, self._note)

    def _emit(self, event: Event, taken: asyncio.Future[None] | None) -> None:
        self.events.append(event)
        if taken is not None:
            taken.set_result(None)

    def _note(self, text: str, *, guest: GuestId, warning: bool) -> None:
        assert warning
        self.notes.append((text, guest))

    def leaving(self, guest: GuestId = MAIL) -> ShutdownRequested:
        return ShutdownRequested(at=self.now, guest=guest, incarnation=4, kind=RequestKind.INSIDE)

    def staying(self, guest: GuestId = MAIL) -> ShutdownCancelled:
        return ShutdownCancelled(at=self.now, guest=guest, incarnation=4)

    def asked(
        self, guest: GuestId = MAIL, ask: RequestKind = RequestKind.POWEROFF
    ) -> ShutdownRequested:
        return ShutdownRequested(at=self.now, guest=guest, incarnation=4, kind=ask)

    def release(self, seconds: float) -> None:
        """As its timers do, which wait for so long."""
        until = self.now + seconds
        while self.now < until:
            self.now += 0.5
            for one in self.limiter._guests.values():
                if one.timer is not None:
                    one.timer.cancel()
                    self.limiter._release(one)


def play(story: Callable[[World], None]) -> World:
    world = World()

    async def main() -> None:
        story(world)
        world.limiter.close()

    asyncio.run(main())
    return world


def test_one_that_speaks_without_end_is_heard_every_few_seconds() -> None:
    def story(world: World) -> None:
        for n in range(10_000):  # 200 a second, for 50 s
            world.limiter.take((world.leaving, world.staying, world.asked)[n % 3]())
            world.release(0.0)
            world.now += 0.005
            if not n % 100:
                world.release(0.5)

    world = play(story)
    assert len(world.events) <= BURST + 100 / 3 + 1
    assert world.notes == [(guest_limiter.TOO_OFTEN, MAIL)], "said once while it lasts"


def test_the_newest_word_is_not_lost() -> None:
    def story(world: World) -> None:
        for n in range(101):
            world.limiter.take((world.leaving, world.staying)[n % 2]())
        assert len(world.events) == BURST
        world.release(4.0)

    world = play(story)
    assert len(world.events) == BURST + 1
    assert isinstance(world.events[-1], ShutdownRequested), "the 101st"


def test_its_word_does_not_hide_what_the_host_asks_for() -> None:
    def story(world: World) -> None:
        for n in range(50):
            world.limiter.take((world.leaving, world.staying)[n % 2]())
        request = world.asked()
        world.limiter.take(request)
        for n in range(50):
            world.limiter.take((world.leaving, world.staying)[n % 2]())
        world.release(8.0)
        assert world.events[BURST:][0] is request

    assert len(play(story).events) == BURST + 2


def test_others_and_other_events_are_not_held() -> None:
    def story(world: World) -> None:
        for _ in range(50):
            world.limiter.take(world.leaving())
        word, death = world.leaving(WEB), Died(at=world.now, guest=MAIL, incarnation=4)
        world.limiter.take(word)
        world.limiter.take(death)
        assert world.events[BURST:] == [word, death]

    play(story)


def test_who_waits_for_a_word_is_told_what_became_of_it() -> None:
    def story(world: World) -> None:
        for _ in range(BURST):
            world.limiter.take(world.leaving())
        loop = asyncio.get_running_loop()
        first, second = loop.create_future(), loop.create_future()
        world.limiter.take(world.staying(), first)
        world.limiter.take(world.leaving(), second)
        assert first.cancelled(), "a newer word has taken its place"
        world.release(4.0)
        assert second.done()
        assert not second.cancelled()

    play(story)


def test_said_again_after_it_was_quiet() -> None:
    def story(world: World) -> None:
        for _ in range(2):
            for _ in range(BURST + 1):
                world.limiter.take(world.leaving())
            world.release(60.0)

    assert len(play(story).notes) == 2


def test_quiet_guests_are_forgotten() -> None:
    def story(world: World) -> None:
        for n in range(3 * guest_limiter.REMEMBERED):
            one = GuestId(uri="xen:///system", uuid=UUID(int=n))
            world.limiter.take(world.staying(one))
            world.now += 4.0
        assert len(world.limiter._guests) <= guest_limiter.REMEMBERED

    play(story)


@pytest.mark.parametrize(
    ("node", "words"),
    [("control/shutdown", ("poweroff", "")), ("data/xenlb", ("leaving", "staying"))],
)
def test_a_guest_that_writes_its_xenstore_fills_nobodys_history(
    node: str, words: tuple[str, str], tmp_path: Path
) -> None:
    """From the node to the history and the state file."""

    async def main() -> list[str]:
        async with (
            FakeXenstored(str(tmp_path / "xs")) as xenstored,
            agent_at_work(tmp_path, FakeKernel()) as desk,
        ):
            xenstored.create(5, str(guest(1).uuid))
            xenstored.create(6, str(guest(2).uuid))
            await desk.say(listed(mail1=5, mail2=6))
            await desk.pass_checks()
            source = XenstoreSource(
                XEN, desk.agent.emit, clock.now, socket_path=str(tmp_path / "xs")
            )
            running = asyncio.create_task(source.run())
            while not source.connected:
                await asyncio.sleep(0.01)
            before = len(desk.agent.event_log.lines())
            for n in range(300):
                xenstored.write(f"/local/domain/5/{node}", words[n % 2])
                await asyncio.sleep(0.001)
            xenstored.write("/local/domain/6/control/shutdown", "reboot")
            while not desk.agent.event_log.lines(guest(2))[-1]["text"].startswith(
                "asked for reboot"
            ):
                await asyncio.sleep(0.01)
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            return [str(line["text"]) for line in desk.agent.event_log.lines()[before:]]

    lines = asyncio.run(main())
    assert len(lines) <= 2 * BURST + 10, lines
