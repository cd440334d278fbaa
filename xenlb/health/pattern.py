"""Does a pattern of the configuration occur in what a server said?

FACTS

- Whoever writes the pattern is trusted, the text is not: Python's engine tries every way to match,
  and for `a.*b.*c` some 64 KiB of the letter a take it hours. It holds the interpreter's lock all
  the while, so that a thread would not help.
- It looks for signals every 4,096 steps (Modules/_sre, MAYBE_CHECK_SIGNALS), and a handler that
  raises ends the search: asked to stop after 50 ms, it had in 55 ms for the above.
- Python runs signal handlers in the main thread, where the agent's loop is. Elsewhere a search is
  not limited.
"""

import re
import signal
import threading
from functools import lru_cache
from types import FrameType

LONGEST = 0.05  # s of a search

_searching = False


class Endless(Exception):
    """The search took too long: what the server said is too much for the pattern."""


def found(pattern: str, text: str) -> bool:
    """Raises Endless."""
    global _searching  # as there is one timer of a process
    compiled = _compiled(pattern)
    if threading.current_thread() is not threading.main_thread():
        return compiled.search(text) is not None
    if signal.getsignal(signal.SIGALRM) is not _stop:
        # For good: a signal that is still under way when its handler is taken off ends the process.
        signal.signal(signal.SIGALRM, _stop)
    try:
        _searching = True
        signal.setitimer(signal.ITIMER_REAL, LONGEST)
        return compiled.search(text) is not None
    finally:
        _searching = False
        signal.setitimer(signal.ITIMER_REAL, 0)


def _stop(signum: int, frame: FrameType | None) -> None:
    if _searching:
        raise Endless


@lru_cache(maxsize=1024)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)
