"""The agent's clock: CLOCK_BOOTTIME, which counts through suspend and never jumps.

Model and state file use its seconds; people are shown UTC, reckoned from it.
"""

import time
from datetime import UTC, datetime


def now() -> float:
    """Seconds since the host booted."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def wall(at: float) -> str:
    """ISO 8601 in UTC, to the millisecond, of a time on this clock.

    The same moment gives the same text each time, until the host's clock is set.
    """
    moment = datetime.fromtimestamp(_realtime.offset() + at, tz=UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class _Realtime:
    """How far CLOCK_REALTIME is ahead of this clock.

    Both are slewed alike, so only setting the host's clock changes it. An interruption between the
    two readings does not.
    """

    EXACT = 0.001  # seconds that the readings may take, to be believed
    SET = 0.005  # a smaller difference is one of the readings

    def __init__(self) -> None:
        self._known: float | None = None

    def offset(self) -> float:
        before = now()
        seen = time.time() - before
        exact = now() - before < self.EXACT
        if self._known is None or (exact and abs(seen - self._known) > self.SET):
            self._known = seen
        return self._known


_realtime = _Realtime()
