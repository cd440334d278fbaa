"""A limiter for each guest, over all the ways in which it can report its shutdown.

A guest reports that it shuts down or stays in xenstore (control/shutdown, which it may write
itself, and data/xenlb), by a virtio port and by TCP. Each report changes a weight and is a line of
the event log. So a burst of reports passes at once, and later ones every few seconds. The newest
report is never lost: it is held until the limiter passes it. Reports of the hold and requests from
outside are held apart, so that one does not hide the other.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from xenlb.model.domain import GuestId, RequestKind
from xenlb.model.events import Event, ShutdownCancelled, ShutdownRequested
from xenlb.untrusted.rate import TokenBucket

BURST, RATE = 6, 1 / 3  # reports at once, then a second
TOO_OFTEN = "reports too often; its newest report counts every few seconds"
REMEMBERED = 1024  # guests; those that have been quiet for long are forgotten first

Report = ShutdownRequested | ShutdownCancelled
Applied = asyncio.Future[None] | None


@dataclass(slots=True)
class _Guest:
    """What is held of a guest.

    `held`: the newest report of each kind that has not passed yet, the oldest kind first. `noted`:
    the event log says that the guest reports too often.
    """

    rate: TokenBucket = field(default_factory=lambda: TokenBucket(BURST, RATE))
    held: dict[bool, tuple[Report, Applied]] = field(default_factory=dict)
    timer: asyncio.TimerHandle | None = None
    noted: bool = False


class GuestLimiter:
    """`emit` gets every event that passes; `note` writes a line of the event log."""

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

    def take(self, event: Event, applied: Applied = None) -> None:
        """Pass or hold an event. `applied` is cancelled where a newer report replaces it.

        To be called in the loop's thread.
        """
        if not isinstance(event, Report):
            self._emit(event, applied)
            return
        guest, now = self._guest(event.guest), self._clock()
        if not guest.held:
            guest.noted = guest.noted and not guest.rate.idle(now)
            if guest.rate.take(now):
                self._emit(event, applied)
                return
        if not guest.noted:
            guest.noted = True
            self._note(TOO_OFTEN, guest=event.guest, warning=True)
        from_hold = isinstance(event, ShutdownCancelled) or event.kind is RequestKind.INSIDE
        _, replaced = guest.held.pop(from_hold, (event, None))
        if replaced is not None:
            replaced.cancel()
        guest.held[from_hold] = event, applied
        self._wait(guest, now)

    def close(self) -> None:
        """Drop what is held."""
        for guest in self._guests.values():
            if guest.timer is not None:
                guest.timer.cancel()

    def _guest(self, guest_id: GuestId) -> _Guest:
        if guest_id not in self._guests and len(self._guests) >= REMEMBERED:
            now = self._clock()
            self._guests = {
                key: guest
                for key, guest in self._guests.items()
                if guest.held or not guest.rate.idle(now)
            }
        return self._guests.setdefault(guest_id, _Guest())

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
