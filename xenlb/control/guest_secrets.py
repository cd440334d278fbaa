"""The host's secret key, and the secret of each guest that is derived from it.

The agent or `xenlb guest render` creates the key on first use. It never changes, as guests have
secrets from it. Neither the key nor another secret can be computed from a guest's secret.
"""

import hashlib
import hmac
import logging
import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

KEY = Path("/var/lib/xenlb/key")
_LENGTH = 32  # bytes


log = logging.getLogger(__name__)


class KeyFileError(Exception):
    """The key cannot be used. `message` is a sentence, `hint` what to do about it."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(f"{message} ({hint})" if hint else message)
        self.message = message
        self.hint = hint


def master_key(path: Path = KEY) -> bytes:
    """The key of this host, created if there is none.

    Raises KeyFileError, and OSError if it can be neither read nor created.
    """
    try:
        return _read(path)
    except FileNotFoundError:
        _create(path)
        return _read(path)


class HostKey:
    """The key of this host, read again only after its file has changed.

    `problem` is why the key cannot be used, or ""; it is logged once.
    """

    def __init__(self, path: Path = KEY) -> None:
        self._path = path
        self._read_version: tuple[int, ...] | None = None
        self._key = b""
        self.problem = ""

    def key(self) -> bytes:
        """The key, created if there is none. Raises KeyFileError."""
        if not (self._key or self.problem) or self._version() != self._read_version:
            self._read(master_key)
        if not self._key:
            raise KeyFileError(self.problem, "")
        return self._key

    def check(self) -> None:
        """Read the key if there is one, so that a problem is logged before a guest reports."""
        self._read(_read_if_there)

    def _read(self, read: Callable[[Path], bytes]) -> None:
        self._key, problem = b"", ""
        try:
            self._key = read(self._path)
        except KeyFileError as error:
            problem = str(error)
        except OSError as error:
            problem = f"{self._path} cannot be used: {error.strerror or error}"
        self._read_version = self._version()
        if problem and problem != self.problem:
            log.warning("guests cannot report by TCP: %s", problem)
        self.problem = problem

    def _version(self) -> tuple[int, ...] | None:
        try:
            status = self._path.lstat()
        except OSError:
            return None
        return status.st_ino, status.st_mode, status.st_uid, status.st_mtime_ns, status.st_ctime_ns


def guest_secret(key: bytes, uuid: UUID) -> str:
    """The secret of a guest, in hexadecimal."""
    return hmac.new(key, str(uuid).encode(), hashlib.sha256).hexdigest()


def report_checksum(nonce: str, *, secret: str, word: str) -> str:
    """The checksum by which a guest proves a report, in hexadecimal.

    Nested like HMAC, so that a checksum cannot be extended to that of another text. Not HMAC
    itself: its pads are no text, so a shell cannot compute it.
    """
    inner = hashlib.sha256(f"{secret}:{nonce}:{word}".encode()).hexdigest()
    return hashlib.sha256(f"{secret}:{inner}".encode()).hexdigest()


def _read_if_there(path: Path) -> bytes:
    try:
        return _read(path)
    except FileNotFoundError:
        return b""


def _read(path: Path) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as stream:
        status = os.fstat(fd)
        key = stream.read(_LENGTH + 1)
    if stat.S_IMODE(status.st_mode) & 0o077 or status.st_uid not in {0, os.geteuid()}:
        raise KeyFileError(
            f"other users than root may read {path}",
            "chmod 600 it; if it may be known, remove it and render the guests' files again",
        )
    if len(key) != _LENGTH:
        raise KeyFileError(
            f"{path} is not {_LENGTH} bytes long", "remove it, and render the guests' files again"
        )
    return key


def _create(path: Path) -> None:
    """Create the key under another name and link it: a reader never sees half a key.

    If two processes do so at the same time, the first key remains.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(fd, "wb") as stream:
            stream.write(secrets.token_bytes(_LENGTH))
            stream.flush()
            os.fsync(fd)
        try:
            os.link(new, path)
        except FileExistsError:
            return
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(folder)
        os.close(folder)
    finally:
        new.unlink(missing_ok=True)
