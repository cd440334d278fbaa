"""Tells when the configuration file has changed, once no process writes to it any more.

Watches folders, not the file: editors and package managers put a new file in its place, and a
symbolic link on the way to it (as in a Kubernetes volume) may come to lead elsewhere. inotify only
says when to look; what counts is the file's fingerprint, which is looked at every LOOK seconds in
any case: inotify's instances and watches may be used up (LXC guests share root's), and a folder
above the watched ones that is replaced tells nothing. Reading the file is not done here.
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

LOOK: Final = 5.0  # seconds between two looks without a cause
QUIET: Final = 0.1  # seconds without a change before a change is told
# The same where the kernel cannot tell whether the file is open for writing (NFS, a file of another
# user), and where it is: a writer may pause, but not for good.
QUIET_UNKNOWN: Final = 2.0
QUIET_OPEN: Final = 30.0
LONGEST: Final = 120.0  # a file that never comes to rest is told after so many seconds

# Device, inode, size and times of the file; None where there is none.
Fingerprint = tuple[int, int, int, int, int] | None
# A folder and its inode: one that was removed and made again is another one.
Folder = tuple[str, int]


class ConfigWatcher:
    """Calls `callback` after the file was changed, replaced, removed or put back.

    The calls come from a thread of the watcher, one for changes that follow each other. The
    callback must not raise, nor wait for a thread that is in stop(). A change between start() and
    the first reading of the file is told too, so start first, then read. `look`: seconds between
    two looks without a cause.
    """

    def __init__(
        self, path: str | os.PathLike[str], callback: Callable[[], None], *, look: float = LOOK
    ) -> None:
        self._path = os.path.abspath(os.fspath(path))
        self._callback = callback
        self._every = look
        self._observer: BaseObserver | None = None
        self._handler = _Handler(self._on_event)
        self._watches: dict[Folder, ObservedWatch] = {}
        self._gone: set[str] = set()  # watched folders of which inotify said so
        self._known: Fingerprint = None
        self._news = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch the configuration")
        self._complaint = ""

    def start(self) -> None:
        """Never fails: where inotify cannot be used, a change is noticed within LOOK seconds."""
        try:
            observer = Observer()
            observer.start()
        except OSError as error:
            self._complain(error)
        else:
            self._observer = observer
        self._watch_folders()
        self._known = fingerprint(self._path)
        self._thread.start()

    def stop(self) -> None:
        """Afterwards there is no thread of the watcher and no call any more. May be repeated."""
        self._stopping.set()
        self._news.set()
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
        """Called in watchdog's thread. Events are many: every reading of a file is one."""
        if isinstance(event, DirDeletedEvent):
            self._gone.add(os.fsdecode(event.src_path))
        self._news.set()

    def _run(self) -> None:
        while True:
            self._news.wait(self._every)
            self._news.clear()
            if self._stopping.is_set():
                return
            if self._look() != self._known and (settled := self._settled()) is not None:
                (seen,) = settled
                if seen != self._known:
                    self._known = seen
                    self._callback()

    def _settled(self) -> tuple[Fingerprint] | None:
        """The fingerprint once the file is at rest; None: the watcher stops."""
        seen, since = self._look(), time.monotonic()
        began = since
        while True:
            if self._stopping.wait(QUIET):
                return None
            before, seen = seen, self._look()
            now = time.monotonic()
            if seen != before:
                since = now
            if now - since >= _patience(self._path) or now - began >= LONGEST:
                return (seen,)

    def _look(self) -> Fingerprint:
        self._watch_folders()
        return fingerprint(self._path)

    def _watch_folders(self) -> None:
        """Watches every folder on which it depends what the file is, and no others."""
        if self._observer is None:
            return
        while self._gone:
            gone = self._gone.pop()
            for key in [key for key in self._watches if key[0] == gone]:
                self._observer.unschedule(self._watches.pop(key))
        try:
            while (wanted := folders(self._path)) != self._watches.keys():
                for key in self._watches.keys() - wanted:
                    self._observer.unschedule(self._watches.pop(key))
                for key in wanted - self._watches.keys():
                    self._watches[key] = self._observer.schedule(self._handler, key[0])
        except OSError as error:
            self._complain(error)
        else:
            self._complaint = ""

    def _complain(self, error: OSError) -> None:
        why = (error.strerror or str(error)).lower()
        if why != self._complaint:
            log.warning(
                "inotify cannot be used for %s: %s; changes are noticed within %g s all the same"
                " (sysctl fs.inotify gives the limits)",
                self._path,
                why,
                self._every,
            )
        self._complaint = why


class _Handler(FileSystemEventHandler):
    def __init__(self, on_event: Callable[[FileSystemEvent], None]) -> None:
        self._on_event = on_event

    def on_any_event(self, event: FileSystemEvent) -> None:
        self._on_event(event)


def _patience(path: str) -> float:
    match is_written(path):
        case False:
            return QUIET
        case True:
            return QUIET_OPEN
        case None:
            return QUIET_UNKNOWN


def is_written(path: str) -> bool | None:
    """Has any process the file open for writing? None: the kernel cannot tell.

    The kernel grants a lease to read only where none has (fcntl(2)). The lease is given back at
    once. A process that opens the file for writing in between waits that long, and this one is sent
    SIGURG, which it ignores, in place of SIGIO, which would end it.
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
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def folders(path: str) -> set[Folder]:
    """The folder of the file and of each symbolic link on the way to it; where the way ends
    early, the folder in which its next part is missing."""
    found: set[Folder] = set()
    last = Path("/")
    for step, is_link in path_steps(path):
        last = step
        if is_link:
            found |= _folder(step.parent)
        elif not step.exists():
            break
    return found | _folder(last.parent)


def _folder(path: Path) -> set[Folder]:
    try:
        return {(str(path), path.stat().st_ino)}
    except OSError:
        return set()
