"""Calls of libvirt's hook script (hooks/xenlb) for the guests of the local drivers.

libvirt calls hooks one after another, before it goes on; its events come later. Seen with libvirt
9.0, Xen 4.17: which domain's id the XML has (none for «-»), and the seconds between a call and the
event for the same change, on idle and busy labs.

    operation    libxl       QEMU        LXC         before the event
    prepare      -           new one's   -           STARTED: Xen 2.5-9, QEMU 7, LXC 1-1.5
    start        -           new one's   -           STARTED: Xen 2-8, QEMU 6, LXC 0.7
    started      new one's   new one's   new one's   STARTED: 0.1-0.6
    stopped      old one's   -           old one's   STOPPED: Xen 0.2-9, QEMU and LXC 0.04-0.2
    release      -           -           -           STOPPED: Xen 0.1-8, QEMU and LXC 0.02-0.1
    reconnect    its own     its own     its own     (libvirtd is back; 0.04-1.2 until it answers)
    restore      not called  -           not called  (prepare, start, started follow)
    migrate      no XML      -           not called  (a guest comes in, or tries to)

The suboperation is `begin`, for stopped and release `end`. A reboot on Xen is stopped, release,
prepare, start, started, and only then come the events STARTED and STOPPED; on QEMU and LXC it calls
no hook. No shutdown request calls one. xenstore shows the end of a Xen domain 0.5 to 7 s before
`stopped`. A line in the file may arrive before or after libvirt's event if the two are close.

libxl calls migrate without XML (9.0 fails to format it), so without a UUID: it is not reported.
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

POLL: Final = 5.0  # seconds between two reads without an inotify event
LARGEST: Final = 64 * 1024  # bytes that were read, after which the file is emptied
LONGEST: Final = 1024  # bytes of a line; the script writes 400 at most

LINE: Final = re.compile(
    rb"(?P<driver>libxl|qemu|lxc)\t(?P<operation>[a-z-]{1,32})\t(?P<suboperation>[a-z-]{1,32})\t"
    rb"(?P<uuid>[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\t(?P<domid>-|[0-9]{1,10})\t"
    rb"(?P<name>[^\x00-\x1f\x7f]{0,255})"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class HookCall:
    """One call of the script.

    `driver` is libxl, qemu or lxc; operations are libvirt's (prepare, start, started, stopped,
    release, reconnect, migrate, restore; begin, end).
    """

    driver: str
    operation: str
    suboperation: str
    uuid: UUID
    domid: int | None  # None if the XML has none
    name: str  # at most 255 bytes, made printable


def parse_line(line: bytes) -> HookCall | None:
    """Parse a line without its end; None for a line that the script does not write."""
    match = LINE.fullmatch(line)
    if match is None:
        return None
    return HookCall(
        driver=match["driver"].decode(),
        operation=match["operation"].decode(),
        suboperation=match["suboperation"].decode(),
        uuid=UUID(match["uuid"].decode()),
        domid=None if match["domid"] == b"-" else int(match["domid"]),
        name=printable(match["name"]),
    )


class HookSource(FileSystemEventHandler):
    """Creates the file at `path`, to which the script appends, and reports each line.

    `on_call` is called in the loop's thread, milliseconds after the script has run. It must not
    raise.
    """

    def __init__(self, path: str | os.PathLike[str], on_call: Callable[[HookCall], None]) -> None:
        self.path = Path(os.path.abspath(path))
        self._on_call = on_call
        self._file: int | None = None
        self._partial_line = b""
        self._last_error = ""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._changed = asyncio.Event()
        self._observer: BaseObserver | None = None

    async def run(self) -> None:
        """Report until cancelled, then remove the file: without it the script does nothing."""
        self._loop = asyncio.get_running_loop()
        try:
            while True:
                self._changed.clear()
                try:
                    self._poll()
                    self._last_error = ""
                except OSError as error:
                    if str(error) != self._last_error:
                        self._last_error = str(error)
                        log.warning("calls of libvirt's hook script are late or lost: %s", error)
                with suppress(TimeoutError):
                    async with asyncio.timeout(POLL):
                        await self._changed.wait()
        finally:
            with suppress(OSError):
                if self._is_in_place():
                    self.path.unlink()
            self._close()
            self._stop_observer()

    def on_any_event(self, event: FileSystemEvent) -> None:
        """Wake run() after a write. Called by watchdog in a thread."""
        if isinstance(event, FileModifiedEvent) and self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._changed.set)

    def _start_observer(self) -> None:
        """Watch the file, unless it is watched. Raises OSError, such as for too many watches."""
        if self._observer is not None:
            return
        self._observer = Observer()
        self._observer.start()
        try:
            # The file only: others in its folder are written all the time.
            self._observer.schedule(self, str(self.path))
        except OSError:
            self._stop_observer()
            raise

    def _stop_observer(self) -> None:
        observer, self._observer = self._observer, None
        if observer is not None:
            observer.stop()
            observer.join()

    def _poll(self) -> None:
        if not self._is_in_place():
            self._stop_observer()
            self._create()
        try:
            self._start_observer()
        finally:
            self._read_lines()  # without inotify this still happens every POLL seconds

    def _is_in_place(self) -> bool:
        """Whether the path still is the open file: it may have been removed or replaced."""
        if self._file is None:
            return False
        try:
            current = self.path.stat(follow_symlinks=False)
        except FileNotFoundError:
            return False
        return os.path.samestat(os.fstat(self._file), current)

    def _create(self) -> None:
        """Replace whatever is at the path by an empty file.

        Lines that a killed agent has not read are dropped: an old «stopped» must not count as a new
        one, and the listing of libvirt shows the present state.
        """
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

    def _read_lines(self) -> None:
        assert self._file is not None
        while data := os.read(self._file, LARGEST):
            *lines, self._partial_line = (self._partial_line + data).split(b"\n")
            for line in lines:
                self._report(line)
            if len(self._partial_line) > LONGEST:
                self._report(self._partial_line)
                self._partial_line = b""
        # A line written between the last read and the truncation, within microseconds, is lost:
        # once in some six hundred calls. libvirt's event still reports the change, only later.
        if os.lseek(self._file, 0, os.SEEK_CUR) > LARGEST:
            os.ftruncate(self._file, 0)
        # The script appends: after a truncation, also by another program, at the new end.
        if os.fstat(self._file).st_size < os.lseek(self._file, 0, os.SEEK_CUR):
            os.lseek(self._file, 0, os.SEEK_SET)
            self._partial_line = b""

    def _report(self, line: bytes) -> None:
        call = parse_line(line)
        if call is None:
            log.debug("not a line of the hook script: %r", line[:LONGEST])
            return
        log.debug("hook script: %s", call)
        self._on_call(call)

    def _close(self) -> None:
        if self._file is not None:
            os.close(self._file)
        self._file, self._partial_line = None, b""
