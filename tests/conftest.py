"""For every test: nothing that a test starts outlives it (tasks, threads, processes, files).

The labs keep theirs for the session; they look after them themselves.
"""

import asyncio
import asyncio.runners
import gc
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# Times say nothing on a busy machine.
settings.register_profile("xenlb", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("xenlb")

HERE = Path(__file__).parent


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Only where the tests run in several processes."""
    from tests.lanes import Lanes  # noqa: PLC0415 - xdist need not be there

    config.option.loadscopereorder = False
    return Lanes(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        from tests.lanes import turn  # noqa: PLC0415 - as above

        items.sort(key=lambda item: turn(item.nodeid))


# Started in the background of a script, a process has SIGINT ignored, and so have its children:
# the commands whose end by Ctrl-C is tested. One that is handled here is not, after their exec.
signal.signal(signal.SIGINT, signal.default_int_handler)
SESSION_LONG = (HERE / "lab", HERE / "bench")


def _threads() -> set[str]:
    return {f"thread {t.name} ({t.ident})" for t in threading.enumerate()}


def _children() -> set[str]:
    found = set()
    for task in Path("/proc/self/task").iterdir():
        try:
            children = (task / "children").read_text().split()
        except (FileNotFoundError, ProcessLookupError):  # a thread that has just ended
            continue
        for pid in children:
            try:
                name = Path(f"/proc/{pid}/comm").read_text().strip()
            except (FileNotFoundError, ProcessLookupError):
                continue
            found.add(f"process {pid} ({name})")
    return found


def _files() -> set[str]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue
        found.add(f"file {name} ({target})")
    return found


def _left(before: set[str], now: Callable[[], set[str]]) -> set[str]:
    """What is there now and was not before; ends take a moment, so they get one."""
    until = time.monotonic() + 2.0
    while (left := now() - before) and time.monotonic() < until:
        if any("[eventfd]" in each for each in left):
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
        tasks.extend(f"task {task!r}" for task in asyncio.all_tasks(loop))
        cancel_all(loop)

    monkeypatch.setattr(asyncio.runners, "_cancel_all_tasks", note_and_cancel)
    kinds = (_threads, _children, _files)
    before = [kind() for kind in kinds]
    yield
    left = [*tasks]
    for kind, was in zip(kinds, before, strict=True):
        left.extend(sorted(_left(was, kind)))
    if left:
        pytest.fail("the test left behind:\n  " + "\n  ".join(left), pytrace=False)
