"""The last good configuration on the disk: /var/lib/xenlb/last-good.yaml.

After a reboot an agent has no earlier configuration in memory. Where the file is invalid then, it
uses this copy, and reports so until the file is valid. The first line is a comment with checksum,
time and name of the copied file; below it is that file, byte for byte.
"""

import hashlib
import os
import re
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from xenlb.config.yaml_nodes import LARGEST_FILE

_HEAD = re.compile(rb"# xenlb: last good configuration, sha256 ([0-9a-f]{64}), (\S+), of (.*)\n")
_LONGEST_HEAD = 8192  # bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class LastGood:
    """A configuration file, byte for byte; `since`: when it was first in use, as ISO 8601."""

    data: bytes
    since: str


class LastGoodError(Exception):
    """The reason why the copy cannot be used: a sentence without the copy's name."""


def checksum_of(data: bytes) -> str:
    """The SHA-256 of the data, as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def write_last_good(copy: Path, data: bytes, *, of: Path, since: str) -> None:
    """Write the copy if it differs. Raises OSError.

    The write is atomic and outlives a power cut.
    """
    with suppress(LastGoodError, OSError):
        known = read_last_good(copy, of=of)
        if known is not None and known.data == data:
            return
    copy.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    head = b"# xenlb: last good configuration, sha256 %s, %s, of %s\n"
    name = os.fsencode(os.path.abspath(of)).replace(b"\n", b"?")
    fresh = copy.with_name(f".{copy.name}.new")
    fresh.unlink(missing_ok=True)
    try:
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(fd, "wb") as stream:
            stream.write(head % (checksum_of(data).encode(), since.encode(), name) + data)
            stream.flush()
            os.fsync(fd)
        os.replace(fresh, copy)
    except OSError:
        with suppress(OSError):
            fresh.unlink(missing_ok=True)
        raise
    folder = os.open(copy.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_last_good(copy: Path, *, of: Path) -> LastGood | None:
    """Read the copy of that file; None where there is none.

    Raises LastGoodError where the copy is damaged, or where another user can write it.
    """
    try:
        fd = os.open(copy, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise LastGoodError((error.strerror or str(error)).lower()) from None
    with os.fdopen(fd, "rb") as stream:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise LastGoodError("it is not a regular file")
        if status.st_uid not in {0, os.geteuid()} or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise LastGoodError("users other than root may write it")
        content = stream.read(LARGEST_FILE + _LONGEST_HEAD)
    head = _HEAD.match(content)
    if head is None:
        raise LastGoodError("its first line is not the one that xenlb writes")
    data = content[head.end() :]
    if checksum_of(data).encode() != head[1]:
        raise LastGoodError("its checksum is not that of its text")
    if head[3] != os.fsencode(os.path.abspath(of)):
        return None
    return LastGood(data=data, since=head[2].decode("ascii", "replace"))
