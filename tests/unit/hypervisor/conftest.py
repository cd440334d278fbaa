"""What every test of the hypervisor room must leave behind: nothing."""

import os
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest


def _threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.is_alive()}


def _descriptors() -> set[str]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            found.add(f"{name} {os.readlink(f'/proc/self/fd/{name}')}")
        except FileNotFoundError:
            continue
    return found


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """No thread and no descriptor may outlive a test."""
    threads, descriptors = _threads(), _descriptors()
    yield
    deadline = time.monotonic() + 5
    while (more := (_threads() - threads, _descriptors() - descriptors)) != (set(), set()):
        assert time.monotonic() < deadline, f"left behind: {more}"
        time.sleep(0.02)


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder with a path short enough for a Unix socket's 107 characters."""
    with tempfile.TemporaryDirectory(prefix="xenlb-", dir="/tmp") as folder:
        yield Path(folder)
