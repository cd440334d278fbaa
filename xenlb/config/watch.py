"""Tells when the configuration file may have changed.

Watches folders, not the file: editors and package managers put a new file in its place, and a
symbolic link on the way to it (as in a Kubernetes volume) may come to lead elsewhere. Reading the
file is not done here.
"""

import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from watchdog.events import DirDeletedEvent, FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer
from watchdog.observers.api import ObservedWatch

log = logging.getLogger(__name__)

QUIET: Final = 0.1  # seconds without a change before a change is told
MOST_WAITS: Final = 20  # a file that never comes to rest is told after so many of them
MOST_LINKS: Final = 40  # the kernel's limit for one path

# Device, inode, size and times of the file; None where there is none.
Fingerprint = tuple[int, int, int, int, int] | None
# A folder and its inode: one that was removed and made again is another one.
Folder = tuple[str, int]


class ConfigWatcher:
    """Calls `callback` after the file was changed, replaced, removed or put back.

    The calls come from watchdog's thread, one for changes that follow each other within 100 ms.
    The callback must not raise, nor wait for a thread that is in stop(). A change between start()
    and the first reading of the file is told too, so start first, then read.
    """

    def __init__(self, path: str | os.PathLike[str], callback: Callable[[], None]) -> None:
        self._path = os.path.abspath(os.fspath(path))
        self._callback = callback
        self._observer = Observer()
        self._handler = _Handler(self._on_event)
        self._stopping = threading.Event()
        self._watches: dict[Folder, ObservedWatch] = {}
        self._known: Fingerprint = None

    def start(self) -> None:
        """Raises OSError where the system cannot watch (out of inotify watches, say)."""
        self._observer.start()
        try:
            self._watch_folders()
        except OSError:
            self.stop()
            raise
        self._known = fingerprint(self._path)

    def stop(self) -> None:
        """Afterwards there is no thread of the watcher and no call any more. May be repeated."""
        self._stopping.set()
        if self._observer.is_alive():
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
        # Events are many (every reading of a file is one); only the fingerprint decides.
        if isinstance(event, DirDeletedEvent):
            self._forget(os.fsdecode(event.src_path))
        seen = self._look()
        if seen == self._known:
            return
        for _ in range(MOST_WAITS):
            if self._stopping.wait(QUIET):
                return
            before, seen = seen, self._look()
            if seen == before:
                break
        if seen != self._known:
            self._known = seen
            self._callback()

    def _look(self) -> Fingerprint:
        try:
            self._watch_folders()
        except OSError as error:
            log.warning("cannot watch all folders of %s: %s", self._path, error)
        return fingerprint(self._path)

    def _forget(self, folder: str) -> None:
        for key in [key for key in self._watches if key[0] == folder]:
            self._observer.unschedule(self._watches.pop(key))

    def _watch_folders(self) -> None:
        """Watches every folder on which it depends what the file is, and no others."""
        while (wanted := folders(self._path)) != self._watches.keys():
            for key in self._watches.keys() - wanted:
                self._observer.unschedule(self._watches.pop(key))
            for key in wanted - self._watches.keys():
                self._watches[key] = self._observer.schedule(self._handler, key[0])


class _Handler(FileSystemEventHandler):
    def __init__(self, on_event: Callable[[FileSystemEvent], None]) -> None:
        self._on_event = on_event

    def on_any_event(self, event: FileSystemEvent) -> None:
        self._on_event(event)


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
    here = Path("/")
    rest = list(Path(path).parts[1:])
    links = 0
    while rest:
        part = rest.pop(0)
        if part == "..":
            here = here.parent
            continue
        step = here / part
        try:
            target = os.readlink(step)
        except OSError:
            target = None
        if target is not None and links < MOST_LINKS:
            links += 1
            found |= _folder(here)
            rest[:0] = [name for name in target.split("/") if name not in {"", "."}]
            here = Path("/") if target.startswith("/") else here
        elif not rest or not step.exists():
            found |= _folder(here)
            break
        else:
            here = step
    return found


def _folder(path: Path) -> set[Folder]:
    try:
        return {(str(path), path.stat().st_ino)}
    except OSError:
        return set()
