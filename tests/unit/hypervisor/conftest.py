"""Folders for sockets."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder with a path short enough for a Unix socket's 107 characters."""
    with tempfile.TemporaryDirectory(prefix="xenlb-", dir="/tmp") as folder:
        yield Path(folder)
