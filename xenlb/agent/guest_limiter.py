"""How often a guest is heard: one limiter for each guest, over all its ways of speaking.

A guest says that it goes or stays in xenstore (control/shutdown, which it may write itself, and
data/xenlb), by a virtio port and by TCP. Each word changes a weight and is a line of the history,
so a guest that speaks without end is heard a few times at once and then every few seconds. The
newest word is never lost: it is held until the limiter lets it. The word of the hold and a request
to go are held apart, so that one does not hide the other.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from xenlb.model.domain import GuestId, RequestKind
from xenlb.model.events import Event, ShutdownCancelled, ShutdownRequested
from xenlb.untrusted.rate import TokenBucket

BURST, RATE = 6, 1 / 3  # words at once, then a second
TOO_OFTEN = "speaks too often; its newest word is heard every few seconds"
REMEMBERED = 1024  # guests; those that have been quiet for long are forgotten first

Word = ShutdownRequested | ShutdownCancelled
Applied = asyncio.Future[None] | None


@dataclass(slots=True)
class _Guest:
    """`held`: the newest word of each kind that was not let through yet, the oldest kind first.
    `told`: the journal knows that it speaks too often."""

    rate: TokenBucket = field(default_factory=lambda: TokenBucket(BURST, RATE))
    held: dict[bool, tuple[Word, Applied]] = field(default_factory=dict)
    timer: asyncio.TimerHandle | None = None
    told: bool = False


class GuestLimiter:
    """`emit` gets every event; `note` writes a line of the history."""

    def __init__(
        self,
        emit: Callable[[Event, Applied], None],
        clock: Callable[[], float],
        note: Callable[..., None],
    ) -> None:
        self._emit = emit
        self._clock = clock
        self._note = note
        self._guests: dict[GuestId, _Guest] = {}

    def hear(self, event: Event, applied: Applied = None) -> None:
        """In the loop's thread. `applied` is cancelled where a newer word takes its place."""
        if not isinstance(event, Word):
            self._emit(event, applied)
            return
        guest, now = self._guest(event.guest), self._clock()
        if not guest.held:
            guest.told = guest.told and not guest.rate.idle(now)
            if guest.rate.take(now):
                self._emit(event, applied)
                return
        if not guest.told:
            guest.told = True
            self._note(TOO_OFTEN, guest=event.guest, warning=True)
        kind = isinstance(event, ShutdownCancelled) or event.kind is RequestKind.INSIDE
        _, former = guest.held.pop(kind, (event, None))
        if former is not None:
            former.cancel()
        guest.held[kind] = event, applied
        self._wait(guest, now)

    def close(self) -> None:
        """Nothing that is held comes any more."""
        for guest in self._guests.values():
            if guest.timer is not None:
                guest.timer.cancel()

    def _guest(self, known: GuestId) -> _Guest:
        if known not in self._guests and len(self._guests) >= REMEMBERED:
            now = self._clock()
            self._guests = {
                key: guest
                for key, guest in self._guests.items()
                if guest.held or not guest.rate.idle(now)
            }
        return self._guests.setdefault(known, _Guest())

    def _wait(self, guest: _Guest, now: float) -> None:
        if guest.timer is None:
            loop = asyncio.get_running_loop()
            guest.timer = loop.call_later(guest.rate.wait(now), self._release, guest)

    def _release(self, guest: _Guest) -> None:
        guest.timer = None
        now = self._clock()
        if guest.rate.take(now):
            self._emit(*guest.held.pop(next(iter(guest.held))))
        if guest.held:
            self._wait(guest, now)
