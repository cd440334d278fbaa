"""PURE. From the files that a guest should have to the operations that bring them in, or out.

Theory of operation. For each path it is first reckoned what would be there without xenlb
(baseline.py): what was there before, kept below SAVED; a file without our block; nothing. That, or
the wanted file made from it, is the goal, and an operation follows where the goal is not what is
there. So applying twice does nothing the second time, and removal is an apply of nothing.

An apply may be broken off after any operation. Therefore the manifest is written first, with what
is about to be done; then what was there is kept; then the files are written; and at the end the
manifest loses what is no longer true. Its entries claim nothing: present files are compared always.

What somebody changed since is not lost: an apply keeps it below CHANGED, a removal leaves it where
it is unless told to discard it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from xenlb.guestside.install.baseline import (
    Baseline,
    CannotInstall,
    baseline_of,
    goal_of,
    kind_of,
    saved,
)
from xenlb.guestside.install.manifest import (
    CHANGED,
    MANIFEST,
    MOST,
    MOST_TEXTS,
    STATE,
    EntryKind,
    Manifest,
    ManifestEntry,
    WasFile,
    digest,
    fault,
    parents,
    text,
)
from xenlb.guestside.install.operations import (
    LARGEST,
    MISSING,
    ROOT_ONLY,
    Delete,
    File,
    Folder,
    GuestFile,
    GuestSymlink,
    MakeFolder,
    MakeSymlink,
    Missing,
    Node,
    Operation,
    Other,
    Present,
    RemoveFolder,
    Symlink,
    Wanted,
    Write,
)


class ChangedFiles(StrEnum):
    """What becomes of files that somebody changed since xenlb wrote them, when they have to go."""

    KEEP = "keep"
    DISCARD = "discard"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """`notes`: sentences for people. `kept`: paths that should have gone and were left, because
    they were changed. `manifest`: what it will say."""

    operations: tuple[Operation, ...]
    notes: tuple[str, ...]
    kept: tuple[str, ...]
    manifest: Manifest

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths that change, without those of xenlb's own state."""
        return tuple(
            operation.path for operation in self.operations if not _is_state(operation.path)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PathsToRead:
    """What a plan has to know of the guest."""

    files: tuple[str, ...]
    folders: tuple[str, ...]


def paths_to_read(wanted: Iterable[Wanted], manifest: Manifest) -> PathsToRead:
    """The paths that `plan` needs in `present`."""
    paths = sorted({each.path for each in wanted} | set(manifest.entries))
    files = [MANIFEST, *paths, *(saved(path) for path in paths)]
    folders = {folder for path in files for folder in parents(path)} | set(manifest.folders)
    folders |= {folder for path in paths for folder in parents(f"{CHANGED}/{path}")}
    return PathsToRead(files=tuple(files), folders=tuple(sorted(folders)))


def plan(
    wanted: Sequence[Wanted],
    manifest: Manifest,
    present: Present,
    *,
    changed: ChangedFiles = ChangedFiles.KEEP,
) -> Plan:
    """Raises CannotInstall."""
    return _Planner(_checked(wanted), manifest, present, changed).plan()


def _checked(wanted: Sequence[Wanted]) -> Mapping[str, Wanted]:
    found: dict[str, Wanted] = {}
    for each in wanted:
        if (wrong := fault(each.path)) is not None:
            raise CannotInstall(f"the path {each.path!a} {wrong}")
        if each.path in found:
            raise CannotInstall(f"/{each.path} is wanted twice")
        match each:
            case GuestFile(text=content) if len(content.encode()) > LARGEST:
                raise CannotInstall(f"/{each.path} would be larger than {LARGEST} bytes")
            case GuestSymlink(target=target) if not _is_target(target):
                raise CannotInstall(f"/{each.path} cannot link to {target!a}")
            case _:
                found[each.path] = each
    for path in found:
        if above := next((folder for folder in parents(path) if folder in found), None):
            raise CannotInstall(f"/{above} cannot be a file: /{path} is wanted too")
    if len(found) > MOST // 2:
        raise CannotInstall(f"more than {MOST // 2} files are wanted")
    return found


def _is_target(target: str) -> bool:
    return 0 < len(target) <= 1024 and target.isascii() and target.isprintable()


class _Planner:
    def __init__(
        self,
        wanted: Mapping[str, Wanted],
        manifest: Manifest,
        present: Present,
        changed: ChangedFiles,
    ) -> None:
        self._wanted = wanted
        self._before = manifest
        self._present = present
        self._changed = changed
        self._notes: list[str] = []
        self._kept: list[str] = []
        self._entries: dict[str, ManifestEntry] = {}
        self._texts: dict[str, tuple[str, ...]] = {}  # until the end, these count as ours too
        self._aside: list[Operation] = []
        self._early: list[Operation] = []
        self._keep: list[Operation] = []
        self._work: list[Operation] = []
        self._made: set[str] = set()

    def plan(self) -> Plan:
        for path in sorted({*self._wanted, *self._before.entries}):
            entry = self._before.entries.get(path)
            node = self._at(path)
            baseline = baseline_of(path, entry, self._wanted.get(path), self._present)
            if (wish := self._wanted.get(path)) is not None:
                self._install(path, wish, entry, node, baseline)
            elif entry is not None:
                self._remove(path, entry, node, baseline)
        return self._in_order()

    def _in_order(self) -> Plan:
        needed = {folder for path in self._entries for folder in parents(path)}
        ours = set(self._before.folders)
        if self._entries:
            needed |= set(parents(MANIFEST))
            ours |= {folder for folder in parents(MANIFEST) if folder != STATE and self._no(folder)}
        ours |= {each for path in self._wanted for each in parents(path) if self._no(each)}
        stays = tuple(sorted(ours & needed))
        final = Manifest(entries=self._entries, folders=stays)
        done: list[Operation] = []
        for each in (*self._aside, *self._early):
            done += [*self._folders([each]), each]
        done += self._books(final, ours)
        work = [*self._keep, *self._work]
        for each in work:
            done += [*self._folders([each]), each]
        unneeded = [
            saved(path)
            for path in sorted({*self._before.entries, *self._wanted})
            if not self._is_kept(path) and not self._no(saved(path))
        ]
        done += [Delete(path=path) for path in unneeded]
        deleted = [each.path for each in done if isinstance(each, Delete)]
        state = {folder for path in unneeded for folder in parents(path) if _is_state(folder)}
        state |= {each for each in self._present if _is_state(each) and each != STATE}
        used = {
            each for path in self._entries if self._is_kept(path) for each in parents(saved(path))
        }
        used |= {each for op in self._aside for each in parents(op.path)}
        done += self._emptied((ours - needed - set(parents(MANIFEST))) | (state - used), deleted)
        current = self._at(MANIFEST)
        if not self._entries:
            if not isinstance(current, Missing):
                done.append(Delete(path=MANIFEST))
                deleted.append(MANIFEST)
            done += self._emptied({STATE} | (ours & set(parents(MANIFEST))), deleted)
        else:
            last = [each for each in done if isinstance(each, Write) and each.path == MANIFEST]
            written = last[-1].file if last else current
            if not isinstance(written, File) or written.content != text(final):
                book = _book(final)
                done += [*self._folders([book]), book]
        return Plan(
            operations=tuple(done),
            notes=tuple(self._notes),
            kept=tuple(self._kept),
            manifest=final,
        )

    def _books(self, final: Manifest, ours: set[str]) -> Iterable[Operation]:
        """The manifest of what is about to be done, before it is done."""
        entries = {**self._before.entries, **final.entries}
        entries = {
            path: replace(
                entry,
                digests=tuple(dict.fromkeys((*entry.digests, *self._texts.get(path, ()))))[
                    :MOST_TEXTS
                ],
            )
            for path, entry in entries.items()
        }
        intent = Manifest(entries=entries, folders=tuple(sorted(ours)))
        current = self._at(MANIFEST)
        nothing_to_do = not (self._keep or self._work) and ours == set(final.folders)
        if intent == self._before or (nothing_to_do and not self._early) or not entries:
            return
        if len(entries) + len(ours) > MOST:
            raise CannotInstall(f"the manifest would have more than {MOST} paths")
        if not isinstance(current, File | Missing):
            raise CannotInstall(f"/{MANIFEST} is not a file")
        book = _book(intent)
        yield from self._folders([book])
        yield book

    def _folders(self, operations: Iterable[Operation]) -> Iterable[Operation]:
        """Those that have to be made for the operations, once."""
        for operation in operations:
            if not isinstance(operation, Write | MakeSymlink):
                continue
            for folder in parents(operation.path):
                if self._no(folder) and folder not in self._made:
                    self._made.add(folder)
                    yield MakeFolder(path=folder, mode=0o700 if _is_state(folder) else 0o755)
                elif not isinstance(self._at(folder), Folder | Missing):
                    raise CannotInstall(
                        f"/{folder} is not a folder, so /{operation.path} cannot be"
                    )

    def _emptied(self, folders: Iterable[str], deleted: list[str]) -> Iterable[Operation]:
        """The deepest first; `deleted` grows by them. Those that stay full are left alone."""
        for folder in sorted(folders, key=lambda path: (-path.count("/"), path)):
            match self._at(folder):
                case Folder(empty=empty) if empty or any(
                    path.rpartition("/")[0] == folder for path in deleted
                ):
                    deleted.append(folder)
                    yield RemoveFolder(path=folder)
                case _:
                    pass

    def _no(self, path: str) -> bool:
        return isinstance(self._at(path), Missing)

    def _is_kept(self, path: str) -> bool:
        entry = self._entries.get(path)
        return (
            entry is not None
            and entry.kind is not EntryKind.BLOCK
            and isinstance(entry.previous, WasFile)
        )

    def _install(
        self, path: str, wish: Wanted, entry: ManifestEntry | None, node: Node, baseline: Baseline
    ) -> None:
        if isinstance(node, Folder | Other):
            what = node.what if isinstance(node, Other) else "a folder"
            raise CannotInstall(f"/{path} is {what}; xenlb does not replace it")
        if baseline.lost:
            self._notes.append(f"what /{path} was before xenlb is not kept any more")
        if baseline.strange is not None:
            self._set_aside(path, node, baseline.strange)
        kind = kind_of(wish)
        if entry is not None and entry.kind is not kind:
            # Out with the one before the other comes: in between the guest is as without xenlb.
            self._early += _towards(path, node, baseline.node)
            entry, node = None, baseline.node
        goal, new = goal_of(path, wish, baseline.node, entry)
        self._entries[path] = new
        if entry is not None:
            self._texts[path] = entry.digests
        if self._is_kept(path) and isinstance(baseline.node, File):
            kept = File(content=baseline.node.content, mode=ROOT_ONLY)
            self._keep += _towards(saved(path), self._at(saved(path)), kept)
        self._work += _towards(path, node, goal)

    def _remove(self, path: str, entry: ManifestEntry, node: Node, baseline: Baseline) -> None:
        stays = baseline.strange
        if stays is None and baseline.lost and not isinstance(node, Missing):
            stays = "what it was before is not kept any more"
        if isinstance(node, Folder | Other):
            stays = "it is no longer a file"
        elif any(not isinstance(self._at(each), Folder | Missing) for each in parents(path)):
            stays = "a folder above it is no longer a folder"
        elif self._changed is ChangedFiles.DISCARD and baseline.node != node:
            stays = None
        if stays is None:
            self._work += _towards(path, node, baseline.node)
            return
        self._notes.append(f"/{path} is left as it is: {stays}")
        self._kept.append(path)
        self._entries[path] = entry

    def _at(self, path: str) -> Node:
        return self._present.get(path, MISSING)

    def _set_aside(self, path: str, node: Node, strange: str) -> None:
        match node:
            case File(content=content):
                aside = f"{CHANGED}/{path}.{digest(content)[:8]}"
                kept = File(content=content, mode=ROOT_ONLY)
                self._aside.append(Write(path=aside, file=kept))
                self._notes.append(f"/{path}: {strange}; that is kept as /{aside}")
            case Symlink(target=target):
                self._notes.append(f"/{path}: {strange}; it was a link to {target!a}")
            case _:
                pass


def _towards(path: str, node: Node, goal: Node) -> list[Operation]:
    """Nothing where it is as it should be."""
    match goal:
        case File():
            return [] if node == goal else [Write(path=path, file=goal)]
        case Symlink(target=target):
            return [] if node == goal else [MakeSymlink(path=path, target=target)]
        case Missing():
            return [] if isinstance(node, Missing) else [Delete(path=path)]
        case _:
            return []


def _is_state(path: str) -> bool:
    return path == STATE or path.startswith(f"{STATE}/")


def _book(manifest: Manifest) -> Write:
    return Write(path=MANIFEST, file=File(content=text(manifest), mode=ROOT_ONLY))
