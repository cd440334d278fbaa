"""A plan as unified diffs, for operators: pure.

Files of a guest may contain control sequences for terminals, so control characters are escaped.
Files for root only may contain a secret, and are not shown.
"""

import difflib
from collections.abc import Iterator

from xenlb.guestside.install.manifest import STATE
from xenlb.guestside.install.operations import (
    MISSING,
    Delete,
    File,
    MakeFolder,
    MakeSymlink,
    Node,
    Present,
    RemoveFolder,
    Symlink,
    Write,
)
from xenlb.guestside.install.planner import Plan
from xenlb.untrusted.printable import printable


def differences(plan: Plan, present: Present) -> Iterator[str]:
    """Lines without their ends; changes of xenlb's own state are left out."""
    nodes = dict(present)
    for operation in plan.operations:
        path = operation.path
        if path.startswith(f"{STATE}/") or path == STATE:
            continue
        before = nodes.get(path, MISSING)
        match operation:
            case Write(file=file):
                after: Node = file
            case MakeSymlink(target=target):
                after = Symlink(target=target)
            case Delete():
                after = MISSING
            case MakeFolder() | RemoveFolder():
                yield str(operation)
                continue
        nodes[path] = after
        yield from _difference(path, before, after)


def _difference(path: str, before: Node, after: Node) -> Iterator[str]:
    names = tuple("/dev/null" if node == MISSING else f"/{path}" for node in (before, after))
    if any(isinstance(node, File) and not node.mode & 0o077 for node in (before, after)):
        yield f"--- {names[0]}"
        yield f"+++ {names[1]}"
        yield "(not shown: for root only)"
        return
    lines = difflib.unified_diff(
        _lines(before), _lines(after), fromfile=names[0], tofile=names[1], lineterm=""
    )
    yield from lines
    match before, after:
        case File(mode=old), File(mode=new) if old != new:
            yield f"mode of /{path}: {old:04o} -> {new:04o}"
        case _:
            pass


def _lines(node: Node) -> list[str]:
    match node:
        case File(content=content):
            lines = content.decode("utf-8", "backslashreplace").split("\n")
            if lines[-1] == "":
                lines.pop()
            else:
                lines[-1] += "\\ (no end of line)"
            return [visible(line) for line in lines]
        case Symlink(target=target):
            return [f"(a symbolic link to {visible(target)})"]
        case _:
            return []


def visible(line: str) -> str:
    """The line with escapes for unprintable characters; tabs stay."""
    return printable(line, keep="\t")
