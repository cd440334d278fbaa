"""Search for patterns of the configuration in texts of servers, with a limit on its time.

FACTS

- The pattern is trusted, the text is not: Python's engine tries every way to match, and for
  `a.*b.*c` some 64 KiB of the letters a and b take it hours. It holds the interpreter's lock
  meanwhile, so a thread would not help.
- It checks for signals every 4,096 steps of the match at one position, and a handler that raises
  ends it; but not between positions, nor within a step such as the `.*c` of `.*b.*c`, which is at
  most as long as the text. So for a long text the positions are iterated here, at some 0.2 µs each:
  64 KiB take 12 ms, in slices between which the loop runs other tasks.
- Python runs signal handlers in the main thread, where the agent's loop is. Elsewhere a search is
  not limited.
- The timer counts the time of all threads of this process; the limit is on the thread's own time.
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

LONGEST = 0.01  # s of the processor for a slice; the answer's budget limits their sum
SHORT = 200  # characters of a text that is searched in one step
POSITIONS = 2048  # of a slice

_until: float | None = None  # of the search under way, by time.thread_time()


class SearchTooLong(Exception):
    """The search in the server's text took too long."""


async def matches(pattern: str, *texts: str, budget: Budget) -> bool:
    """Whether the pattern occurs in any of the texts. Raises SearchTooLong."""
    slices = _slices(_compiled(pattern), texts)
    while True:
        try:
            budget.take()
            with _TimeLimit():
                hit = next(slices, None)
        except (BudgetSpent, SearchTooLong):
            budget.spent = True
            raise SearchTooLong from None
        if hit is None:
            return False
        if hit:
            return True
        await asyncio.sleep(0)


class _TimeLimit:
    """Raises SearchTooLong in the context after LONGEST."""

    def __enter__(self) -> None:
        global _until  # a process has one such timer
        if threading.current_thread() is not threading.main_thread():
            return
        if signal.getsignal(signal.SIGVTALRM) is not _stop:
            # Never removed: a pending signal without its handler would end the process.
            signal.signal(signal.SIGVTALRM, _stop)
        _until = time.thread_time() + LONGEST
        signal.setitimer(signal.ITIMER_VIRTUAL, LONGEST, LONGEST / 4)

    def __exit__(self, *_: object) -> None:
        global _until
        if threading.current_thread() is threading.main_thread():
            _until = None
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def _slices(compiled: re.Pattern[str], texts: tuple[str, ...]) -> Iterator[bool]:
    """Yield True for a match, False between two slices."""
    whole = not set("*+?{").intersection(compiled.pattern)
    done = 0
    for text in texts:
        if whole or len(text) <= SHORT:
            if compiled.search(text):
                yield True
            done += len(text) + 1
        else:
            for first in range(0, len(text) + 1, POSITIONS):
                last = min(first + POSITIONS, len(text) + 1)
                if any(compiled.match(text, position) for position in range(first, last)):
                    yield True
                if last <= len(text):
                    yield False
            done += len(text) % POSITIONS
        if done >= POSITIONS:
            yield False
            done = 0


def _stop(_signal: int, _frame: FrameType | None) -> None:
    if _until is not None and time.thread_time() >= _until:
        raise SearchTooLong


@lru_cache(maxsize=1024)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)
