"""By what the agent knows its guests: one key of this host, and a secret of each guest made of it.

The key is made by whoever needs it first, the agent or `xenlb guest render`, and never changes:
guests hold what came of it. A guest's secret says nothing of the key nor of another's secret.
"""

import hashlib
import hmac
import os
import secrets
import stat
from pathlib import Path
from uuid import UUID

KEY = Path("/var/lib/xenlb/key")
_LENGTH = 32  # bytes


class KeyFileError(Exception):
    """The key cannot be used: one sentence, and what to do about it."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(f"{message} ({hint})")
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
