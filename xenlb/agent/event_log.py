"""What the agent saw and did, for `events` and `why`: kept in memory, logged as it happens.

It is also written to a file beside the state file, so that a restarted agent knows the incident of
five minutes ago. The file is a convenience: one that cannot be written, or read, stops nothing. The
lasting record is the host's journal (systemd), which has every line of this one.
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

KEPT = 10_000  # lines
LARGEST = 1024 * 1024  # bytes of the file, and of what is kept of it when it is written anew
# Lines of one guest in the host's journal: so many at once, then so many a second. journald leaves
# out what a unit writes beyond 10,000 lines in 30 s, of whomever.
BURST, RATE = 100, 1.0
KEYS = {"number": int, "time": str, "level": str, "text": str}  # of each line


@dataclass(slots=True)
class _Line:
    """`text` is its JSON, made once."""

    line: dict[str, Any]
    text: Json


@dataclass(slots=True)
class _Said:
    """What one guest has in the host's journal: how often, and lines that were left out."""

    rate: TokenBucket = field(default_factory=lambda: TokenBucket(BURST, RATE))
    left_out: int = 0


@dataclass(slots=True)
class EventLog:
    """`wall` turns the boot-time clock into ISO 8601. `file` None: in memory alone.

    What is kept is bounded, and shared out among guests: the oldest line of the guest with the most
    goes first, so that one guest does not push out the lines of others.
    """

    wall: Callable[[float], str]
    file: Path | None = None
    _lines: dict[int, _Line] = field(default_factory=dict)  # by number, in order
    _numbers: dict[str | None, deque[int]] = field(default_factory=dict)  # of each guest, by UUID
    _said: dict[str, _Said] = field(default_factory=dict)
    _number: int = 0
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        if self.file is not None:
            lines = [line for file in (self._former(self.file), self.file) for line in _read(file)]
            for line in sorted(lines, key=lambda line: int(line["number"])):
                self._keep(_Line(line, Json(json.dumps(line))))

    @staticmethod
    def _former(file: Path) -> Path:
        return file.with_name(f"{file.name}.1")

    def _keep(self, line: _Line) -> None:
        self._number = number = line.line["number"]
        self._lines[number] = line
        self._numbers.setdefault(line.line.get("uuid"), deque()).append(number)
        if len(self._lines) > KEPT:
            most = max(self._numbers, key=lambda guest: len(self._numbers[guest]))
            del self._lines[self._numbers[most].popleft()]

    def _append(self, text: Json) -> None:
        if self.file is None:
            return
        try:
            fd = os.open(self.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                # The break in front: behind a line that was cut by a kill a new one begins.
                os.write(fd, b"\n" + text.encode())
                full = os.fstat(fd).st_size > LARGEST
            finally:
                os.close(fd)
            if full:
                self._write_anew(self.file)
        except OSError as error:
            log.debug("%s cannot be written: %s", self.file, error)

    def _write_anew(self, file: Path) -> None:
        """The file in half its size: of the guests with most, the oldest lines go."""
        kept = {guest: deque(numbers) for guest, numbers in self._numbers.items()}
        sizes = {
            guest: sum(len(self._lines[number].text) + 1 for number in numbers)
            for guest, numbers in kept.items()
        }
        while sum(sizes.values()) > LARGEST // 2:
            most = max(sizes, key=lambda guest: sizes[guest])
            for _ in range(1 + len(kept[most]) // 8):
                sizes[most] -= len(self._lines[kept[most].popleft()].text) + 1
        numbers = sorted(number for each in kept.values() for number in each)
        new = file.with_name(f".{file.name}.new")
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as stream:
            stream.write(b"".join(b"\n" + self._lines[number].text.encode() for number in numbers))
        new.replace(file)
        self._former(file).unlink(missing_ok=True)

    def write(self, note: Note, guests: Mapping[GuestId, Guest]) -> None:
        """Keeps and logs a line; `guests` give the name to it."""
        guest = None if note.guest is None else guests.get(note.guest)
        name = guest.name if guest is not None else None
        line = {
            "number": self._number + 1,
            "time": self.wall(note.at),
            "level": "warning" if note.warning else "info",
            "guest": name,
            "uuid": None if note.guest is None else str(note.guest.uuid),
            "kind": note.kind.value,
            **({"late": True} if note.late else {}),
            "text": note.text,
        }
        text = Json(json.dumps(line))
        self._keep(_Line(line, text))
        self._append(text)
        self._log(note, name)
        self._news.set()
        self._news = asyncio.Event()

    def _log(self, note: Note, name: str | None) -> None:
        """To the host's journal."""
        level = logging.WARNING if note.warning else logging.INFO
        if note.guest is None:
            log.log(level, "%s", note.text)
            return
        said = self._said.setdefault(str(note.guest.uuid), _Said())
        if not said.rate.take(note.at):
            said.left_out += 1
            return
        more = f" ({said.left_out} lines of it were left out: xenlb events)" * (said.left_out > 0)
        said.left_out = 0
        log.log(level, "%s: %s%s", name or note.guest, note.text, more)

    def lines(self, guest: GuestId | None = None) -> list[dict[str, Any]]:
        """The lines kept, oldest first; of one guest, or all."""
        if guest is None:
            return [kept.line for kept in self._lines.values()]
        return [self._lines[number].line for number in self._numbers.get(str(guest.uuid), ())]

    def texts(self) -> list[Json]:
        """The lines kept as JSON, oldest first."""
        return [kept.text for kept in self._lines.values()]

    async def follow(self) -> AsyncGenerator[Json, None]:
        """The lines kept, then new ones as they come, until the caller has enough."""
        last = 0
        while True:
            news = self._news
            new = list(islice(reversed(self._lines), self._number - last))
            texts = [self._lines[number].text for number in reversed(new) if number > last]
            last = self._number
            for text in texts:
                yield text
            await news.wait()


def _read(file: Path) -> list[dict[str, Any]]:
    """The lines of a file that an agent wrote; what is none is left out."""
    try:
        if not file.is_file() or file.stat().st_size > 2 * LARGEST:
            return []
        found = [_line(text) for text in file.read_bytes().split(b"\n")]
    except OSError as error:
        log.debug("%s cannot be read: %s", file, error)
        return []
    return [line for line in found if line is not None]


def _line(text: bytes) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(line, dict):
        return None
    right = all(isinstance(line.get(key), kind) for key, kind in KEYS.items())
    optional = all(isinstance(line.get(key, 0), str | None) for key in ("guest", "uuid"))
    return line if right and optional else None
