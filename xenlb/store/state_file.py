"""What must outlive the agent: /run/xenlb/state.json, read at start.

Entries of the table that are ours, guests with their requests and drains, who was let in and which
checks passed; so that a restarted agent goes on where the killed one stopped, without taking one
serving server out. Times are the host's boot-time clock, so the file is void after a reboot of the
host, as the kernel's table is. A file that cannot be read is put aside, never fatal.

Theory of operation. The file is everything as one JSON object, and below it a line for each change
since. The owner task appends what has changed, before the kernel hears of an entry that was not
ours, and after it heard of the rest, in the same breath: that takes as long as the change is large,
not as the table. Once the lines are longer than what they change, all of it is written anew beside
the file: as JSON in the owner's thread, but in small pieces between its rounds, for another thread
would have the interpreter while the owner wants it; to the disk in a thread of its own. Then the
owner adds what it has appended meanwhile, and the new file takes the place of the old one. So one
task writes to the file, a kill at any point leaves either file whole, and one amid a line leaves a
line that is no JSON, of which the kernel has not heard: it is cut off at the next start.

No fsync: /run is memory, and the file is void after a crash anyway.
"""

import asyncio
import errno
import json
import logging
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from xenlb.store import state_codec
from xenlb.store.saved_state import SavedState, StateChange, apply_change, state_change

log = logging.getLogger(__name__)

VERSION = 7
READ = (6, VERSION)
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
SMALLEST = 64 * 1024  # bytes of changes for which nothing is written anew


class _Unusable(Exception):
    """The file says nothing that can be used; says why."""


class _Outdated(Exception):
    """The file is of an earlier boot of this host."""


def load(path: Path) -> SavedState:
    """As `read`, for who goes on writing: a line over which a writer was killed is cut off, a file
    that cannot be used is put aside, and one of an earlier boot removed. Never fails because of
    what is in the file."""
    try:
        saved, torn = _whole(path)
        if torn:
            os.truncate(path, path.stat().st_size - torn)
        return saved
    except _Outdated:
        log.info("%s is of an earlier boot of this host: starting afresh", path)
        path.unlink(missing_ok=True)
    except _Unusable as error:
        aside = path.with_suffix(".broken")
        log.warning("%s is put aside as %s, starting afresh: %s", path, aside.name, error)
        os.replace(path, aside)
    return SavedState()


def read(path: Path) -> SavedState:
    """What was saved in this boot of the host; nothing where there is no usable file. Changes
    nothing: an agent may be writing, and the line that it is at stays as it is."""
    try:
        saved, _ = _whole(path)
    except _Outdated:
        return SavedState()
    except _Unusable as error:
        log.warning("%s is not used: %s", path, error)
        return SavedState()
    return saved


def _whole(path: Path) -> tuple[SavedState, int]:
    """And how many bytes at its end are no whole line."""
    try:
        data = _bytes(path)
    except FileNotFoundError:
        return SavedState(), 0
    except OSError as error:
        raise _Unusable(error.strerror or str(error)) from None
    try:
        return _decoded(data)
    except (_Unusable, _Outdated):
        raise
    except Exception as error:  # whatever is wrong with it, it must not end the agent
        raise _Unusable(f"{type(error).__name__}: {error}"[:300]) from None


def _bytes(path: Path) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as stream:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file")
        return stream.read()


def _decoded(text: bytes) -> tuple[SavedState, int]:
    first, *lines = text.split(b"\n")
    data = json.loads(first)
    if not isinstance(data, dict) or data.get("version") not in READ:
        raise _Unusable("it is not of this version")
    if data.get("boot") != _boot_id():
        raise _Outdated
    torn = 0
    if lines and not _is_json(lines[-1]):
        torn = len(b"\n" + lines.pop())
    return apply_change(state_codec.decode(data["saved"]), map(_read, lines)), torn


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _read(line: bytes) -> StateChange:
    data = json.loads(line)
    return StateChange(now=state_codec.decode(data["now"]), gone=state_codec.decode(data["gone"]))


def _boot_id() -> str:
    return BOOT_ID.read_text().strip()


def save(path: Path, saved: SavedState) -> None:
    """Everything. Atomic for a reader and for a kill at any point: a new file takes the old one's
    name."""
    fresh = path.with_suffix(".new")
    write(fresh, "".join(_pieces(saved)))
    os.replace(fresh, path)


def write(file: Path, text: str) -> None:
    """To a file of which nobody knows yet."""
    fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "w") as stream:
        stream.write(text)


def _pieces(saved: SavedState) -> Iterator[str]:
    yield f'{{"version":{VERSION},"boot":{state_codec.dumps(_boot_id())},"saved":'
    yield from state_codec.written(saved)
    yield "}"


class StateFile:
    """The file of a running agent; its methods are called in the owner task.

    `saved`: what is in it. `problem`: why the last change is not in it, "" if all is. `write`
    writes everything to another file; it is called in a thread.
    """

    def __init__(self, path: Path, *, write: Callable[[Path, str], None] = write) -> None:
        self.path = path
        self.saved = load(path)
        self.problem = ""
        self._write = write
        self._whole = path.stat().st_size if path.exists() else 0
        self._grown = 0  # bytes of changes since it was whole
        self._rewriting: asyncio.Task[None] | None = None
        self._meanwhile: list[bytes] = []

    def save(self, saved: SavedState) -> None:
        """When this returns, a kill does not lose it (or it was logged that it does)."""
        found = state_change(self.saved, saved)
        if found == StateChange():
            self.saved = saved
            return
        now, gone = state_codec.encode(found.now), state_codec.encode(found.gone)
        line = b"\n" + state_codec.dumps({"now": now, "gone": gone}).encode()
        try:
            try:
                _append(self.path, line)
                self._grown += len(line)
            except FileNotFoundError:
                save(self.path, saved)
                self._whole, self._grown = self.path.stat().st_size, 0
        except OSError as error:  # the next one tries it again, with what is new then
            self._complain(f"{self.path} cannot be written: {error.strerror or error}")
            return
        if self.problem:
            log.info("%s is written again", self.path)
            self.problem = ""
        self.saved = saved
        if self._rewriting is not None:
            self._meanwhile.append(line)
        elif self._grown > max(SMALLEST, self._whole):
            self._meanwhile = []
            rewriting = self._rewrite(saved)
            self._rewriting = asyncio.create_task(rewriting, name="write the state file")

    def _complain(self, problem: str) -> None:
        """Once, however often it is tried."""
        if problem != self.problem:
            log.error("%s; what happens now is forgotten by a restart (df /run)", problem)
        self.problem = problem

    async def close(self) -> None:
        """Nobody writes any more when this returns."""
        if self._rewriting is not None:
            await asyncio.wait({self._rewriting})

    async def _rewrite(self, saved: SavedState) -> None:
        fresh = self.path.with_suffix(".whole")
        pieces = []
        try:
            for piece in _pieces(saved):
                pieces.append(piece)
                await asyncio.sleep(0)
            await asyncio.to_thread(self._write, fresh, "".join(pieces))
            self._whole = fresh.stat().st_size
            _append(fresh, meanwhile := b"".join(self._meanwhile))
            os.replace(fresh, self.path)
            self._grown = len(meanwhile)
        except OSError as error:
            self._complain(f"{self.path} cannot be written anew: {error.strerror or error}")
            self._grown = 0  # to be tried again when as much has changed once more
        finally:
            self._rewriting = None


def _append(path: Path, line: bytes) -> None:
    """All of it or, where there is no room for all, nothing."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        size = os.fstat(fd).st_size
        try:
            done = 0
            while done < len(line):
                done += os.write(fd, line[done:])
        except OSError:
            os.ftruncate(fd, size)
            raise
    finally:
        os.close(fd)
