"""The node at a guest's path without xenlb (the baseline), and with it (the goal): pure."""

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
    """The files cannot be installed in this guest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """The node at a path without xenlb.

    `changed`: how the present node differs from what xenlb left; `node` is then the one after a
    discard. `lost`: the former content is not kept any more.
    """

    node: Node
    changed: str | None = None
    lost: bool = False


def baseline_of(
    path: str, entry: ManifestEntry | None, wanted: Wanted | None, present: Present
) -> Baseline:
    """The baseline of a path. Raises CannotInstall."""
    node = present.get(path, MISSING)
    if entry is None:
        return _without_entry(path, wanted, node)
    match entry.kind:
        case EntryKind.WHOLE | EntryKind.LINK:
            before, lost = _previous(entry.previous, present.get(saved(path), MISSING))
            return _of_whole_file(entry, node, before, lost=lost)
        case EntryKind.BLOCK:
            return _of_block(entry, node)
        case _:
            assert_never(entry.kind)


def _without_entry(path: str, wanted: Wanted | None, node: Node) -> Baseline:
    """The file may have a block all the same, if the manifest was lost."""
    if not (isinstance(wanted, GuestFile) and wanted.block and isinstance(node, File)):
        return Baseline(node=node)
    try:
        return Baseline(node=replace(node, content=blocks.split(node.content)[0]))
    except BadBlock as error:
        raise CannotInstall(f"/{path} cannot be given a block: {error}") from None


def _of_whole_file(entry: ManifestEntry, node: Node, before: Node, *, lost: bool) -> Baseline:
    match entry.previous, node:
        case WasFile(digest=was) as previous, File(content=content) if digest(content) == was:
            return Baseline(node=_file(previous, content))
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
    changed = None if ours else "it was changed since xenlb wrote it"
    return Baseline(node=before, changed=changed, lost=lost)


def _file(previous: WasFile, content: bytes) -> File:
    return File(content=content, mode=previous.mode, owner=previous.owner)


def _previous(previous: Previous, kept: Node) -> tuple[Node, bool]:
    """The former node, and whether its content is lost."""
    match previous, kept:
        case None, _:
            return MISSING, False
        case WasLink(target=target), _:
            return Symlink(target=target), False
        case WasFile(digest=was) as file, File(content=content) if digest(content) == was:
            return _file(file, content), False
        case _:
            return MISSING, True


def _of_block(entry: ManifestEntry, node: Node) -> Baseline:
    match node:
        case Missing():
            return Baseline(node=node)
        case File(content=content, mode=mode):
            pass
        case _:
            return Baseline(node=node, changed="it is no longer a file")
    try:
        rest, inside = blocks.split(content)
    except BadBlock as error:
        return Baseline(node=node, changed=str(error))
    if inside is None:
        return Baseline(node=node)
    if isinstance(entry.previous, WasFile) and mode == entry.previous.mode | _runnable(entry.mode):
        mode = entry.previous.mode
    left: Node = replace(node, content=rest, mode=mode)
    if entry.previous is None and rest in (b"", blocks.SHEBANG):
        left = MISSING
    ours = digest(inside) in entry.digests
    return Baseline(node=left, changed=None if ours else "xenlb's block in it was changed")


def goal_of(
    path: str, wanted: Wanted, baseline: Node, entry: ManifestEntry | None
) -> tuple[Node, ManifestEntry]:
    """The node that should be at the path, and its entry. Raises CannotInstall."""
    kind = kind_of(wanted)
    match wanted, baseline:
        case GuestSymlink(target=target), _:
            sha256 = digest(as_bytes(target))
            previous = _was(baseline)
            new = ManifestEntry(kind=kind, mode=0o777, digests=(sha256,), previous=previous)
            return Symlink(target=target), new
        case GuestFile(block=False, text=text, mode=mode), _:
            data = text.encode()
            previous = _was(baseline)
            new = ManifestEntry(kind=kind, mode=mode, digests=(digest(data),), previous=previous)
            return File(content=data, mode=mode), new
        case GuestFile(text=text, mode=mode), File(content=rest, mode=old):
            # Changes of the rest, which is not xenlb's, are not recorded.
            was = entry.previous.digest if entry and isinstance(entry.previous, WasFile) else None
            previous = WasFile(mode=old, owner=baseline.owner, digest=was or digest(rest))
            goal = replace(baseline, mode=old | _runnable(mode))
        case GuestFile(text=text, mode=mode), Missing():
            rest, previous = blocks.SHEBANG if _runnable(mode) else b"", None
            goal = File(content=b"", mode=mode)
        case _:
            raise CannotInstall(f"/{path} is a symbolic link; xenlb writes no block through it")
    inside = text.encode()
    if inside and not inside.endswith(b"\n"):
        inside += b"\n"
    try:
        data = blocks.insert(rest, inside)
        blocks.split(data)
    except BadBlock as error:
        raise CannotInstall(f"/{path} cannot be given a block: {error}") from None
    new = ManifestEntry(kind=kind, mode=mode, digests=(digest(inside),), previous=previous)
    return replace(goal, content=data), new


def kind_of(wanted: Wanted) -> EntryKind:
    """The part of the path that becomes xenlb's: the link, a block or the whole file."""
    if isinstance(wanted, GuestSymlink):
        return EntryKind.LINK
    return EntryKind.BLOCK if wanted.block else EntryKind.WHOLE


def _was(node: Node) -> Previous:
    match node:
        case File(content=content, mode=mode, owner=owner):
            return WasFile(mode=mode, owner=owner, digest=digest(content))
        case Symlink(target=target):
            return WasLink(target=target)
        case _:
            return None


def _runnable(mode: int) -> int:
    return mode & 0o111


def saved(path: str) -> str:
    """The path that keeps the former content of a file."""
    return f"{SAVED}/{path}"
