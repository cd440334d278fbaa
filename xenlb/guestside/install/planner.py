"""The planner: operations that install wanted files in a guest, or remove them. Pure.

The baseline of a path is its node without xenlb: the former file, which is kept below SAVED; the
file without xenlb's block; or nothing. The goal is the wanted file made from the baseline, or the
baseline itself. A path gets an operation if its node is not the goal. So a second apply does
nothing, and a removal is an apply of no files.

An apply may be interrupted after any operation. So the manifest with the intended changes is
written first, then former files are saved, then files are written. At the end entries that no
longer hold leave the manifest. Present files are always compared; an entry proves nothing.

Changes of others since are not lost: an apply keeps them below CHANGED, and a removal leaves such a
file in place unless it is to discard it.
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
    """How a removal treats files that others changed since xenlb wrote them."""

    KEEP = "keep"
    DISCARD = "discard"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The planned operations.

    `notes`: sentences for operators. `kept`: changed files that a removal leaves. `manifest`: the
    manifest afterwards.
    """

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
    """The paths whose nodes a plan depends on."""

    files: tuple[str, ...]
    folders: tuple[str, ...]


def paths_to_read(wanted: Iterable[Wanted], manifest: Manifest) -> PathsToRead:
    """The paths that `plan` needs in `present`."""
    paths = sorted({file.path for file in wanted} | set(manifest.entries))
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
    """Plan the operations; no wanted files: a removal. Raises CannotInstall."""
    return _Planner(_by_path(wanted), manifest, present, changed).plan()


def _by_path(wanted: Sequence[Wanted]) -> Mapping[str, Wanted]:
    files: dict[str, Wanted] = {}
    for file in wanted:
        if (wrong := fault(file.path)) is not None:
            raise CannotInstall(f"the path {file.path!a} {wrong}")
        if file.path in files:
            raise CannotInstall(f"/{file.path} is wanted twice")
        match file:
            case GuestFile(text=content) if len(content.encode()) > LARGEST:
                raise CannotInstall(f"/{file.path} would be larger than {LARGEST} bytes")
            case GuestSymlink(target=target) if not _is_target(target):
                raise CannotInstall(f"/{file.path} cannot link to {target!a}")
            case _:
                files[file.path] = file
    for path in files:
        if above := next((folder for folder in parents(path) if folder in files), None):
            raise CannotInstall(f"/{above} cannot be a file: /{path} is wanted too")
    if len(files) > MOST // 2:
        raise CannotInstall(f"more than {MOST // 2} files are wanted")
    return files


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
        self._old_digests: dict[str, tuple[str, ...]] = {}  # count as xenlb's until the end
        self._set_aside: list[Operation] = []  # copies of changed files
        self._early: list[Operation] = []  # back to the baseline, before the manifest is written
        self._save: list[Operation] = []  # copies of former files
        self._work: list[Operation] = []
        self._made: set[str] = set()

    def plan(self) -> Plan:
        for path in sorted({*self._wanted, *self._before.entries}):
            entry = self._before.entries.get(path)
            node = self._at(path)
            baseline = baseline_of(path, entry, self._wanted.get(path), self._present)
            if (wanted := self._wanted.get(path)) is not None:
                self._install(path, wanted, entry, node, baseline)
            elif entry is not None:
                self._remove(path, entry, node, baseline)
        return self._in_order()

    def _in_order(self) -> Plan:
        needed = {folder for path in self._entries for folder in parents(path)}
        ours = set(self._before.folders)
        if self._entries:
            needed |= set(parents(MANIFEST))
            ours |= {
                folder for folder in parents(MANIFEST) if folder != STATE and self._absent(folder)
            }
        ours |= {
            folder for path in self._wanted for folder in parents(path) if self._absent(folder)
        }
        final = Manifest(entries=self._entries, folders=tuple(sorted(ours & needed)))
        operations: list[Operation] = self._with_folders([*self._set_aside, *self._early])
        operations += self._intent(final, ours)
        operations += self._with_folders([*self._save, *self._work])
        unneeded = [
            saved(path)
            for path in sorted({*self._before.entries, *self._wanted})
            if not self._is_saved(path) and not self._absent(saved(path))
        ]
        operations += [Delete(path=path) for path in unneeded]
        deleted = [operation.path for operation in operations if isinstance(operation, Delete)]
        state = {folder for path in unneeded for folder in parents(path) if _is_state(folder)}
        state |= {path for path in self._present if _is_state(path) and path != STATE}
        used = {
            folder
            for path in self._entries
            if self._is_saved(path)
            for folder in parents(saved(path))
        }
        used |= {folder for operation in self._set_aside for folder in parents(operation.path)}
        emptied = (ours - needed - set(parents(MANIFEST))) | (state - used)
        operations += self._emptied(emptied, deleted)
        current = self._at(MANIFEST)
        if not self._entries:
            if not isinstance(current, Missing):
                operations.append(Delete(path=MANIFEST))
                deleted.append(MANIFEST)
            operations += self._emptied({STATE} | (ours & set(parents(MANIFEST))), deleted)
        else:
            written = [
                op.file for op in operations if isinstance(op, Write) and op.path == MANIFEST
            ]
            last = written[-1] if written else current
            if not isinstance(last, File) or last.content != text(final):
                operations += self._with_folders([_manifest_write(final)])
        return Plan(
            operations=tuple(operations),
            notes=tuple(self._notes),
            kept=tuple(self._kept),
            manifest=final,
        )

    def _intent(self, final: Manifest, ours: set[str]) -> list[Operation]:
        """Write the manifest with the intended changes."""
        entries = {**self._before.entries, **final.entries}
        for path, old in self._old_digests.items():
            digests = tuple(dict.fromkeys((*entries[path].digests, *old)))
            entries[path] = replace(entries[path], digests=digests[:MOST_TEXTS])
        intent = Manifest(entries=entries, folders=tuple(sorted(ours)))
        nothing_to_do = not (self._save or self._work) and ours == set(final.folders)
        if intent == self._before or (nothing_to_do and not self._early) or not entries:
            return []
        if len(entries) + len(ours) > MOST:
            raise CannotInstall(f"the manifest would have more than {MOST} paths")
        if not isinstance(self._at(MANIFEST), File | Missing):
            raise CannotInstall(f"/{MANIFEST} is not a file")
        return self._with_folders([_manifest_write(intent)])

    def _with_folders(self, operations: Iterable[Operation]) -> list[Operation]:
        """The operations, each after those that make its missing folders."""
        result: list[Operation] = []
        for operation in operations:
            for folder in parents(operation.path):
                if not isinstance(operation, Write | MakeSymlink):
                    continue
                if self._absent(folder) and folder not in self._made:
                    self._made.add(folder)
                    mode = 0o700 if _is_state(folder) else 0o755
                    result.append(MakeFolder(path=folder, mode=mode))
                elif not isinstance(self._at(folder), Folder | Missing):
                    raise CannotInstall(
                        f"/{folder} is not a folder, so /{operation.path} cannot be"
                    )
            result.append(operation)
        return result

    def _emptied(self, folders: Iterable[str], deleted: list[str]) -> Iterable[Operation]:
        """Remove folders that get empty, the deepest first; `deleted` grows by them."""
        for folder in sorted(folders, key=lambda path: (-path.count("/"), path)):
            match self._at(folder):
                case Folder(empty=empty) if empty or any(
                    path.rpartition("/")[0] == folder for path in deleted
                ):
                    deleted.append(folder)
                    yield RemoveFolder(path=folder)
                case _:
                    pass

    def _absent(self, path: str) -> bool:
        return isinstance(self._at(path), Missing)

    def _is_saved(self, path: str) -> bool:
        entry = self._entries.get(path)
        return (
            entry is not None
            and entry.kind is not EntryKind.BLOCK
            and isinstance(entry.previous, WasFile)
        )

    def _install(
        self, path: str, wanted: Wanted, entry: ManifestEntry | None, node: Node, baseline: Baseline
    ) -> None:
        if isinstance(node, Folder | Other):
            what = node.what if isinstance(node, Other) else "a folder"
            raise CannotInstall(f"/{path} is {what}; xenlb does not replace it")
        if baseline.lost:
            self._notes.append(f"the content of /{path} before xenlb is lost")
        if baseline.changed is not None:
            self._keep_changed(path, node, baseline.changed)
        if entry is not None and entry.kind is not kind_of(wanted):
            # First back to the baseline: in between the guest is as without xenlb.
            self._early += _towards(path, node, baseline.node)
            entry, node = None, baseline.node
        goal, self._entries[path] = goal_of(path, wanted, baseline.node, entry)
        if entry is not None:
            self._old_digests[path] = entry.digests
        if self._is_saved(path) and isinstance(baseline.node, File):
            copy = File(content=baseline.node.content, mode=ROOT_ONLY)
            self._save += _towards(saved(path), self._at(saved(path)), copy)
        self._work += _towards(path, node, goal)

    def _remove(self, path: str, entry: ManifestEntry, node: Node, baseline: Baseline) -> None:
        reason = baseline.changed
        if reason is None and baseline.lost and not isinstance(node, Missing):
            reason = "its content before xenlb is lost"
        if isinstance(node, Folder | Other):
            reason = "it is no longer a file"
        elif any(not isinstance(self._at(folder), Folder | Missing) for folder in parents(path)):
            reason = "a folder above it is no longer a folder"
        elif self._changed is ChangedFiles.DISCARD and baseline.node != node:
            reason = None
        if reason is None:
            self._work += _towards(path, node, baseline.node)
            return
        self._notes.append(f"/{path} is not removed: {reason}")
        self._kept.append(path)
        self._entries[path] = entry

    def _at(self, path: str) -> Node:
        return self._present.get(path, MISSING)

    def _keep_changed(self, path: str, node: Node, change: str) -> None:
        match node:
            case File(content=content):
                copy = f"{CHANGED}/{path}.{digest(content)[:8]}"
                file = File(content=content, mode=ROOT_ONLY)
                self._set_aside.append(Write(path=copy, file=file))
                self._notes.append(f"/{path}: {change}; the changed file is kept as /{copy}")
            case Symlink(target=target):
                self._notes.append(f"/{path}: {change}; it was a link to {target!a}")
            case _:
                pass


def _towards(path: str, node: Node, goal: Node) -> list[Operation]:
    """The operation that turns the node into the goal, if they differ."""
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


def _manifest_write(manifest: Manifest) -> Write:
    return Write(path=MANIFEST, file=File(content=text(manifest), mode=ROOT_ONLY))
