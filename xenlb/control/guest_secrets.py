"""By what the agent knows its guests: one key of this host, and a secret of each guest made of it.

The key is made by whoever needs it first, the agent or `xenlb guest render`, and never changes:
guests hold what came of it. A guest's secret says nothing of the key nor of another's secret.
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
    """The key cannot be used: one sentence, and what to do about it."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(f"{message} ({hint})" if hint else message)
        self.message = message
        self.hint = hint


def master_key(path: Path = KEY) -> bytes:
    """The key of this host, made if there is none. Raises KeyFileError, and OSError where it can
    be neither read nor made."""
    try:
        return _read(path)
    except FileNotFoundError:
        _make(path)
        return _read(path)


class HostKey:
    """The key of this host, read again only after its file has changed. Why it cannot be used is
    said once, and stands in `problem` ("" if it can)."""

    def __init__(self, path: Path = KEY) -> None:
        self._path = path
        self._seen: tuple[int, ...] | None = None
        self._key = b""
        self.problem = ""

    def key(self) -> bytes:
        """Makes it if there is none. Raises KeyFileError."""
        if not (self._key or self.problem) or self._fingerprint() != self._seen:
            self._read(master_key)
        if not self._key:
            raise KeyFileError(self.problem, "")
        return self._key

    def look(self) -> None:
        """Reads it now, if there is one: a problem is said before a guest runs into it."""
        self._read(_read_if_there)

    def _read(self, read: Callable[[Path], bytes]) -> None:
        self._key, problem = b"", ""
        try:
            self._key = read(self._path)
        except KeyFileError as error:
            problem = str(error)
        except OSError as error:
            problem = f"{self._path} cannot be used: {error.strerror or error}"
        self._seen = self._fingerprint()
        if problem and problem != self.problem:
            log.warning("no guest is heard by TCP: %s", problem)
        self.problem = problem

    def _fingerprint(self) -> tuple[int, ...] | None:
        try:
            it = self._path.lstat()
        except OSError:
            return None
        return it.st_dev, it.st_ino, it.st_mode, it.st_uid, it.st_mtime_ns, it.st_ctime_ns


def guest_secret(key: bytes, uuid: UUID) -> str:
    """The secret of a guest, in hexadecimal."""
    return hmac.new(key, str(uuid).encode(), hashlib.sha256).hexdigest()


def answer_to(nonce: str, *, secret: str, word: str) -> str:
    """What a guest with that secret answers to a nonce, to say the word.

    Nested, as HMAC is, for the same reason: who sees an answer cannot lengthen it to another. Not
    HMAC itself, which a shell cannot reckon: its pads are no text.
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
            f"others than root may read {path}",
            "chmod 600 it; if somebody may have read it, remove it and render the guests anew",
        )
    if len(key) != _LENGTH:
        raise KeyFileError(f"{path} is not {_LENGTH} bytes long", "remove it, and render anew")
    return key


def _make(path: Path) -> None:
    """Written whole under another name, then linked: of two that make one at a time, one wins,
    and nobody ever reads half a key."""
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
