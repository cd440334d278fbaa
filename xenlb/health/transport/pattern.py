"""Does a pattern of the configuration occur in what a server said?

FACTS

- Whoever writes the pattern is trusted, the text is not: Python's engine tries every way to match,
  and for `a.*b.*c` some 64 KiB of the letters a and b take it hours. It holds the interpreter's
  lock all the while, so that a thread would not help.
- It looks for signals every 4,096 steps of the match at one place, and a handler that raises ends
  it; but not between places, nor within a step such as the `.*c` of `.*b.*c`, which is as long as
  the text at most. So where a text is long enough for that to matter, the places are gone through
  here, at some 0.2 µs each: 64 KiB take 12 ms, in slices between which the loop has its turn.
- Python runs signal handlers in the main thread, where the agent's loop is. Elsewhere a search is
  not limited.
- The timer counts the time of all threads of this process; of the search it is the thread's own
  that is limited.
"""

import asyncio
import re
import signal
import threading
import time
from collections.abc import Iterator
from functools import lru_cache
from types import FrameType

from xenlb.untrusted.budget import Budget, BudgetSpent

# s of the processor, between two turns of the loop. All slices of all searches in an answer have
# the answer's budget together.
LONGEST = 0.01
# Characters of a text that is short: what a step at each place costs is nothing.
SHORT = 200
PLACES = 2048  # of a slice

_until: float | None = None  # of the search under way, by time.thread_time()


class SearchTooLong(Exception):
    """The search took too long: what the server said is too much for the pattern."""


async def matches(pattern: str, *texts: str, budget: Budget) -> bool:
    """In any of the texts. Raises Endless."""
    slices = _slices(_compiled(pattern), texts)
    while True:
        try:
            budget.take()
            with _Limited():
                hit = next(slices, None)
        except (BudgetSpent, SearchTooLong):
            budget.spent = True
            raise SearchTooLong from None
        if hit is None:
            return False
        if hit:
            return True
        await asyncio.sleep(0)


class _Limited:
    """LONGEST for what is inside; Endless is raised in it."""

    def __enter__(self) -> None:
        global _until  # as there is one timer of a process, too
        if threading.current_thread() is not threading.main_thread():
            return
        if signal.getsignal(signal.SIGVTALRM) is not _stop:
            # For good: a signal still under way when its handler is taken off ends the process.
            signal.signal(signal.SIGVTALRM, _stop)
        _until = time.thread_time() + LONGEST
        signal.setitimer(signal.ITIMER_VIRTUAL, LONGEST, LONGEST / 4)

    def __exit__(self, *_: object) -> None:
        global _until
        if threading.current_thread() is threading.main_thread():
            _until = None
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def _slices(compiled: re.Pattern[str], texts: tuple[str, ...]) -> Iterator[bool]:
    """True where it is found, which ends it; False between two slices."""
    whole = not set("*+?{").intersection(compiled.pattern)
    done = 0
    for text in texts:
        if whole or len(text) <= SHORT:
            if compiled.search(text):
                yield True
            done += len(text) + 1
        else:
            for first in range(0, len(text) + 1, PLACES):
                last = min(first + PLACES, len(text) + 1)
                if any(compiled.match(text, place) for place in range(first, last)):
                    yield True
                if last <= len(text):
                    yield False
            done += len(text) % PLACES
        if done >= PLACES:
            yield False
            done = 0


def _stop(signum: int, frame: FrameType | None) -> None:
    if _until is not None and time.thread_time() >= _until:
        raise SearchTooLong


@lru_cache(maxsize=1024)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)
