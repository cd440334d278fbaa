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
from xenlb.model.events import GuestId
from xenlb.model.guest import Guest
from xenlb.model.state import Note

log = logging.getLogger("xenlb")

KEPT = 10_000  # lines
LARGEST = 1024 * 1024  # bytes of the file; as much again is kept of the one before
KEYS = {"number": int, "time": str, "level": str, "text": str}  # of each line


@dataclass(slots=True)
class Journal:
    """`wall` turns the boot-time clock into ISO 8601. `file` None: in memory alone."""

    wall: Callable[[float], str]
    file: Path | None = None
    _lines: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=KEPT))
    _texts: deque[Json] = field(default_factory=lambda: deque(maxlen=KEPT))  # of the same lines
    _number: int = 0
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        if self.file is not None:
            for file in (self._former(self.file), self.file):
                self._lines.extend(_read(file))
            self._texts.extend(Json(json.dumps(line)) for line in self._lines)
            self._number = max((line["number"] for line in self._lines), default=0)

    @staticmethod
    def _former(file: Path) -> Path:
        return file.with_name(f"{file.name}.1")

    def _keep(self, text: Json) -> None:
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
                self.file.replace(self._former(self.file))
        except OSError as error:
            log.debug("%s cannot be written: %s", self.file, error)

    def write(self, note: Note, guests: Mapping[GuestId, Guest]) -> None:
        """Keeps and logs a line; `guests` give the name to it."""
        guest = None if note.guest is None else guests.get(note.guest)
        name = guest.name if guest is not None else None
        self._number += 1
        line = {
            "number": self._number,
            "time": self.wall(note.at),
            "level": "warning" if note.warning else "info",
            "guest": name,
            "uuid": None if note.guest is None else str(note.guest.uuid),
            "text": note.text,
        }
        text = Json(json.dumps(line))
        self._lines.append(line)
        self._texts.append(text)
        self._keep(text)
        level = logging.WARNING if note.warning else logging.INFO
        if note.guest is None:
            log.log(level, "%s", note.text)
        else:
            log.log(level, "%s: %s", name or note.guest, note.text)
        self._news.set()
        self._news = asyncio.Event()

    def lines(self, guest: GuestId | None = None) -> list[dict[str, Any]]:
        """The lines kept, oldest first; of one guest, or all."""
        if guest is None:
            return list(self._lines)
        return [line for line in self._lines if line["uuid"] == str(guest.uuid)]

    async def follow(self) -> AsyncGenerator[Json, None]:
        """The lines kept, then new ones as they come, until the caller has enough."""
        last = 0
        while True:
            news = self._news
            new = min(self._number - last, len(self._texts))
            last = self._number
            for text in reversed(list(islice(reversed(self._texts), new))):
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
