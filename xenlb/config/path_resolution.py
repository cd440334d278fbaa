"""Resolve a path step by step, as the kernel does, through every symbolic link."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

MOST_LINKS = 40  # the kernel's limit for one path


class PathStep(NamedTuple):
    """A folder or link on the way to a file, or the file itself.

    The parent of `path` contains no link.
    """

    path: Path
    is_link: bool


def path_steps(path: str) -> Iterator[PathStep]:
    """Yield the steps to an absolute path, without the root."""
    folder = Path("/")
    parts = list(Path(path).parts[1:])
    links = 0
    while parts:
        part = parts.pop(0)
        if part == "..":
            folder = folder.parent
            continue
        step = folder / part
        try:
            target = os.readlink(step)
        except OSError:
            yield PathStep(step, is_link=False)
            folder = step
            continue
        yield PathStep(step, is_link=True)
        links += 1
        if links > MOST_LINKS:
            return
        parts[:0] = [name for name in target.split("/") if name not in {"", "."}]
        folder = Path("/") if target.startswith("/") else folder
