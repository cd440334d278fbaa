"""For every test: nothing that a test starts outlives it (tasks, threads, processes, files).

The labs keep theirs for the session; they look after them themselves.
"""

import asyncio
import asyncio.runners
import gc
import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.limits import (  # noqa: F401 - hooks
    TimeLimit,
    give_limits,
    pytest_runtest_call,
    pytest_runtest_setup,
    pytest_runtest_teardown,
    pytest_timeout_cancel_timer,
    pytest_timeout_set_timer,
)
from tests.soak import SOAK, often

# Times say nothing on a busy machine.
settings.register_profile(
    "xenlb",
    max_examples=often(50, soak=500),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("xenlb")

HERE = Path(__file__).parent


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Only where the tests run in several processes."""
    from tests.lanes import Lanes  # noqa: PLC0415 - xdist need not be there

    config.option.loadscopereorder = False
    return Lanes(config, log)


# First: `-m` looks at the markers that are given here.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE / "lab"):
            item.add_marker("lab")
    if not SOAK:
        soak = [item for item in items if item.get_closest_marker("soak")]
        config.hook.pytest_deselected(items=soak)
        items[:] = [item for item in items if item not in soak]
    give_limits(items)
    if "PYTEST_XDIST_WORKER" in os.environ:
        from tests.lanes import turn  # noqa: PLC0415 - as above

        items.sort(key=lambda item: turn(item.nodeid))


# Started in the background of a script, a process has SIGINT ignored, and so have its children:
# the commands whose end by Ctrl-C is tested. One that is handled here is not, after their exec.
signal.signal(signal.SIGINT, signal.default_int_handler)
SESSION_LONG = (HERE / "lab", HERE / "bench")


def _threads() -> set[object]:
    return set(threading.enumerate())


def _children() -> set[object]:
    found: set[object] = set()
    for task in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{task}/children", "rb", buffering=0) as children:
                found.update(map(int, children.read().split()))
        except (FileNotFoundError, ProcessLookupError):  # a thread that has just ended
            continue
    return found


def _files() -> set[object]:
    """By number and inode: reading the links takes ten times as long. What has no inode of its own
    (an epoll, an eventfd) has a link that says what it is."""
    found: set[object] = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            status = os.fstat(int(name))
            own = stat.S_IFMT(status.st_mode) != 0
            what = (status.st_dev, status.st_ino) if own else os.readlink(f"/proc/self/fd/{name}")
        except OSError:  # that of the listing itself
            continue
        found.add((int(name), what))
    return found


def _described(left: Any) -> str:
    """Read only for the message; what it was may be gone by then."""
    try:
        match left:
            case threading.Thread():
                return f"thread {left.name} ({left.ident})"
            case int():
                return f"process {left} ({Path(f'/proc/{left}/comm').read_text().strip()})"
            case number, _:
                return f"file {number} ({os.readlink(f'/proc/self/fd/{number}')})"
    except OSError:
        pass
    return f"{left}, which has just ended"


def _left(before: set[object], now: Callable[[], set[object]]) -> set[object]:
    """What is there now and was not before; ends take a moment, so they get one."""
    until = time.monotonic() + 2.0
    while (left := now() - before) and time.monotonic() < until:
        if any("[eventfd]" in str(each) for each in left):
            # The client library of libvirt 11 closes one only when the connection's object is
            # freed, not when the connection is closed.
            gc.collect()
        time.sleep(0.01)
    return left


@pytest.fixture(autouse=True)
def no_leaks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fails a test that leaves a task, a thread, a process or an open file behind."""
    if any(request.path.is_relative_to(folder) for folder in SESSION_LONG):
        yield
        return
    tasks: list[str] = []
    # What asyncio.run() finds unfinished it cancels without a word. This is its only hook.
    cancel_all = asyncio.runners._cancel_all_tasks  # type: ignore[attr-defined]

    def note_and_cancel(loop: asyncio.AbstractEventLoop) -> None:
        if not isinstance(sys.exc_info()[1], TimeLimit):  # which leaves what is under way
            tasks.extend(f"task {task!r}" for task in asyncio.all_tasks(loop))
        cancel_all(loop)

    monkeypatch.setattr(asyncio.runners, "_cancel_all_tasks", note_and_cancel)
    kinds = (_threads, _children, _files)
    before = [kind() for kind in kinds]
    yield
    left = [*tasks]
    for kind, was in zip(kinds, before, strict=True):
        left.extend(sorted(map(_described, _left(was, kind))))
    if left:
        pytest.fail("the test left behind:\n  " + "\n  ".join(left), pytrace=False)
