"""The last good configuration, kept on disk: /var/lib/xenlb/last-good.yaml.

An agent that finds its configuration wrong after a reboot has no earlier one in memory. It uses
this copy then, and says so until the file is right. The first line is a comment with the checksum,
the time and the file that it is a copy of; the rest is that file, byte for byte.
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
_LONGEST_HEAD = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class LastGood:
    """`since`: when it was first in use, as ISO 8601."""

    data: bytes
    since: str

    @property
    def checksum(self) -> str:
        return checksum_of(self.data)


class LastGoodError(Exception):
    """The copy cannot be used; says why, in a sentence without its file's name."""


def checksum_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def write_last_good(place: Path, data: bytes, *, of: Path, since: str) -> None:
    """Writes the copy, unless it is there already: atomically, and so that it outlives a power cut.
    Raises OSError."""
    with suppress(LastGoodError, OSError):
        known = read_last_good(place, of=of)
        if known is not None and known.data == data:
            return
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    name = os.fsencode(os.path.abspath(of)).replace(b"\n", b"?")
    head = b"# xenlb: last good configuration, sha256 %s, %s, of %s\n"
    fresh = place.with_name(f".{place.name}.new")
    fresh.unlink(missing_ok=True)
    try:
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(fd, "wb") as stream:
            stream.write(head % (checksum_of(data).encode(), since.encode(), name))
            stream.write(data)
            stream.flush()
            os.fsync(fd)
        os.replace(fresh, place)
    except OSError:
        with suppress(OSError):
            fresh.unlink(missing_ok=True)
        raise
    folder = os.open(place.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_last_good(place: Path, *, of: Path) -> LastGood | None:
    """The copy of that file, None where there is none. Raises LastGoodError where it is damaged,
    or where another user can write it."""
    try:
        fd = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
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
        whole = stream.read(LARGEST_FILE + _LONGEST_HEAD)
    head = _HEAD.match(whole)
    if head is None:
        raise LastGoodError("its first line is not the one that xenlb writes")
    data = whole[head.end() :]
    if checksum_of(data).encode() != head[1]:
        raise LastGoodError("its checksum is not that of its text")
    if head[3] != os.fsencode(os.path.abspath(of)):
        return None
    return LastGood(data=data, since=head[2].decode("ascii", "replace"))
