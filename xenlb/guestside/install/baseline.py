"""PURE. What would be at a guest's path without xenlb, and what should be there with it.

One path at a time; the whole, and the order of things, is planner.py.
"""

from dataclasses import dataclass, replace
from typing import assert_never

from xenlb.guestside.install import blocks
from xenlb.guestside.install.blocks import BadBlock
from xenlb.guestside.install.manifest import (
    SAVED,
    EntryKind,
    ManifestEntry,
    Previous,
    WasFile,
    WasLink,
    digest,
)
from xenlb.guestside.install.operations import (
    MISSING,
    File,
    GuestFile,
    GuestSymlink,
    Missing,
    Node,
    Present,
    Symlink,
    Wanted,
    as_bytes,
)


class CannotInstall(Exception):
    """The files cannot be brought into this guest; one sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """What would be at a path without xenlb. `strange`: why what is there is not as xenlb left it;
    `node` is then what a discard leaves. `lost`: what was there before is not kept any more."""

    node: Node
    strange: str | None = None
    lost: bool = False


def baseline_of(
    path: str, entry: ManifestEntry | None, wish: Wanted | None, present: Present
) -> Baseline:
    """What would be at the path. Raises CannotInstall."""
    node = present.get(path, MISSING)
    if entry is None:
        return _under_unknown(path, wish, node)
    match entry.kind:
        case EntryKind.WHOLE | EntryKind.LINK:
            before, lost = _previous(entry.previous, present.get(saved(path), MISSING))
            return _under_whole(entry, node, before, lost=lost)
        case EntryKind.BLOCK:
            return _under_block(entry, node)
        case _:
            assert_never(entry.kind)


def _under_unknown(path: str, wish: Wanted | None, node: Node) -> Baseline:
    """Without a manifest (it was lost) there may be a block of ours all the same."""
    if not (isinstance(wish, GuestFile) and wish.block and isinstance(node, File)):
        return Baseline(node=node)
    try:
        return Baseline(node=replace(node, content=blocks.split(node.content)[0]))
    except BadBlock as error:
        raise CannotInstall(f"/{path} cannot be given a block: {error}") from None


def _under_whole(entry: ManifestEntry, node: Node, before: Node, *, lost: bool) -> Baseline:
    match entry.previous, node:
        case WasFile(mode=mode, owner=owner, digest=was), File(content=content) if (
            digest(content) == was
        ):
            return Baseline(node=File(content=content, mode=mode, owner=owner))
        case WasLink(target=target), Symlink(target=now) if now == target:
            return Baseline(node=node)
        case _:
            pass
    match node:
        case Missing():
            ours = True
        case File(content=content):
            ours = entry.kind is EntryKind.WHOLE and digest(content) in entry.digests
        case Symlink(target=target):
            ours = entry.kind is EntryKind.LINK and digest(as_bytes(target)) in entry.digests
        case _:
            ours = False
    strange = None if ours else "it was changed since xenlb wrote it"
    return Baseline(node=before, strange=strange, lost=lost)


def _previous(previous: Previous, kept: Node) -> tuple[Node, bool]:
    """What was there before, and whether it is lost."""
    match previous, kept:
        case None, _:
            return MISSING, False
        case WasLink(target=target), _:
            return Symlink(target=target), False
        case WasFile(mode=mode, owner=owner, digest=was), File(content=content) if (
            digest(content) == was
        ):
            return File(content=content, mode=mode, owner=owner), False
        case _:
            return MISSING, True


def _under_block(entry: ManifestEntry, node: Node) -> Baseline:
    match node:
        case Missing():
            return Baseline(node=node)
        case File(content=content, mode=mode):
            pass
        case _:
            return Baseline(node=node, strange="it is no longer a file")
    try:
        rest, inside = blocks.split(content)
    except BadBlock as error:
        return Baseline(node=node, strange=str(error))
    if inside is None:
        return Baseline(node=node)
    if isinstance(entry.previous, WasFile) and mode == entry.previous.mode | runnable(entry.mode):
        mode = entry.previous.mode
    left: Node = replace(node, content=rest, mode=mode)
    if entry.previous is None and rest in (b"", blocks.SHEBANG):
        left = MISSING
    ours = digest(inside) in entry.digests
    return Baseline(node=left, strange=None if ours else "xenlb's block in it was changed")


def goal_of(
    path: str, wish: Wanted, baseline_of: Node, entry: ManifestEntry | None
) -> tuple[Node, ManifestEntry]:
    """What should be at the path, and what the manifest says of it."""
    match wish, baseline_of:
        case GuestSymlink(target=target), _:
            new = ManifestEntry(
                kind=EntryKind.LINK,
                mode=0o777,
                digests=(digest(as_bytes(target)),),
                previous=_was(baseline_of),
            )
            return Symlink(target=target), new
        case GuestFile(block=False, text=content, mode=mode), _:
            data = content.encode()
            new = ManifestEntry(
                kind=EntryKind.WHOLE, mode=mode, digests=(digest(data),), previous=_was(baseline_of)
            )
            return File(content=data, mode=mode), new
        case GuestFile(text=content, mode=mode), File(content=rest, mode=old):
            # The rest is not ours: that it changes is nothing to be written down.
            was = entry.previous.digest if entry and isinstance(entry.previous, WasFile) else None
            was = was or digest(rest)
            previous: Previous = WasFile(mode=old, owner=baseline_of.owner, digest=was)
            goal = replace(baseline_of, mode=old | runnable(mode))
        case GuestFile(text=content, mode=mode), Missing():
            rest, previous = blocks.SHEBANG if runnable(mode) else b"", None
            goal = File(content=b"", mode=mode)
        case _:
            raise CannotInstall(f"/{path} is a symbolic link; xenlb writes no block through it")
    inside = content.encode()
    if inside and not inside.endswith(b"\n"):
        inside += b"\n"
    try:
        data = blocks.insert(rest, inside)
        blocks.split(data)
    except BadBlock as error:
        raise CannotInstall(f"/{path} cannot be given a block: {error}") from None
    new = ManifestEntry(
        kind=EntryKind.BLOCK, mode=mode, digests=(digest(inside),), previous=previous
    )
    return replace(goal, content=data), new


def kind_of(wish: Wanted) -> EntryKind:
    match wish:
        case GuestSymlink():
            return EntryKind.LINK
        case GuestFile(block=block):
            return EntryKind.BLOCK if block else EntryKind.WHOLE
        case _:
            assert_never(wish)


def _was(node: Node) -> Previous:
    match node:
        case File(content=content, mode=mode, owner=owner):
            return WasFile(mode=mode, owner=owner, digest=digest(content))
        case Symlink(target=target):
            return WasLink(target=target)
        case _:
            return None


def runnable(mode: int) -> int:
    return mode & 0o111


def saved(path: str) -> str:
    """Where the earlier content of a file is kept."""
    return f"{SAVED}/{path}"
