"""Does a pattern of the configuration occur in what a server said?

FACTS

- Whoever writes the pattern is trusted, the text is not: Python's engine tries every way to match,
  and for `a.*b.*c` some 64 KiB of the letters a and b take it hours. It holds the interpreter's
  lock all the while, so that a thread would not help.
- It looks for signals every 4,096 steps of the match at one place, and a handler that raises ends
  it; but not between places, nor within a step such as the `.*c` of `.*b.*c`, which is as long as
  the text at most. So where a text is long enough for that to matter, the places are gone through
  here, at some 0.2 µs each: 64 KiB take 12 ms.
- Python runs signal handlers in the main thread, where the agent's loop is. Elsewhere a search is
  not limited.
"""

import re
import signal
import threading
from functools import lru_cache
from types import FrameType

LONGEST = 0.1  # s of a search, of this process's time
# Characters of a text that is short: what a step at each place costs is nothing.
SHORT = 200

_searching = False


class Endless(Exception):
    """The search took too long: what the server said is too much for the pattern."""


def found(pattern: str, *texts: str) -> bool:
    """In any of the texts; all of them share the time of one search. Raises Endless."""
    global _searching  # as there is one timer of a process, too
    compiled = _compiled(pattern)
    if threading.current_thread() is not threading.main_thread():
        return any(compiled.search(text) for text in texts)
    if signal.getsignal(signal.SIGVTALRM) is not _stop:
        # For good: a signal that is still under way when its handler is taken off ends the process.
        signal.signal(signal.SIGVTALRM, _stop)
    try:
        _searching = True
        signal.setitimer(signal.ITIMER_VIRTUAL, LONGEST)
        return any(_found(compiled, text) for text in texts)
    finally:
        _searching = False
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def _found(compiled: re.Pattern[str], text: str) -> bool:
    if len(text) <= SHORT or not set("*+?{").intersection(compiled.pattern):
        return compiled.search(text) is not None
    return any(compiled.match(text, place) for place in range(len(text) + 1))


def _stop(signum: int, frame: FrameType | None) -> None:
    if _searching:
        raise Endless


@lru_cache(maxsize=1024)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)
