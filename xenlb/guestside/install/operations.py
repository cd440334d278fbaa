"""PURE. What a guest should have, what is at its paths, and the operations between the two.

Who reads and who performs them: transport/remote_files.py and transport/image.py. An operation is
whole or not at all, and finding it done already is no error: after any number of them an apply can
be broken off.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from xenlb.untrusted.printable import printable

LARGEST = 256 * 1024  # bytes of a file that is read or written
ROOT_ONLY = 0o600


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestFile:
    """A file of the guest; `path` is below its root, without a leading slash. `block`: only a part
    of it, between marks, after a first line #! if there is one: the rest is somebody else's."""

    path: str
    text: str
    mode: int = 0o644
    block: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestSymlink:
    """A symbolic link of the guest, as `systemctl enable` makes them; `target` as it is written
    into it."""

    path: str
    target: str


Wanted = GuestFile | GuestSymlink


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """`owner`: user and group; None: those of the guest's root folder, so root. In a container
    with mapped users these are others for the host than for the guest."""

    content: bytes
    mode: int
    owner: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Symlink:
    """A symbolic link; not followed."""

    target: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """A folder, or, where a folder was asked for, a link to one."""

    empty: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """Nothing is there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Other:
    """What xenlb does not touch: a device, a socket, a file that is too large."""

    what: str


def as_bytes(target: str) -> bytes:
    """A link's target as the file system has it: it need not be text."""
    return target.encode("utf-8", "surrogateescape")


Node = File | Symlink | Folder | Missing | Other
Present = Mapping[str, Node]
MISSING = Missing()


@dataclass(frozen=True, slots=True, kw_only=True)
class MakeFolder:
    path: str
    mode: int = 0o755

    def __str__(self) -> str:
        return f"make the folder /{self.path}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    path: str
    file: File

    def __str__(self) -> str:
        return f"write /{self.path} ({self.file.mode:04o}, {len(self.file.content)} bytes)"


@dataclass(frozen=True, slots=True, kw_only=True)
class MakeSymlink:
    path: str
    target: str

    def __str__(self) -> str:
        return f"link /{self.path} to {printable(self.target)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Delete:
    """A file or a link."""

    path: str

    def __str__(self) -> str:
        return f"delete /{self.path}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveFolder:
    """Only if it is empty; that it is not is no error."""

    path: str

    def __str__(self) -> str:
        return f"remove the folder /{self.path} if it is empty"


Operation = MakeFolder | Write | MakeSymlink | Delete | RemoveFolder


class Executor(Protocol):
    """Reads and changes a guest's files. Both raise DeliveryError (ways/channel.py); when `perform`
    does, the operations before the one that failed are done."""

    async def read(self, *, files: tuple[str, ...], folders: tuple[str, ...]) -> Present:
        """Of a path in `files` a link is told as a link; one in `folders` is followed."""

    async def perform(self, operations: tuple[Operation, ...]) -> None: ...
