"""What `events` and `why` show outlives the agent, within bounds."""

from pathlib import Path
from uuid import UUID

import pytest

from xenlb import journal
from xenlb.journal import Journal
from xenlb.model.events import GuestId
from xenlb.model.guest import Guest
from xenlb.model.state import Note

MAIL = GuestId(uri="xen:///system", uuid=UUID(int=1))
GUESTS = {MAIL: Guest(id=MAIL, name="mail1")}


def begun(file: Path) -> Journal:
    return Journal(wall=str, file=file)


def write(it: Journal, *texts: str, guest: GuestId | None = MAIL) -> None:
    for at, text in enumerate(texts):
        it.write(Note(at=at, text=text, guest=guest, warning=True), GUESTS)


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
    monkeypatch.setattr(journal, "LARGEST", 1000)
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
