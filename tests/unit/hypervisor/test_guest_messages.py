"""Values that a Xen guest writes, against a fake xenstored."""

import asyncio
from pathlib import Path

import pytest

from tests.fakes.xenstored import READ, UNWATCH
from tests.unit.hypervisor.running import run, until
from tests.unit.hypervisor.test_xenstore_source import MAIL, WEB, Running, guest
from xenlb.hypervisor.xenstore import guest_messages
from xenlb.hypervisor.xenstore.guest_messages import HOLD, SHUTDOWN, GuestNode
from xenlb.model.domain import RequestKind
from xenlb.model.events import ShutdownCancelled, ShutdownRequested


def word(domid: int) -> str:
    return f"/local/domain/{domid}/data/xenlb"


def stays(it: Running) -> list[int | None]:
    return [event.incarnation for event in it.events if isinstance(event, ShutdownCancelled)]


def test_hold_reports_leaving_and_staying(short: Path) -> None:
    async def main() -> None:
        async with Running(short) as it:
            it.daemon.create(4, str(MAIL))
            it.daemon.create(7, str(WEB))
            await it.settled()
            it.daemon.write(word(4), "staying")
            await until(lambda: stays(it) == [4], "its boot")
            it.daemon.write(word(4), "leaving")
            await until(it.asks, "the word")
            assert it.asks() == [(4, RequestKind.INSIDE)]
            asked = it.events[-1]
            assert isinstance(asked, ShutdownRequested)
            assert asked.guest == guest(MAIL)
            it.daemon.write(word(4), "leaving")  # no news
            it.daemon.write(word(4), "staying")
            await until(lambda: stays(it) == [4, 4], "it stays")
            assert it.asks() == [(4, RequestKind.INSIDE)]

    run(main)


def test_value_written_while_the_agent_was_away_counts(short: Path) -> None:
    async def main() -> None:
        it = Running(short)
        it.daemon.create(4, str(MAIL))
        it.daemon.write(word(4), "leaving")
        async with it:
            await until(it.asks, "the word")
            # A xenstored that restarts tells it again: it is no news.
            it.daemon.drop()
            await until(lambda: not it.source.connected, "the connection is lost")
            await until(lambda: it.source.connected, "it is back")
            await it.settled()
            assert it.asks() == [(4, RequestKind.INSIDE)]
            it.daemon.write(word(4), "staying")
            await until(lambda: stays(it) == [4], "it stays")

    run(main)


@pytest.mark.parametrize("said", ["", "LEAVING", "leaving ", "x" * 4000, "leaving\n", "\x00\xff"])
def test_unknown_values_are_ignored(said: str, short: Path) -> None:
    async def main() -> None:
        async with Running(short) as it:
            it.daemon.create(4, str(MAIL))
            await it.settled()
            it.daemon.write(word(4), said)
            it.daemon.write(word(4) + "/below", "leaving")
            await it.settled()
            assert it.events == []

    run(main)


def test_a_value_concerns_its_own_domain_only(short: Path) -> None:
    async def main() -> None:
        async with Running(short) as it:
            it.daemon.create(4, str(MAIL))
            it.daemon.create(7, str(WEB))
            await it.settled()
            it.daemon.write("/local/domain/4/data/xenlb/7", "leaving")
            it.daemon.write("/local/domain/4/data/leaving", "leaving")
            await it.settled()
            assert it.events == []

    run(main)


@pytest.fixture
def _short_mute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest_messages, "MUTED", 0.3)


@pytest.mark.usefixtures("_short_mute")
@pytest.mark.parametrize(
    ("topic", "said", "ask"),
    [(HOLD, "leaving", RequestKind.INSIDE), (SHUTDOWN, "poweroff", RequestKind.POWEROFF)],
    ids=["hold", "shutdown"],
)
def test_a_node_that_is_written_too_often_is_not_watched_for_a_while(
    topic: GuestNode, said: str, ask: RequestKind, short: Path, caplog: pytest.LogCaptureFixture
) -> None:
    node = topic.path

    async def main() -> None:
        # All within a second, however long it takes here.
        async with Running(short, clock=lambda: 1000.0) as it:
            it.daemon.create(4, str(MAIL))
            it.daemon.create(7, str(WEB))
            await it.settled()
            for number in range(3 * guest_messages.BURST):
                it.daemon.write(node(4), f"noise {number}")
                await asyncio.sleep(0)
            await until(lambda: "too often" in caplog.text, "the warning")
            reads = sum(kind == READ and parts[0] == node(4) for kind, parts in it.daemon.requests)
            assert reads <= guest_messages.BURST + 1
            unwatched = [parts for kind, parts in it.daemon.requests if kind == UNWATCH]
            assert unwatched == [(node(4), f"{topic.token}4")]
            it.daemon.write(node(7), said)  # others are heard meanwhile
            await until(lambda: (7, ask) in it.asks(), "the other's word")
            it.daemon.write(node(4), said)
            await until(lambda: (4, ask) in it.asks(), "what it said last")
            for number in range(2 * guest_messages.BURST):
                it.daemon.write(node(4), f"noise {number}")
                await asyncio.sleep(0.001)
        assert caplog.text.count("too often") == 1, "warned once"

    run(main)


def test_domains_that_have_ended_are_forgotten(short: Path) -> None:
    async def main() -> None:
        async with Running(short) as it:
            it.daemon.create(4, str(MAIL))
            await it.settled()
            it.daemon.write(word(4), "leaving")
            await until(it.asks, "the word")
            it.daemon.destroy(4)
            await until(it.deaths, "its end")
            await it.settled()
            unwatched = [parts[0] for kind, parts in it.daemon.requests if kind == UNWATCH]
            assert word(4) in unwatched
            it.daemon.create(4, str(MAIL))  # ids are used again after a reboot of the host
            await it.settled()
            it.daemon.write(word(4), "leaving")
            await until(lambda: len(it.asks()) == 2, "the word of the new one")

    run(main)
