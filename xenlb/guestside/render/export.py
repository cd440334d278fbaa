"""A guest's files as a tree below a folder, or as a tar archive."""

import io
import os
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path

from xenlb.guestside.install.operations import GuestFile, GuestSymlink, Wanted


def write_tree(files: Sequence[Wanted], folder: Path) -> None:
    """Write the files below a folder; each appears complete and with its mode."""
    for file in files:
        target = folder / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        new = target.with_name(f".{target.name}.new")
        new.unlink(missing_ok=True)
        if isinstance(file, GuestSymlink):
            new.symlink_to(file.target)
            new.replace(target)
            continue
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(fd, "w") as stream:
            stream.write(file.text)
            os.fchmod(fd, file.mode)
        new.replace(target)


def archive(files: Sequence[Wanted]) -> bytes:
    """A ustar archive, which the oldest tar and busybox read; all files belong to root.

    It has no entries for folders, so unpacking it at / changes none.
    """
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for file in files:
            entry = tarfile.TarInfo(file.path)
            entry.mtime = int(time.time())
            entry.uname = entry.gname = "root"
            match file:
                case GuestSymlink(target=target):
                    entry.type, entry.linkname, data = tarfile.SYMTYPE, target, b""
                case GuestFile(text=text, mode=mode):
                    entry.mode, data = mode, text.encode()
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()
