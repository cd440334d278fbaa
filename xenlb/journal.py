"""What the agent saw and did, for `events` and `why`: kept in memory, logged as it happens.

The lasting record is the host's journal (systemd), which has every line of this one.
"""

import asyncio
import json
import logging
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from xenlb.control.protocol import Json
from xenlb.model.events import GuestId
from xenlb.model.guest import Guest
from xenlb.model.state import Note

log = logging.getLogger("xenlb")

KEPT = 10_000  # lines


@dataclass(slots=True)
class Journal:
    """`wall` turns the boot-time clock into ISO 8601."""

    wall: Callable[[float], str]
    _lines: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=KEPT))
    _texts: deque[Json] = field(default_factory=lambda: deque(maxlen=KEPT))  # of the same lines
    _number: int = 0
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    def write(self, note: Note, guests: Mapping[GuestId, Guest]) -> None:
        """Keeps and logs a line; `guests` give the name to it."""
        guest = None if note.guest is None else guests.get(note.guest)
        name = guest.name if guest is not None else None
        self._number += 1
        self._lines.append(
            {
                "number": self._number,
                "time": self.wall(note.at),
                "level": "warning" if note.warning else "info",
                "guest": name,
                "uuid": None if note.guest is None else str(note.guest.uuid),
                "text": note.text,
            }
        )
        self._texts.append(Json(json.dumps(self._lines[-1])))
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
