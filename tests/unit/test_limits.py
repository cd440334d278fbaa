"""The time limit of each test: whatever a test waits for, it is over; and what the labs have."""

import asyncio
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import limits


@dataclass
class Short:
    timeout: float = 0.05
    stash: pytest.Stash = field(default_factory=pytest.Stash)


@contextmanager
def short(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A limit of 50 ms in place of this test's own; half a second to end after it."""
    monkeypatch.setattr(limits, "AGAIN", 0.5)
    handler, mine = signal.getsignal(signal.SIGALRM), signal.getitimer(signal.ITIMER_REAL)
    item = Short()
    limits.pytest_timeout_set_timer(item, item)
    try:
        yield
    finally:
        limits.pytest_timeout_cancel_timer(item)
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, *mine)


def thread() -> None:
    go = threading.Event()
    other = threading.Thread(target=go.wait, args=(10,))
    other.start()
    try:
        other.join()
    finally:
        go.set()


def loop() -> None:
    asyncio.run(asyncio.sleep(10))


def another_task() -> None:
    """The exception is raised in it first, and stays with it."""

    async def spin() -> None:
        while True:
            pass

    async def main() -> None:
        task = asyncio.create_task(spin())
        try:
            await asyncio.sleep(10)
        finally:
            assert isinstance(task.exception(), limits.TimeLimit)

    asyncio.run(main())


@given(st.integers())
def an_example(number: int) -> None:
    """Tried again and again, if Hypothesis takes it for a failure."""
    time.sleep(10)


@pytest.mark.parametrize("wait", [thread, loop, another_task, an_example])
def test_whatever_is_waited_for_it_ends(
    wait: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(limits.TimeLimit, match=r"not over within 0.05 s"), short(monkeypatch):
        wait()


@pytest.mark.parametrize(
    ("test", "seconds"),
    [
        ("tests/unit/test_limits.py::test_labs", None),
        ("tests/lab/test_ipvs_uml.py::test_x[a/lab]", 600),
        ("tests/lab/test_agent_xen.py::test_x", 900),
    ],
)
def test_labs(test: str, seconds: float | None) -> None:
    assert limits.limit(test) == seconds
