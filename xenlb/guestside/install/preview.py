"""PURE. A plan for people's eyes: as unified differences.

What a guest has in its files may be made to move a terminal's cursor. So control characters are
made visible, and contents for root alone (a secret may be in them) are not shown.
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
    """Lines without their end; what a plan does below STATE, its own books, is left out."""
    now = dict(present)
    for operation in plan.operations:
        path = operation.path
        if path.startswith(f"{STATE}/") or path == STATE:
            continue
        before = now.get(path, MISSING)
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
        now[path] = after
        yield from _difference(path, before, after)


def _difference(path: str, before: Node, after: Node) -> Iterator[str]:
    names = tuple("/dev/null" if each == MISSING else f"/{path}" for each in (before, after))
    if any(isinstance(each, File) and not each.mode & 0o077 for each in (before, after)):
        yield f"--- {names[0]}"
        yield f"+++ {names[1]}"
        yield "(for root alone, so not shown)"
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
    """With every character that is not to be seen as an escape; tabs stay."""
    return printable(line, keep="\t")
