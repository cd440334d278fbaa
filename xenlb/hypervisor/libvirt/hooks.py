"""What libvirt's hook script (hooks/xenlb) tells of the guests of the local drivers.

libvirt calls hooks one after another, before it goes on; its events come later. Seen with libvirt
9.0, Xen 4.17: which domain's id the XML has (it has none for «-»), and the seconds between a call
and the event that tells the same, on labs idle and busy.

    operation    libxl       QEMU        LXC         before the event
    prepare      -           new one's   -           STARTED: Xen 2.5-9, QEMU 7, LXC 1-1.5
    start        -           new one's   -           STARTED: Xen 2-8, QEMU 6, LXC 0.7
    started      new one's   new one's   new one's   STARTED: 0.1-0.6
    stopped      old one's   -           old one's   STOPPED: Xen 0.2-9, QEMU and LXC 0.04-0.2
    release      -           -           -           STOPPED: Xen 0.1-8, QEMU and LXC 0.02-0.1
    reconnect    its own     its own     its own     (libvirtd is back; 0.04-1.2 until it answers)
    restore      not called  -           not called  (prepare, start, started follow)
    migrate      no XML      -           not called  (a guest comes in, or tries to)

All of them are begin, but stopped and release: end. A reboot on Xen is stopped, release, prepare,
start, started, and only then come the events STARTED and STOPPED; on QEMU and LXC it calls none.
No request to shut down calls any. Xen's deaths are seen in xenstore 0.5 to 7 s before `stopped`.
The script's call and its line here may change places with libvirt's event where it is close.

libxl's migrate comes without XML (9.0 fails to format it), so without a UUID: it is not told.
"""

import asyncio
import logging
import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from uuid import UUID

from watchdog.events import FileModifiedEvent, FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver

from xenlb.untrusted.printable import printable

log = logging.getLogger(__name__)

POLL: Final = 5.0  # seconds until a line is read of which inotify has told nothing
LARGEST: Final = 64 * 1024  # bytes of lines that were read, after which the file is emptied
LONGEST: Final = 1024  # bytes of a line; the script writes 400 at most

LINE: Final = re.compile(
    rb"(?P<driver>libxl|qemu|lxc)\t(?P<operation>[a-z-]{1,32})\t(?P<suboperation>[a-z-]{1,32})\t"
    rb"(?P<uuid>[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\t(?P<domid>-|[0-9]{1,10})\t"
    rb"(?P<name>[^\x00-\x1f\x7f]{0,255})"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class HookCall:
    """One call of the script. `driver` is libxl, qemu or lxc; operations are libvirt's words
    (prepare, start, started, stopped, release, reconnect, migrate, restore; begin, end)."""

    driver: str
    operation: str
    suboperation: str
    uuid: UUID
    domid: int | None  # None where the XML has none: the table above
    name: str  # for a reader; cut at 255 bytes, made printable


def parse(line: bytes) -> HookCall | None:
    """A line without its end; None unless it is exactly what the script writes."""
    found = LINE.fullmatch(line)
    if found is None:
        return None
    return HookCall(
        driver=found["driver"].decode(),
        operation=found["operation"].decode(),
        suboperation=found["suboperation"].decode(),
        uuid=UUID(found["uuid"].decode()),
        domid=None if found["domid"] == b"-" else int(found["domid"]),
        name=printable(found["name"]),
    )


class _Inotify(FileSystemEventHandler):
    """Calls `wake`, in a thread of its own, after each write to the file."""

    def __init__(self, path: Path, wake: Callable[[], None]) -> None:
        self._path = path
        self._wake = wake
        self._observer: BaseObserver | None = None

    def start(self) -> None:
        """Unless it has. Raises OSError where the system cannot watch (out of watches, say)."""
        if self._observer is not None:
            return
        self._observer = Observer()
        self._observer.start()
        try:
            # The file alone: others in its folder are written all the time.
            self._observer.schedule(self, str(self._path))
        except OSError:
            self.stop()
            raise

    def stop(self) -> None:
        observer, self._observer = self._observer, None
        if observer is not None:
            observer.stop()
            observer.join()

    def on_any_event(self, event: FileSystemEvent) -> None:
        if isinstance(event, FileModifiedEvent):
            self._wake()


class HookSource:
    """Makes the file at `path`, to which the script writes, and calls `heard` in the loop's thread
    with each call, milliseconds after it was made. `heard` must not raise."""

    def __init__(self, path: str | os.PathLike[str], heard: Callable[[HookCall], None]) -> None:
        self.path = Path(os.path.abspath(path))
        self._heard = heard
        self._file: int | None = None
        self._rest = b""
        self._failed = ""

    async def run(self) -> None:
        """Until cancelled; then the file is gone, and the script has nothing to do."""
        loop = asyncio.get_running_loop()
        changed = asyncio.Event()

        def wake() -> None:
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(changed.set)

        inotify = _Inotify(self.path, wake)
        try:
            while True:
                changed.clear()
                try:
                    self._look(inotify)
                    self._failed = ""
                except OSError as error:
                    self._fail(error)
                with suppress(TimeoutError):
                    async with asyncio.timeout(POLL):
                        await changed.wait()
        finally:
            self._remove()
            inotify.stop()

    def _look(self, inotify: _Inotify) -> None:
        if not self._is_ours():
            inotify.stop()
            self._make()
        try:
            inotify.start()
        finally:
            self._read()  # without inotify it is read all the same, now and then

    def _fail(self, error: OSError) -> None:
        if str(error) != self._failed:
            self._failed = str(error)
            log.warning("hooks of libvirt are not heard, or late: %s", error)

    def _is_ours(self) -> bool:
        """Somebody may have removed or replaced the file."""
        if self._file is None:
            return False
        mine = os.fstat(self._file)
        try:
            there = self.path.stat(follow_symlinks=False)
        except FileNotFoundError:
            return False
        return os.path.samestat(mine, there)

    def _make(self) -> None:
        """In place of whatever is there. What an agent that was killed has not read is not told:
        a listing of all guests begins with the connection to libvirt, and says what became of it;
        and a «stopped» of long ago must not be taken for one of now."""
        self._close()
        new = self.path.with_name(f".{self.path.name}.new")
        new.unlink(missing_ok=True)
        file = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            new.replace(self.path)
        except OSError:
            os.close(file)
            new.unlink()
            raise
        self._file = file

    def _read(self) -> None:
        assert self._file is not None
        while data := os.read(self._file, LARGEST):
            *lines, self._rest = (self._rest + data).split(b"\n")
            for line in lines:
                self._tell(line)
            if len(self._rest) > LONGEST:
                self._tell(self._rest)
                self._rest = b""
        # A line that is written right here, between the last read and this, is lost: microseconds,
        # once in some six hundred calls. It costs a head start, no more: libvirt's event follows.
        if os.lseek(self._file, 0, os.SEEK_CUR) > LARGEST:
            os.ftruncate(self._file, 0)
        # The script appends: after a truncation, by whomever, at the new end.
        if os.fstat(self._file).st_size < os.lseek(self._file, 0, os.SEEK_CUR):
            os.lseek(self._file, 0, os.SEEK_SET)
            self._rest = b""

    def _tell(self, line: bytes) -> None:
        call = parse(line)
        if call is None:
            log.debug("no line of the hook script: %r", line[:LONGEST])
            return
        log.debug(
            "hook of %s: %s %s, %s (%s), domain id %s",
            call.driver,
            call.operation,
            call.suboperation,
            call.name,
            call.uuid,
            call.domid,
        )
        self._heard(call)

    def _remove(self) -> None:
        with suppress(OSError):
            if self._is_ours():
                self.path.unlink()
        self._close()

    def _close(self) -> None:
        if self._file is not None:
            os.close(self._file)
        self._file, self._rest = None, b""
