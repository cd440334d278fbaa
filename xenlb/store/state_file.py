"""The state file, /run/xenlb/state.json, from which a restarted agent goes on.

It has xenlb's entries of the table, guests with their requests and drains, admitted servers and the
verdicts of checks, so that a restart takes no serving server out. Its times are of the boot-time
clock: after a reboot of the host it is void, as the kernel's table is. Damage is never fatal.

The first line is everything as one JSON object; each further line is a change. The owner task
appends a change before it adds entries to the kernel's table, and after it removed some. Once the
changes are larger than the first line, the file is rewritten under another name. The owner makes
the JSON in pieces between its rounds: another thread would hold the interpreter while the owner
needs it. A thread writes it to the disk. Then the owner adds what it appended meanwhile and renames
the file. A kill leaves either file whole. A line that it cut is no JSON, the kernel has nothing of
it, and the next start removes it. There is no fsync: /run is memory.
"""

import asyncio
import errno
import json
import logging
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from xenlb.store import older_versions
from xenlb.store.saved_state import SavedState, decoded, encoded, encoded_change

log = logging.getLogger(__name__)

VERSION = 8
OLDER = {6, 7}
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
SMALLEST = 64 * 1024  # bytes of changes below which the file is not rewritten


class _UnusableFileError(Exception):
    """The file cannot be used; the reason."""


class _EarlierBootError(Exception):
    """The file is of an earlier boot of this host."""


def load(path: Path) -> SavedState:
    """Read the file for its next writer. The content of the file never makes this fail.

    An incomplete line is cut off, a file that cannot be used is renamed, and one of an earlier boot
    is removed.
    """
    try:
        saved, incomplete = _parsed(path)
        if incomplete:
            os.truncate(path, path.stat().st_size - incomplete)
        return saved
    except _EarlierBootError:
        log.info("%s is of an earlier boot of this host: starting afresh", path)
        path.unlink(missing_ok=True)
    except _UnusableFileError as error:
        aside = path.with_suffix(".broken")
        log.warning("%s is put aside as %s, starting afresh: %s", path, aside.name, error)
        os.replace(path, aside)
    return SavedState()


def read(path: Path) -> SavedState:
    """What was saved in this boot of the host; empty where there is no usable file.

    It changes nothing: an agent may be writing an incomplete line.
    """
    try:
        return _parsed(path)[0]
    except _EarlierBootError:
        pass
    except _UnusableFileError as error:
        log.warning("%s is not used: %s", path, error)
    return SavedState()


def _parsed(path: Path) -> tuple[SavedState, int]:
    """The content, and the number of bytes of an incomplete line at its end."""
    try:
        return _decoded(_content(path))
    except FileNotFoundError:
        return SavedState(), 0
    except OSError as error:
        raise _UnusableFileError(error.strerror or str(error)) from None
    except (_UnusableFileError, _EarlierBootError):
        raise
    except Exception as error:  # damage of any kind must not end the agent
        raise _UnusableFileError(f"{type(error).__name__}: {error}"[:300]) from None


def _content(path: Path) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as stream:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file")
        return stream.read()


def _decoded(content: bytes) -> tuple[SavedState, int]:
    first, *lines = content.split(b"\n")
    whole = json.loads(first)
    if not isinstance(whole, dict) or whole.get("version") not in {VERSION, *OLDER}:
        raise _UnusableFileError("it is not of this version")
    if whole.get("boot") != _boot_id():
        raise _EarlierBootError
    saved, changes, incomplete = whole["saved"], [], 0
    for number, line in enumerate(lines, 1):
        try:
            changes.append(json.loads(line))
        except ValueError:
            if number < len(lines):
                raise
            incomplete = len(b"\n" + line)
    if whole["version"] in OLDER:
        saved, changes = older_versions.converted(saved, changes)
    return decoded(saved, changes), incomplete


def _boot_id() -> str:
    return BOOT_ID.read_text().strip()


def save(path: Path, saved: SavedState) -> None:
    """Write everything. Atomic for readers and for a kill: a new file takes the old one's name."""
    fresh = path.with_suffix(".new")
    write(fresh, "".join(_pieces(saved)))
    os.replace(fresh, path)


def write(path: Path, text: str) -> None:
    """Write a file that nothing reads yet."""
    with open(path, "w", opener=lambda name, flags: os.open(name, flags, 0o600)) as stream:
        stream.write(text)


def _pieces(saved: SavedState) -> Iterator[str]:
    yield f'{{"version":{VERSION},"boot":{json.dumps(_boot_id())},"saved":'
    yield from encoded(saved)
    yield "}"


class StateFile:
    """The file of a running agent; its methods are called in the owner task.

    `saved`: the content of the file. `problem`: why the last change is not in it, "" if it is.
    `write` writes the whole file; it is called in a thread.
    """

    def __init__(self, path: Path, *, write: Callable[[Path, str], None] = write) -> None:
        self.path = path
        self.saved = load(path)
        self.problem = ""
        self._write = write
        self._size = path.stat().st_size if path.exists() else 0  # when it was last written whole
        self._grown = 0  # bytes of changes since then
        self._rewriting: asyncio.Task[None] | None = None
        self._meanwhile: list[bytes] = []

    def save(self, saved: SavedState) -> None:
        """Append what has changed.

        When this returns, a kill does not lose it, or the log says that it would.
        """
        change = encoded_change(self.saved, saved)
        if not change:
            self.saved = saved
            return
        line = f"\n{change}".encode()
        try:
            try:
                _append(self.path, line)
                self._grown += len(line)
            except FileNotFoundError:
                save(self.path, saved)
                self._size, self._grown = self.path.stat().st_size, 0
        except OSError as error:  # the next call writes this change too
            self._report(f"{self.path} cannot be written: {error.strerror or error}")
            return
        if self.problem:
            log.info("%s is written again", self.path)
            self.problem = ""
        self.saved = saved
        if self._rewriting is not None:
            self._meanwhile.append(line)
        elif self._grown > max(SMALLEST, self._size):
            self._meanwhile = []
            rewriting = self._rewrite(saved)
            self._rewriting = asyncio.create_task(rewriting, name="write the state file")

    def _report(self, problem: str) -> None:
        """Log a problem once, however often it occurs."""
        if problem != self.problem:
            log.error("%s; what happens now is forgotten by a restart (df /run)", problem)
        self.problem = problem

    async def close(self) -> None:
        """Wait for the end of the last write."""
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
            self._size = fresh.stat().st_size
            _append(fresh, meanwhile := b"".join(self._meanwhile))
            os.replace(fresh, self.path)
            self._grown = len(meanwhile)
        except OSError as error:
            self._report(f"{self.path} cannot be rewritten: {error.strerror or error}")
            self._grown = 0  # the next attempt is after as many changes again
        finally:
            self._rewriting = None


def _append(path: Path, line: bytes) -> None:
    """Append all of a line or, where there is no room for all, nothing."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND), "wb", buffering=0) as stream:
        size = os.fstat(stream.fileno()).st_size
        try:
            done = 0
            while done < len(line):
                done += stream.write(line[done:])
        except OSError:
            stream.truncate(size)
            raise
