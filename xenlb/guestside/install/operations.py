"""Wanted files, nodes of a guest's file system, and operations on them: pure.

An operation is done as a whole or not at all, and may be repeated: an apply can be interrupted
after any of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from xenlb.untrusted.printable import printable

LARGEST = 256 * 1024  # bytes of a file to read or write
ROOT_ONLY = 0o600


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestFile:
    """A wanted file; `path` is below the guest's root, without a leading slash.

    `block`: only a part between marks, after a first line #!; the rest is not xenlb's.
    """

    path: str
    text: str
    mode: int = 0o644
    block: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestSymlink:
    """A wanted symbolic link, with the literal target."""

    path: str
    target: str


Wanted = GuestFile | GuestSymlink


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A file. `owner`: user and group; None: those of the guest's root folder.

    In a container with mapped users the host sees other numbers than the guest.
    """

    content: bytes
    mode: int
    owner: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Symlink:
    """A symbolic link; not followed."""

    target: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """A folder, or a link to one where a folder was requested."""

    empty: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """Nothing is there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Other:
    """A node that xenlb does not touch: a device, a socket, a file that is too large."""

    what: str


def as_bytes(target: str) -> bytes:
    """A link's target as the file system has it, which may be no text."""
    return target.encode("utf-8", "surrogateescape")


Node = File | Symlink | Folder | Missing | Other
Present = Mapping[str, Node]
MISSING = Missing()


@dataclass(frozen=True, slots=True, kw_only=True)
class MakeFolder:
    """Make a folder if there is none; `mode` is of a new one only."""

    path: str
    mode: int = 0o755

    def __str__(self) -> str:
        return f"make the folder /{self.path}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    """Write a file, with its mode and owner; replace a file or a link, never a folder."""

    path: str
    file: File

    def __str__(self) -> str:
        return f"write /{self.path} ({self.file.mode:04o}, {len(self.file.content)} bytes)"


@dataclass(frozen=True, slots=True, kw_only=True)
class MakeSymlink:
    """Make a symbolic link; replace a file or a link, never a folder."""

    path: str
    target: str

    def __str__(self) -> str:
        return f"link /{self.path} to {printable(self.target)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Delete:
    """Delete a file or a link."""

    path: str

    def __str__(self) -> str:
        return f"delete /{self.path}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveFolder:
    """Remove a folder if it is empty."""

    path: str

    def __str__(self) -> str:
        return f"remove the folder /{self.path} if it is empty"


Operation = MakeFolder | Write | MakeSymlink | Delete | RemoveFolder


class Executor(Protocol):
    """Reads and changes the files of a guest. Methods raise DeliveryError."""

    async def read(self, *, files: tuple[str, ...], folders: tuple[str, ...]) -> Present:
        """Read the nodes at these paths; a link is followed in `folders`, not in `files`."""

    async def perform(self, operations: tuple[Operation, ...]) -> None:
        """Perform operations; after an error those before the failed one are done."""
