"""One writer a host: the agent and `xenlb apply` hold one lock while they may change the table.

It is flock(2) on a file beside the control socket; the kernel gives it back when its holder dies.
Two writers would undo each other's work: a drained guest gets its weight back.
"""

import contextlib
import fcntl
import os
from pathlib import Path

from xenlb.control.protocol import ControlError

LOCKS = Path("/proc/locks")


def beside(socket: Path) -> Path:
    return socket.with_name(f"{socket.name}.lock")


def make_folder(path: Path) -> None:
    """The folder of a file below /run, as systemd makes it for the agent. Raises OSError."""
    if not path.parent.is_dir():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.parent.chmod(0o755)


class Lock:
    """Held from `take` to `release`. Taken again, its file is made anew where that was removed."""

    def __init__(self, socket: Path) -> None:
        self.path = beside(socket)
        self._file: int | None = None

    def take(self) -> None:
        """Raises ControlError where another process has it, OSError where it cannot be made."""
        if self.stands():
            return
        make_folder(self.path)
        file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(file, 32, 0).decode(errors="replace").strip()
            os.close(file)
            raise ControlError(
                f"another xenlb works on the table, pid {pid}",
                hint="there is one agent a host: systemctl status xenlb; where it runs, xenlb"
                " reload is enough",
            ) from None
        except BaseException:
            os.close(file)
            raise
        with contextlib.suppress(OSError):  # no room in /run: it is a lock all the same
            os.ftruncate(file, 0)
            os.pwrite(file, b"%d\n" % os.getpid(), 0)
        self.release()
        self._file = file

    def release(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def stands(self) -> bool:
        """Is the file that is locked still the one with this name?"""
        if self._file is None:
            return False
        try:
            return os.path.samestat(os.fstat(self._file), self.path.stat())
        except OSError:
            return False


def holder(socket: Path, *, locks: Path = LOCKS) -> str:
    """The process that holds the lock, as "pid 123"; "" where none does. Only looks."""
    path = beside(socket)
    try:
        status = path.stat()
        written = path.read_text(errors="replace")[:32].strip()
        held = locks.read_text()
    except OSError:
        return ""
    major, minor = os.major(status.st_dev), os.minor(status.st_dev)
    name = f"{major:02x}:{minor:02x}:{status.st_ino}"
    for line in held.splitlines():
        fields = line.split()
        if "FLOCK" in fields and name in fields and "->" not in fields:
            return f"pid {written}" if written.isdecimal() else "pid unknown"
    return ""
