"""The agent's clock: CLOCK_BOOTTIME, which counts through suspend and never jumps.

Model and state file use its seconds; people are shown UTC, reckoned from it.
"""

import time
from datetime import UTC, datetime


def now() -> float:
    """Seconds since the host booted."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def wall(at: float) -> str:
    """ISO 8601 in UTC, to the millisecond, of a time on this clock."""
    moment = datetime.fromtimestamp(time.time() - now() + at, tz=UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
