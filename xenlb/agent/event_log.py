"""The log of events for `events` and `why`: in memory, in a file, and in the host's journal.

The file is beside the state file, so that a restarted agent still has the events of before. An
error of the file is never fatal. The lasting record is the host's journal (systemd), which gets
each line too.
"""

import asyncio
import json
import logging
import os
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from xenlb.control.protocol import Json
from xenlb.model.domain import GuestId
from xenlb.model.guest import Guest
from xenlb.model.note import Note
from xenlb.untrusted.rate import TokenBucket

log = logging.getLogger("xenlb")

MOST_LINES = 10_000
LARGEST = 1024 * 1024  # bytes of the file
# Lines of one guest in the host's journal: so many at once, then so many a second. journald drops
# lines of a unit beyond 10,000 in 30 s, of whichever guest.
BURST, RATE = 100, 1.0
KEYS = {"number": int, "time": str, "level": str, "text": str}  # of each line


@dataclass(frozen=True, slots=True)
class _StoredLine:
    """`json`: the same line, encoded once."""

    line: dict[str, Any]
    json: Json


@dataclass(slots=True)
class _JournalLimit:
    """The rate of one guest's lines in the host's journal, and how many were left out of late."""

    rate: TokenBucket = field(default_factory=lambda: TokenBucket(BURST, RATE))
    left_out: int = 0


@dataclass(slots=True)
class EventLog:
    """`wall` turns the boot-time clock into ISO 8601. `file` None: in memory alone.

    The number of lines is bounded and shared among guests: the oldest line of the guest with the
    most lines is dropped first. So one guest cannot displace the lines of others.
    """

    wall: Callable[[float], str]
    file: Path | None = None
    _lines: dict[int, _StoredLine] = field(default_factory=dict)  # by number, in order
    _numbers: dict[str | None, deque[int]] = field(default_factory=dict)  # of each guest, by UUID
    _limits: dict[str, _JournalLimit] = field(default_factory=dict)  # by UUID
    _last: int = 0  # number of the newest line
    _written: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        if self.file is not None:
            paths = (self._earlier(self.file), self.file)
            lines = [line for path in paths for line in _read_lines(path)]
            for line in sorted(lines, key=lambda line: int(line["number"])):
                self._store(_StoredLine(line, Json(json.dumps(line))))

    @staticmethod
    def _earlier(file: Path) -> Path:
        """The second file of an earlier version of xenlb."""
        return file.with_name(f"{file.name}.1")

    def _store(self, stored: _StoredLine) -> None:
        self._last = number = stored.line["number"]
        self._lines[number] = stored
        self._numbers.setdefault(stored.line.get("uuid"), deque()).append(number)
        if len(self._lines) > MOST_LINES:
            longest = max(self._numbers, key=lambda guest: len(self._numbers[guest]))
            del self._lines[self._numbers[longest].popleft()]

    def _append(self, text: Json) -> None:
        if self.file is None:
            return
        try:
            fd = os.open(self.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                # The line break comes first: it ends a line that a kill has cut.
                os.write(fd, b"\n" + text.encode())
                full = os.fstat(fd).st_size > LARGEST
            finally:
                os.close(fd)
            if full:
                self._shorten(self.file)
        except OSError as error:
            log.debug("%s cannot be written: %s", self.file, error)

    def _shorten(self, file: Path) -> None:
        """Rewrite the file at half its size.

        The oldest lines of the guests with the most lines are left out.
        """
        numbers = {guest: deque(own) for guest, own in self._numbers.items()}
        sizes = {
            guest: sum(len(self._lines[number].json) + 1 for number in own)
            for guest, own in numbers.items()
        }
        while sum(sizes.values()) > LARGEST // 2:
            largest = max(sizes, key=lambda guest: sizes[guest])
            for _ in range(1 + len(numbers[largest]) // 8):
                sizes[largest] -= len(self._lines[numbers[largest].popleft()].json) + 1
        left = sorted(number for own in numbers.values() for number in own)
        new = file.with_name(f".{file.name}.new")
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as stream:
            stream.write(b"".join(b"\n" + self._lines[number].json.encode() for number in left))
        new.replace(file)
        self._earlier(file).unlink(missing_ok=True)

    def write(self, note: Note, guests: Mapping[GuestId, Guest]) -> None:
        """Store and log a line; `guests` have the name for it."""
        guest = None if note.guest is None else guests.get(note.guest)
        name = guest.name if guest is not None else None
        line = {
            "number": self._last + 1,
            "time": self.wall(note.at),
            "level": "warning" if note.warning else "info",
            "guest": name,
            "uuid": None if note.guest is None else str(note.guest.uuid),
            "kind": note.kind.value,
            **({"late": True} if note.late else {}),
            "text": note.text,
        }
        text = Json(json.dumps(line))
        self._store(_StoredLine(line, text))
        self._append(text)
        self._log(note, name)
        self._written.set()
        self._written = asyncio.Event()

    def _log(self, note: Note, name: str | None) -> None:
        """Write to the host's journal."""
        level = logging.WARNING if note.warning else logging.INFO
        if note.guest is None:
            log.log(level, "%s", note.text)
            return
        limit = self._limits.setdefault(str(note.guest.uuid), _JournalLimit())
        if not limit.rate.take(note.at):
            limit.left_out += 1
            return
        more = f" ({limit.left_out} earlier lines are only in xenlb events)" * bool(limit.left_out)
        limit.left_out = 0
        log.log(level, "%s: %s%s", name or note.guest, note.text, more)

    def lines(self, guest: GuestId | None = None) -> list[dict[str, Any]]:
        """The stored lines, oldest first; those of one guest, or all."""
        if guest is None:
            return [stored.line for stored in self._lines.values()]
        return [self._lines[number].line for number in self._numbers.get(str(guest.uuid), ())]

    def texts(self) -> list[Json]:
        """The stored lines as JSON, oldest first."""
        return [stored.json for stored in self._lines.values()]

    async def follow(self) -> AsyncGenerator[Json, None]:
        """Yield the stored lines, then new ones as they come, until the caller stops."""
        last = 0
        while True:
            written = self._written
            newest = list(islice(reversed(self._lines), self._last - last))
            texts = [self._lines[number].json for number in reversed(newest) if number > last]
            last = self._last
            for text in texts:
                yield text
            await written.wait()


def _read_lines(file: Path) -> list[dict[str, Any]]:
    """The lines of a file that an agent wrote, without damaged ones."""
    try:
        if not file.is_file() or file.stat().st_size > 2 * LARGEST:
            return []
        lines = [_parsed(text) for text in file.read_bytes().split(b"\n")]
    except OSError as error:
        log.debug("%s cannot be read: %s", file, error)
        return []
    return [line for line in lines if line is not None]


def _parsed(text: bytes) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(line, dict):
        return None
    required = all(isinstance(line.get(key), kind) for key, kind in KEYS.items())
    optional = all(isinstance(line.get(key, 0), str | None) for key in ("guest", "uuid"))
    return line if required and optional else None
