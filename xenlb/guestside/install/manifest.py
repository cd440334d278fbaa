"""PURE. The manifest: what xenlb keeps in a guest to know what it did there, and how to undo it.

It lies in the guest and is the guest's to change. So it is read as a stranger's: its size, its form
and every path in it are checked, and it can name nothing but files of that same guest. What is
done with it: planner.py.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

VERSION = 1
STATE = "var/lib/xenlb"
MANIFEST = f"{STATE}/manifest.json"
# What was there before xenlb came, and what others made of xenlb's files since.
SAVED = f"{STATE}/saved"
CHANGED = f"{STATE}/changed"

LONGEST = 256 * 1024  # bytes, of the manifest
MOST = 512  # paths
MOST_TEXTS = 8  # contents of one path that count as ours
LONGEST_PATH, LONGEST_NAME, DEEPEST = 1024, 200, 32
_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)


class BadManifest(Exception):
    """The guest's manifest cannot be used; one sentence."""


class EntryKind(StrEnum):
    """What of a path is xenlb's."""

    WHOLE = "whole"
    BLOCK = "block"
    LINK = "link"


@dataclass(frozen=True, slots=True, kw_only=True)
class WasFile:
    """A file that was there before. `digest`: of its content, which is kept below SAVED; `owner` as
    in operations.py."""

    mode: int
    digest: str
    owner: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WasLink:
    """A symbolic link that was there before."""

    target: str


Previous = WasFile | WasLink | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestEntry:
    """One path. `digests`: of what is ours there (of a block, of its text; of a link, of its
    target): several while one is being replaced by another, so that an apply which was killed
    between the two takes neither for somebody else's. `previous` None: xenlb made it. A block has
    the previous rights of its file, and no content: the rest of the file is that."""

    kind: EntryKind
    mode: int
    digests: tuple[str, ...]
    previous: Previous = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """`folders`: those that xenlb made."""

    entries: Mapping[str, ManifestEntry]
    folders: tuple[str, ...] = ()


NOTHING = Manifest(entries={})


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def fault(path: str) -> str | None:
    """Why it is no path of a file below a guest's root that xenlb would touch; None: it is one."""
    if not path or len(path) > LONGEST_PATH:
        return "is empty" if not path else f"is longer than {LONGEST_PATH} characters"
    if not (path.isascii() and path.isprintable()):
        return "has characters other than printable ASCII"
    if path.startswith("/"):
        return "begins with a slash"
    names = path.split("/")
    if len(names) > DEEPEST:
        return f"is deeper than {DEEPEST} folders"
    if any(name in ("", ".", "..") for name in names):
        return "has an empty part, '.' or '..'"
    if any(len(name) > LONGEST_NAME for name in names):
        return f"has a name longer than {LONGEST_NAME} characters"
    if path == STATE or path.startswith(f"{STATE}/"):
        return f"is in /{STATE}, which is xenlb's own"
    return None


def parents(path: str) -> tuple[str, ...]:
    """The folders of a path, the outermost first."""
    names = path.split("/")[:-1]
    return tuple("/".join(names[: n + 1]) for n in range(len(names)))


def text(manifest: Manifest) -> bytes:
    """The manifest as it is written."""
    files = {path: _entry_value(entry) for path, entry in sorted(manifest.entries.items())}
    value = {"version": VERSION, "folders": sorted(manifest.folders), "files": files}
    return (json.dumps(value, indent=1) + "\n").encode()


def _entry_value(entry: ManifestEntry) -> dict[str, object]:
    value: dict[str, object] = {
        "kind": str(entry.kind),
        "mode": f"{entry.mode:04o}",
        "sha256": list(entry.digests),
        "made": entry.previous is None,
    }
    match entry.previous:
        case WasFile(mode=mode, digest=kept, owner=owner):
            value["previous"] = {"mode": f"{mode:04o}", "sha256": kept, "owner": owner}
        case WasLink(target=target):
            value["previous"] = {"target": target}
        case None:
            pass
    return value


def parse(data: bytes) -> Manifest:
    """Raises BadManifest."""
    if len(data) > LONGEST:
        raise BadManifest(f"it is longer than {LONGEST} bytes")
    try:
        value = json.loads(data.decode("ascii"), parse_int=_number)
    except (ValueError, RecursionError):
        raise BadManifest("it is not JSON") from None
    top = _mapping(value, "it")
    if top.get("version") != VERSION:
        raise BadManifest(f"its version is not {VERSION}, the only one known here")
    files, folders = _mapping(top.get("files"), "files"), _sequence(top.get("folders"), "folders")
    if len(files) + len(folders) > MOST:
        raise BadManifest(f"it has more than {MOST} paths")
    return Manifest(
        entries={_path(path): _entry(entry) for path, entry in files.items()},
        # The folders above the manifest itself may be xenlb's making, too.
        folders=tuple(
            folder if folder in parents(MANIFEST) else _path(folder)
            for folder in (_string(each, "a folder") for each in folders)
        ),
    )


def _number(digits: str) -> int:
    if len(digits) > 12:
        raise ValueError("a long number")
    return int(digits)


def _entry(value: object) -> ManifestEntry:
    fields = _mapping(value, "an entry")
    kind = fields.get("kind")
    if kind not in tuple(EntryKind):
        raise BadManifest("an entry has an unknown kind")
    digests = tuple(_digest(each) for each in _sequence(fields.get("sha256"), "sha256"))
    if not 1 <= len(digests) <= MOST_TEXTS:
        raise BadManifest(f"an entry has no sha256, or more than {MOST_TEXTS}")
    previous = fields.get("previous")
    if fields.get("made") is not (previous is None):
        raise BadManifest("an entry says both that xenlb made the file and that it did not")
    return ManifestEntry(
        kind=EntryKind(str(kind)),
        mode=_mode(fields.get("mode")),
        digests=digests,
        previous=None if previous is None else _previous(_mapping(previous, "previous")),
    )


def _previous(fields: Mapping[str, object]) -> Previous:
    if "target" in fields:
        target = _string(fields["target"], "a target")
        if not target or len(target) > LONGEST_PATH or "\0" in target:
            raise BadManifest("a link's previous target cannot be one")
        return WasLink(target=target)
    return WasFile(
        mode=_mode(fields.get("mode")),
        digest=_digest(fields.get("sha256")),
        owner=_owner(fields.get("owner")),
    )


def _owner(value: object) -> tuple[int, int] | None:
    match value:
        case None:
            return None
        case [int(uid), int(gid)] if 0 <= uid < 2**32 and 0 <= gid < 2**32:
            return int(uid), int(gid)
        case _:
            raise BadManifest("a previous owner is not two numbers")


def _path(path: str) -> str:
    if (wrong := fault(path)) is not None:
        raise BadManifest(f"a path in it {wrong}")
    return path


def _mode(value: object) -> int:
    if not (isinstance(value, str) and re.fullmatch(r"[0-7]{4}", value, re.ASCII)):
        raise BadManifest("a mode is not four octal digits")
    return int(value, 8)


def _digest(value: object) -> str:
    if not (isinstance(value, str) and _DIGEST.fullmatch(value)):
        raise BadManifest("a sha256 is not one")
    return value


def _string(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise BadManifest(f"{what} is not a string")
    return value


def _mapping(value: object, what: str) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise BadManifest(f"{what} is not a JSON object")
    return value


def _sequence(value: object, what: str) -> Sequence[object]:
    if not isinstance(value, list):
        raise BadManifest(f"{what} is not a list")
    return value
