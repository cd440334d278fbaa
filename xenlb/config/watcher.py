"""Report changes of the configuration file, once no process writes to it any more.

Folders are watched, not the file: editors and package managers replace the file, and a symbolic
link on the way to it (as in a Kubernetes volume) may change. inotify only triggers a comparison of
the file's fingerprint, which happens every POLL_INTERVAL in any case: inotify's instances and
watches may be used up (LXC guests share root's), and replacing a folder above causes no event.
"""

import fcntl
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from watchdog.events import DirDeletedEvent, FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver, ObservedWatch

from xenlb.config.path_resolution import path_steps

log = logging.getLogger(__name__)

POLL_INTERVAL: Final = 5.0  # seconds between two comparisons without an event
QUIET: Final = 0.1  # seconds without a change before a change is reported
# The same if the kernel cannot tell whether the file is open for writing (NFS, a file of another
# user), and if it is open: a writer may pause, but not forever.
QUIET_UNKNOWN: Final = 2.0
QUIET_OPEN: Final = 30.0
LONGEST: Final = 120.0  # a file that keeps changing is reported after so many seconds

# Device, inode, size and times of the file; None if there is no file.
Fingerprint = tuple[int, int, int, int, int] | None
# A folder and its inode: a folder that was removed and created again is another one.
Folder = tuple[str, int]


class ConfigWatcher:
    """Calls `callback` after the file was changed, replaced, removed or put back.

    The calls come from a thread of the watcher, one for a series of changes. The callback must not
    raise, nor wait for a thread that is in stop(). Start the watcher before reading the file, so
    that no change is missed. `poll_interval`: seconds between two comparisons without an event.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        callback: Callable[[], None],
        *,
        poll_interval: float = POLL_INTERVAL,
    ) -> None:
        self._path = os.path.abspath(os.fspath(path))
        self._callback = callback
        self._poll_interval = poll_interval
        self._observer: BaseObserver | None = None
        self._handler = _Handler(self._on_event)
        self._watches: dict[Folder, ObservedWatch] = {}
        self._gone: set[str] = set()  # watched folders that inotify reported as deleted
        self._reported: Fingerprint = None
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch the configuration")
        self._complaint = ""

    def start(self) -> None:
        """Start watching. Without inotify, changes are noticed within POLL_INTERVAL."""
        try:
            observer = Observer()
            observer.start()
        except OSError as error:
            self._complain(error)
        else:
            self._observer = observer
        self._watch_folders()
        self._reported = fingerprint(self._path)
        self._thread.start()

    def stop(self) -> None:
        """Stop; afterwards the callback is not called any more. May be repeated."""
        self._stopping.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()
        if self._observer is not None and self._observer.is_alive():
            self._observer.stop()
            self._observer.join()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _on_event(self, event: FileSystemEvent) -> None:
        """Wake the watcher; runs in watchdog's thread, also for every read of a file."""
        if isinstance(event, DirDeletedEvent):
            self._gone.add(os.fsdecode(event.src_path))
        self._wake.set()

    def _run(self) -> None:
        while True:
            self._wake.wait(self._poll_interval)
            self._wake.clear()
            if self._stopping.is_set():
                return
            if self._current() != self._reported and self._wait_until_settled():
                self._callback()

    def _wait_until_settled(self) -> bool:
        """Wait until the file rests; whether it differs from the version reported before."""
        current, since = self._current(), time.monotonic()
        began = since
        while True:
            if self._stopping.wait(QUIET):
                return False
            before, current = current, self._current()
            now = time.monotonic()
            if current != before:
                since = now
            if now - since >= _quiet_time(self._path) or now - began >= LONGEST:
                changed = current != self._reported
                self._reported = current
                return changed

    def _current(self) -> Fingerprint:
        self._watch_folders()
        return fingerprint(self._path)

    def _watch_folders(self) -> None:
        """Watch exactly the folders on the way to the file."""
        if self._observer is None:
            return
        while self._gone:
            gone = self._gone.pop()
            for key in [key for key in self._watches if key[0] == gone]:
                self._observer.unschedule(self._watches.pop(key))
        try:
            while (wanted := watched_folders(self._path)) != self._watches.keys():
                for key in self._watches.keys() - wanted:
                    self._observer.unschedule(self._watches.pop(key))
                for key in wanted - self._watches.keys():
                    self._watches[key] = self._observer.schedule(self._handler, key[0])
        except OSError as error:
            self._complain(error)
        else:
            self._complaint = ""

    def _complain(self, error: OSError) -> None:
        reason = (error.strerror or str(error)).lower()
        if reason != self._complaint:
            log.warning(
                "inotify cannot be used for %s: %s; changes are noticed within %g s"
                " (the limits are the sysctls fs.inotify)",
                self._path,
                reason,
                self._poll_interval,
            )
        self._complaint = reason


class _Handler(FileSystemEventHandler):
    def __init__(self, on_event: Callable[[FileSystemEvent], None]) -> None:
        self._on_event = on_event

    def on_any_event(self, event: FileSystemEvent) -> None:
        self._on_event(event)


def _quiet_time(path: str) -> float:
    match is_open_for_writing(path):
        case False:
            return QUIET
        case True:
            return QUIET_OPEN
        case None:
            return QUIET_UNKNOWN


def is_open_for_writing(path: str) -> bool | None:
    """Whether any process has the file open for writing; None if the kernel cannot tell.

    The kernel grants a read lease only if no process has (fcntl(2)). The lease is returned at
    once. A process that opens the file for writing meanwhile waits that long. The signal for it is
    set to SIGURG, which is ignored: SIGIO would end this process.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError:
        return None
    try:
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except BlockingIOError:
        return True
    except OSError:
        return None
    else:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        return False
    finally:
        os.close(fd)


def fingerprint(path: str) -> Fingerprint:
    """The fingerprint of the file; None if it cannot be examined."""
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def watched_folders(path: str) -> set[Folder]:
    """The folders of the file and of each symbolic link on the way to it.

    If a part of the path is missing, the folder that lacks it is the last.
    """
    folders: set[Folder] = set()
    last = Path("/")
    for step, is_link in path_steps(path):
        last = step
        if is_link:
            folders |= _folder(step.parent)
        elif not step.exists():
            break
    return folders | _folder(last.parent)


def _folder(path: Path) -> set[Folder]:
    try:
        return {(str(path), path.stat().st_ino)}
    except OSError:
        return set()
