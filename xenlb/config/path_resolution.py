"""The steps in which the kernel resolves a path, through every symbolic link."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

MOST_LINKS = 40  # the kernel's limit for one path


class PathStep(NamedTuple):
    """`path`: a folder or link on the way to the file, or the file itself; its parent has no link
    in it."""

    path: Path
    is_link: bool


def path_steps(path: str) -> Iterator[PathStep]:
    """Yield the steps to an absolute path, without the root. What does not exist is no link."""
    folder = Path("/")
    rest = list(Path(path).parts[1:])
    links = 0
    while rest:
        part = rest.pop(0)
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
        rest[:0] = [name for name in target.split("/") if name not in {"", "."}]
        folder = Path("/") if target.startswith("/") else folder
