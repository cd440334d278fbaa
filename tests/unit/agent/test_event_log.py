"""The journal: what followers get, and what outlives the agent, within bounds."""

import asyncio
import json
import logging
import re
from pathlib import Path
from uuid import UUID

import pytest

from xenlb.agent import event_log
from xenlb.agent.event_log import EventLog
from xenlb.model.domain import GuestId
from xenlb.model.guest import Guest
from xenlb.model.note import Note, NoteKind

MAIL = GuestId(uri="xen:///system", uuid=UUID(int=1))
GUESTS = {MAIL: Guest(id=MAIL, name="mail1")}


def begun(file: Path) -> EventLog:
    return EventLog(wall=str, file=file)


def write(it: EventLog, *texts: str, guest: GuestId | None = MAIL) -> None:
    for at, text in enumerate(texts):
        it.write(Note(kind=NoteKind.AGENT, at=at, text=text, guest=guest, warning=True), GUESTS)


def test_a_restarted_agent_knows_what_happened(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    first = begun(file)
    write(first, "asked for poweroff", "gone")
    write(first, "configuration loaded", guest=None)
    second = begun(file)
    assert second.lines() == first.lines()
    write(second, "started")
    assert [line["text"] for line in begun(file).lines(MAIL)] == [
        "asked for poweroff",
        "gone",
        "started",
    ]
    assert [line["number"] for line in second.lines()] == [1, 2, 3, 4]
    assert file.stat().st_mode & 0o777 == 0o600


def test_the_history_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_log, "LARGEST", 1000)
    file = tmp_path / "events.jsonl"
    it = begun(file)
    write(it, *(f"event {number}" for number in range(200)))
    assert sum(each.stat().st_size for each in tmp_path.iterdir()) < 2500
    assert [each["text"] for each in begun(file).lines()][-1] == "event 199"


@pytest.mark.parametrize(
    "damage", [b"\n[1]", b"\n{", b"\n\xff\xfe", b'\n{"number": "x"}', b"\n" + b"[" * 100_000]
)
def test_a_damaged_line_costs_itself_alone(tmp_path: Path, damage: bytes) -> None:
    file = tmp_path / "events.jsonl"
    write(begun(file), "one")
    with file.open("ab") as stream:
        stream.write(damage)
    second = begun(file)
    write(second, "two")
    assert [line["text"] for line in begun(file).lines()] == ["one", "two"]


def test_a_file_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    it = begun(tmp_path / "none" / "events.jsonl")
    write(it, "one")
    assert [line["text"] for line in it.lines()] == ["one"]


def test_a_follower_gets_what_a_former_agent_wrote(tmp_path: Path) -> None:
    async def story() -> None:
        file = tmp_path / "events.jsonl"
        write(begun(file), "asked for poweroff", "gone")
        second = begun(file)
        follower = second.follow()
        texts = [json.loads(await anext(follower))["text"] for _ in range(2)]
        write(second, "started")
        texts.append(json.loads(await anext(follower))["text"])
        assert texts == ["asked for poweroff", "gone", "started"]
        await follower.aclose()

    asyncio.run(story())


def numbered(it: EventLog, *numbers: int) -> None:
    for number in numbers:
        it.write(Note(kind=NoteKind.AGENT, at=float(number), text=str(number)), {})


def test_followers_get_every_line_in_order() -> None:
    async def story() -> None:
        it = EventLog(wall=str)
        numbered(it, 1, 2)
        one, other = it.follow(), it.follow()
        first = [await anext(one), await anext(one)]
        numbered(it, 3)
        first.append(await anext(one))
        assert [json.loads(line)["text"] for line in first] == ["1", "2", "3"]
        second = [await anext(other) for _ in range(3)]
        assert all(a is b for a, b in zip(first, second, strict=True)), "made once for all"
        assert [json.loads(line) for line in first] == it.lines()
        await one.aclose()
        await other.aclose()

    asyncio.run(story())


def test_a_slow_follower_loses_what_is_not_kept_any_more() -> None:
    async def story() -> None:
        it = EventLog(wall=str)
        numbered(it, 1)
        slow = it.follow()
        await anext(slow)
        numbered(it, *range(2, event_log.MOST_LINES + 10))
        assert json.loads(await anext(slow))["text"] == "10"
        await slow.aclose()

    asyncio.run(story())


WEB = GuestId(uri="xen:///system", uuid=UUID(int=2))


def flooded(it: EventLog, number: int, *, step: float = 0.005) -> None:
    """One guest's lines, 200 a second, in between two of another's."""
    it.write(Note(kind=NoteKind.AGENT, at=0.0, text="asked for reboot", guest=WEB), GUESTS)
    for n in range(number):
        it.write(
            Note(kind=NoteKind.AGENT, at=n * step, text=f"asked for poweroff {n}", guest=MAIL),
            GUESTS,
        )
    it.write(Note(kind=NoteKind.AGENT, at=number * step, text="started", guest=WEB), GUESTS)


def test_one_guest_does_not_push_out_the_lines_of_others(tmp_path: Path) -> None:
    it = begun(tmp_path / "events.jsonl")
    write(it, "configuration loaded", guest=None)
    flooded(it, 2 * event_log.MOST_LINES)
    assert len(it.lines()) == event_log.MOST_LINES
    assert [line["text"] for line in it.lines(WEB)] == ["asked for reboot", "started"]
    assert it.lines()[0]["text"] == "configuration loaded"
    assert it.lines(MAIL)[-1]["text"] == f"asked for poweroff {2 * event_log.MOST_LINES - 1}"
    numbers = [line["number"] for line in it.lines()]
    assert numbers == sorted(numbers)
    again = begun(tmp_path / "events.jsonl")
    assert again.lines(WEB) == it.lines(WEB), "nor out of the file"
    assert again.lines()[0]["text"] == "configuration loaded"
    files = list(tmp_path.iterdir())
    assert sum(file.stat().st_size for file in files) < 1.01 * event_log.LARGEST


def test_a_flood_is_few_lines_in_the_journal_of_the_host(
    caplog: pytest.LogCaptureFixture,
) -> None:
    it = EventLog(wall=str)
    with caplog.at_level(logging.INFO, logger="xenlb"):
        flooded(it, 2000)  # for 10 s
        about = [record.message for record in caplog.records]
        assert len([text for text in about if "asked for poweroff" in text]) <= (
            event_log.BURST + 10 * event_log.RATE
        )
        assert about[-1].endswith(": started"), "the other's"
        it.write(Note(kind=NoteKind.AGENT, at=60.0, text="gone", guest=MAIL), GUESTS)
    left_out = [
        int(found[1])
        for record in caplog.records
        if (
            found := re.search(r"\((\d+) earlier lines are only in xenlb events\)$", record.message)
        )
    ]
    of_it = [record for record in caplog.records if record.message.startswith("mail1: ")]
    assert sum(left_out) + len(of_it) == 2001, "each is there or counted"
