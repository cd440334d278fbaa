"""The manifest: xenlb's record in a guest of its changes there, to undo them. Pure.

The guest can change it, so it is untrusted: its size, its form and every path are checked. It can
name files of the same guest only.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

VERSION = 1
STATE = "var/lib/xenlb"
MANIFEST = f"{STATE}/manifest.json"
SAVED = f"{STATE}/saved"  # the files that xenlb replaced
CHANGED = f"{STATE}/changed"  # xenlb's files with changes of others

LONGEST = 256 * 1024  # bytes, of the manifest
MOST = 512  # paths
MOST_TEXTS = 8  # contents of one path that count as xenlb's
LONGEST_PATH, LONGEST_NAME, DEEPEST = 1024, 200, 32
_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)


class BadManifest(Exception):
    """The guest's manifest cannot be used; one sentence."""


class EntryKind(StrEnum):
    """The part of a path that is xenlb's."""

    WHOLE = "whole"
    BLOCK = "block"
    LINK = "link"


@dataclass(frozen=True, slots=True, kw_only=True)
class WasFile:
    """A file that was there before.

    `digest`: of its content, which is kept below SAVED. `owner`: user and group, None for root.
    """

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
    """One path.

    `digests`: of xenlb's content there: of a file, the text of a block, or the target of a link.
    There are several while one replaces another, so both count as xenlb's after a killed apply.
    `previous` None: xenlb made it. Of the file around a block only the mode is kept.
    """

    kind: EntryKind
    mode: int
    digests: tuple[str, ...]
    previous: Previous = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Entries by path; `folders`: those that xenlb made."""

    entries: Mapping[str, ManifestEntry]
    folders: tuple[str, ...] = ()


NOTHING = Manifest(entries={})


def digest(data: bytes) -> str:
    """The SHA-256 of the data, as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def fault(path: str) -> str | None:
    """The reason why xenlb does not touch this path of a guest; None: it does."""
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
    """The manifest as a file."""
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
    """The manifest in these bytes. Raises BadManifest."""
    if len(data) > LONGEST:
        raise BadManifest(f"it is longer than {LONGEST} bytes")
    try:
        value = json.loads(data.decode("ascii"), parse_int=_number)
    except (ValueError, RecursionError):
        raise BadManifest("it is not JSON") from None
    match value:
        case {"version": 1, "files": dict(files), "folders": list(folders)}:
            pass
        case {"version": 1}:
            raise BadManifest("it has no files or no folders")
        case _:
            raise BadManifest(f"its version is not {VERSION}, the only known one")
    if len(files) + len(folders) > MOST:
        raise BadManifest(f"it has more than {MOST} paths")
    return Manifest(
        entries={_path(path): _entry(entry) for path, entry in files.items()},
        # xenlb may have made the folders above the manifest, too.
        folders=tuple(
            folder if folder in parents(MANIFEST) else _path(folder) for folder in folders
        ),
    )


def _number(digits: str) -> int:
    if len(digits) > 12:
        raise ValueError("a long number")
    return int(digits)


def _entry(value: object) -> ManifestEntry:
    match value:
        case {"kind": str(kind), "mode": mode, "sha256": list(digests), "made": bool(made), **rest}:
            previous = rest.get("previous")
        case _:
            raise BadManifest("an entry lacks kind, mode, sha256 or made")
    if kind not in tuple(EntryKind):
        raise BadManifest("an entry has an unknown kind")
    if not 1 <= len(digests) <= MOST_TEXTS:
        raise BadManifest(f"an entry has no sha256, or more than {MOST_TEXTS}")
    if made is not (previous is None):
        raise BadManifest("an entry says both that xenlb made the file and that it did not")
    return ManifestEntry(
        kind=EntryKind(kind),
        mode=_mode(mode),
        digests=tuple(map(_digest, digests)),
        previous=_previous(previous),
    )


def _previous(value: object) -> Previous:
    match value:
        case None:
            return None
        case {"target": str(target)} if 0 < len(target) <= LONGEST_PATH and "\0" not in target:
            return WasLink(target=target)
        case {"target": _}:
            raise BadManifest("the target of a previous link cannot be one")
        case {"mode": mode, "sha256": sha256, "owner": None}:
            return WasFile(mode=_mode(mode), digest=_digest(sha256))
        case {"mode": mode, "sha256": sha256, "owner": [int(uid), int(gid)]} if (
            0 <= uid < 2**32 and 0 <= gid < 2**32
        ):
            return WasFile(mode=_mode(mode), digest=_digest(sha256), owner=(uid, gid))
        case _:
            raise BadManifest("the mode, sha256 or owner of a previous file is invalid")


def _path(path: object) -> str:
    if not isinstance(path, str):
        raise BadManifest("a folder is not a string")
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
