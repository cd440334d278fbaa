"""The lock of the table's writer: held by the agent, and by `xenlb apply` while it runs.

Two writers would undo each other's changes: a drained guest would get its weight back. The lock is
flock(2) on a file beside the control socket; the kernel releases it when its holder dies.
"""

import contextlib
import fcntl
import os
from pathlib import Path

from xenlb.control.protocol import ControlError

LOCKS = Path("/proc/locks")


def _lock_path(socket: Path) -> Path:
    return socket.with_name(f"{socket.name}.lock")


def make_folder(path: Path) -> None:
    """Create the folder of a file below /run, as systemd does for the agent. Raises OSError."""
    if not path.parent.is_dir():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.parent.chmod(0o755)


class Lock:
    """The lock. Taking it again creates its file again if that was removed."""

    def __init__(self, socket: Path) -> None:
        self.path = _lock_path(socket)
        self._file: int | None = None

    def take(self) -> None:
        """Take the lock. Raises ControlError if another process holds it, and OSError."""
        if self.is_held():
            return
        make_folder(self.path)
        file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(file, 32, 0).decode(errors="replace").strip()
            os.close(file)
            raise ControlError(
                f"another xenlb manages the table, pid {pid}",
                hint="only one agent can run on a host: systemctl status xenlb; to apply a changed"
                " configuration: xenlb reload",
            ) from None
        except BaseException:
            os.close(file)
            raise
        with contextlib.suppress(OSError):  # no space in /run: the lock works all the same
            os.ftruncate(file, 0)
            os.pwrite(file, b"%d\n" % os.getpid(), 0)
        self.release()
        self._file = file

    def release(self) -> None:
        """Release the lock if this object holds it; the file stays."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def is_held(self) -> bool:
        """Whether this object holds the lock, and its file has not been replaced or removed."""
        if self._file is None:
            return False
        try:
            return os.path.samestat(os.fstat(self._file), self.path.stat())
        except OSError:
            return False


def holder(socket: Path, *, locks: Path = LOCKS) -> str:
    """The process that holds the lock, as "pid 123"; "" if none does. Does not take it."""
    path = _lock_path(socket)
    try:
        status = path.stat()
        pid = path.read_text(errors="replace")[:32].strip()
        lines = locks.read_text().splitlines()
    except OSError:
        return ""
    major, minor = os.major(status.st_dev), os.minor(status.st_dev)
    name = f"{major:02x}:{minor:02x}:{status.st_ino}"
    for line in lines:
        fields = line.split()
        if "FLOCK" in fields and name in fields and "->" not in fields:
            return f"pid {pid}" if pid.isdecimal() else "pid unknown"
    return ""
