"""The agent's clock: CLOCK_BOOTTIME, which counts through suspend and never jumps.

Model and state file use its seconds; messages show UTC, computed from it.
"""

import time
from datetime import UTC, datetime


def now() -> float:
    """Return the seconds since the host booted."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def wall(at: float) -> str:
    """Return a time on this clock as ISO 8601 in UTC, to the millisecond.

    The text of a time does not change until the host's clock is set.
    """
    moment = datetime.fromtimestamp(_realtime.offset() + at, tz=UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class _Realtime:
    """The difference between CLOCK_REALTIME and this clock.

    Both are slewed alike, so only setting the host's clock changes it. A reading that was
    interrupted must not.
    """

    EXACT = 0.001  # seconds that a reading may take
    SET = 0.005  # seconds: a smaller change is an error of reading

    def __init__(self) -> None:
        self._known: float | None = None

    def offset(self) -> float:
        before = now()
        offset = time.time() - before
        exact = now() - before < self.EXACT
        if self._known is None or (exact and abs(offset - self._known) > self.SET):
            self._known = offset
        return self._known


_realtime = _Realtime()
