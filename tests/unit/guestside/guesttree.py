"""A guest's tree in memory, and the sets of files that are brought into it."""

from collections.abc import Iterable

from hypothesis import strategies as st

from xenlb.guestside.install import blocks
from xenlb.guestside.install.manifest import MANIFEST, NOTHING, STATE, Manifest, parents, parse
from xenlb.guestside.install.operations import (
    MISSING,
    Delete,
    File,
    Folder,
    GuestFile,
    GuestSymlink,
    MakeFolder,
    MakeSymlink,
    Node,
    Operation,
    RemoveFolder,
    Symlink,
    Wanted,
    Write,
)
from xenlb.guestside.install.planner import ChangedFiles, Plan, paths_to_read, plan


class GuestTree:
    """As strict as a file system: no file without its folder, no operation on what is not there."""

    def __init__(self, nodes: dict[str, File | Symlink], folders: Iterable[str] = ()) -> None:
        self.files: dict[str, File | Symlink] = dict(nodes)
        self.folders = {each for path in (*nodes, *folders) for each in parents(path)}
        self.folders |= set(folders)

    def copy(self) -> "GuestTree":
        return GuestTree(self.files, self.folders)

    def seen(self) -> tuple[dict[str, File | Symlink], set[str]]:
        return dict(self.files), set(self.folders)

    def node(self, path: str) -> Node:
        if path in self.folders:
            below = f"{path}/"
            return Folder(empty=not any(p.startswith(below) for p in (*self.files, *self.folders)))
        return self.files.get(path, MISSING)

    def manifest(self) -> Manifest:
        file = self.files.get(MANIFEST)
        return parse(file.content) if isinstance(file, File) else NOTHING

    def plan(self, wanted: Iterable[Wanted], *, changed: ChangedFiles = ChangedFiles.KEEP) -> Plan:
        wanted = tuple(wanted)
        manifest = self.manifest()
        ask = paths_to_read(wanted, manifest)
        present = {path: self.node(path) for path in (*ask.folders, *ask.files)}
        return plan(wanted, manifest, present, changed=changed)

    def perform(self, operations: Iterable[Operation]) -> None:
        for operation in operations:
            path = operation.path
            above = path.rpartition("/")[0]
            assert not above or above in self.folders, f"{operation}: there is no {above}"
            match operation:
                case Write(file=file):
                    assert path not in self.folders
                    self.files[path] = file
                case MakeSymlink(target=target):
                    assert path not in self.folders
                    self.files[path] = Symlink(target=target)
                case Delete():
                    del self.files[path]
                case MakeFolder():
                    assert path not in self.folders
                    self.folders.add(path)
                case RemoveFolder():
                    assert path in self.folders
                    if self.node(path) == Folder(empty=True):
                        self.folders.remove(path)

    def apply(self, wanted: Iterable[Wanted], *, changed: ChangedFiles = ChangedFiles.KEEP) -> Plan:
        made = self.plan(wanted, changed=changed)
        self.perform(made.operations)
        return made

    def without_state(self) -> dict[str, File | Symlink]:
        return {path: node for path, node in self.files.items() if not path.startswith(STATE)}


def expected(initial: GuestTree, wanted: Iterable[Wanted]) -> dict[str, File | Symlink]:
    """What is there after an apply, by the plainest reckoning."""
    files = dict(initial.files)
    for each in wanted:
        before = files.get(each.path)
        match each:
            case GuestSymlink(path=path, target=target):
                files[path] = Symlink(target=target)
            case GuestFile(path=path, text=text, mode=mode, block=False):
                files[path] = File(content=text.encode(), mode=mode)
            case GuestFile(path=path, text=text, mode=mode):
                assert before is None or isinstance(before, File)
                rest = before.content if before else (blocks.SHEBANG if mode & 0o111 else b"")
                was, owner = (before.mode, before.owner) if before else (mode, None)
                content = blocks.insert(rest, text.encode())
                files[path] = File(content=content, mode=was | mode & 0o111, owner=owner)
    return files


PATHS = ("etc/one", "etc/new.d/two", "etc/new.d/deep/three", "srv/it's $(touch canary);x", "top")
CONTENTS = st.one_of(
    st.sampled_from(
        [b"", b"#!/bin/sh", b"#!/bin/sh\nexit 0\n", b"a\r\nb", b"\0\xff'\n$(x)\n%s\\n"]
    ),
    st.binary(max_size=40),
)
TEXTS = st.sampled_from(["", "x", "net.x = 1\n", "it's\n", "%s\\n$(touch canary)`id`\n", "ö\n\n"])
MODES = st.sampled_from([0o644, 0o600, 0o755, 0o4755])
TARGETS = st.sampled_from(["/dev/null", "../lib/it's a unit", "-n"])
OWNERS = st.sampled_from([None, (7, 8)])


@st.composite
def trees(draw: st.DrawFn, *, links: bool = True) -> GuestTree:
    """`links` False: none where a block may be wanted."""
    nodes: dict[str, File | Symlink] = {}
    for path in draw(st.sets(st.sampled_from(PATHS))):
        if links and path != "etc/one" and draw(st.booleans()):
            nodes[path] = Symlink(target=draw(TARGETS))
        else:
            content = draw(CONTENTS.filter(lambda data: b"xenlb" not in data))
            nodes[path] = File(content=content, mode=draw(MODES), owner=draw(OWNERS))
    return GuestTree(nodes, {"etc", *draw(st.sets(st.sampled_from(["srv", "var", "var/lib"])))})


@st.composite
def wanted_sets(draw: st.DrawFn) -> tuple[Wanted, ...]:
    made: list[Wanted] = []
    for path in draw(st.sets(st.sampled_from(PATHS))):
        kind = draw(st.sampled_from(["whole", "link", "block"]))
        if kind == "link":
            made.append(GuestSymlink(path=path, target=draw(TARGETS)))
        else:
            block = kind == "block" and path == "etc/one"
            mode = draw(st.sampled_from([0o644, 0o755, 0o600]))
            made.append(GuestFile(path=path, text=draw(TEXTS), mode=mode, block=block))
    return tuple(made)
