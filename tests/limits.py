"""Time limits of tests: 120 s (setup.cfg), more in the labs, fixtures included.

pytest-timeout starts the timer; this module replaces its exception. Hypothesis would take that one
for a failing example and repeat the example without a limit. asyncio would store it in a task that
the test does not await. TimeLimit is not caught by Hypothesis, and the timer raises it again until
the test has ended. The teardown of fixtures has the same limit for itself.
"""

import signal
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from types import FrameType
from typing import Protocol

import pytest

from tests.lanes import boots_xen
from tests.soak import often

# Seconds. The first test of a lab boots it; the long forms take hours.
XEN, USER_MODE_LINUX = often(900, soak=36_000), often(600, soak=36_000)
AGAIN = 10.0


class TimeLimit(BaseException):
    """The test did not end in time."""


class Settings(Protocol):
    @property
    def timeout(self) -> float: ...


class Timed(Protocol):
    """What is used here of a pytest.Item."""

    stash: pytest.Stash


SETTINGS = pytest.StashKey[Settings]()


def limit(nodeid: str) -> int | None:
    """Return the limit in seconds, or None where setup.cfg has it."""
    if "lab" not in PurePosixPath(nodeid.partition("::")[0]).parts:
        return None
    return XEN if boots_xen(nodeid) else USER_MODE_LINUX


def give_limits(items: list[pytest.Item]) -> None:
    for item in items:
        if (seconds := limit(item.nodeid)) is not None and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(seconds))


@pytest.hookimpl(tryfirst=True, optionalhook=True)
def pytest_timeout_set_timer(item: Timed, settings: Settings) -> bool:
    """Replace pytest-timeout's own timer."""

    def over(_signal: int, _frame: FrameType | None) -> None:
        if _inside:  # an exception elsewhere would end the session
            raise TimeLimit(f"not over within {settings.timeout:g} s")

    item.stash[SETTINGS] = settings
    signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, settings.timeout, AGAIN)
    return True


@pytest.hookimpl(tryfirst=True, optionalhook=True)
def pytest_timeout_cancel_timer(item: Timed) -> bool:
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    return True


# True in setup, call and teardown, whose exceptions pytest reports.
_inside = False


@contextmanager
def _caught() -> Iterator[None]:
    global _inside
    _inside = True
    try:
        yield
    finally:
        _inside = False


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup() -> Generator[None, object, object]:
    with _caught():
        return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call() -> Generator[None, object, object]:
    with _caught():
        return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, object, object]:
    """Start the timer again: pytest-timeout stops it when a test has failed."""
    if (settings := item.stash.get(SETTINGS, None)) is not None:
        pytest_timeout_set_timer(item, settings)
    with _caught():
        return (yield)
