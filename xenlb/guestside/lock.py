"""Whose turn it is to change a guest: of all xenlb on this host, agent and commands, one at a time.

An apply reads files of the guest, decides, and writes; two of them at once would each write what
the other has just read. The lock is on the host and not in the guest: one host delivers to a guest,
every delivery has a host and not all of them a guest that runs, and the kernel gives flock(2) back
when its holder dies, however it dies, so that nobody has to guess who is dead. Of one that was
killed in the middle the guest has whole operations, the last of which may still run in there; who
comes next looks and goes on from what there is.

The files stay: were one removed, who waits for it and who makes it anew would both have a lock.
"""

import asyncio
import errno
import fcntl
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID

from xenlb.guestside.transport.channel import DeliveryError

LOOK = 0.2  # seconds; flock(2) itself would block a thread, which nobody can interrupt


def lock_folder(socket: Path) -> Path:
    """Where the locks are: agent and commands know the same socket."""
    return socket.parent / "guests"


@asynccontextmanager
async def guest_lock(
    folder: Path,
    uuid: UUID,
    *,
    name: str,
    patience: float,
    waits: Callable[[str], None] = lambda _sentence: None,
) -> AsyncIterator[None]:
    """Nobody else changes this guest meanwhile. `patience`: seconds to wait for one who does;
    `waits` is told once that it has to. Raises DeliveryError."""
    file = _opened(folder, uuid)
    try:
        await _take(file, name, patience, waits)
        yield
    finally:
        os.close(file)


def _opened(folder: Path, uuid: UUID) -> int:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Nobody but root may read it: who can open it can lock it.
        return os.open(folder / f"{uuid}.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        permitted = error.errno not in {errno.EPERM, errno.EACCES}
        raise DeliveryError(
            f"{error.filename}: {error.strerror}",
            hint="see what is there" if permitted else "run it as root",
            permitted=permitted,
        ) from None


async def _take(file: int, name: str, patience: float, waits: Callable[[str], None]) -> None:
    loop = asyncio.get_running_loop()
    until, told = loop.time() + patience, False
    while not _taken(file):
        if not told:
            told = True
            waits(f"{_holder(file)} is at work in {name}; waiting for its end")
        if loop.time() >= until:
            raise DeliveryError(
                f"{_holder(file)} is at work in {name}, for more than {patience:g} s",
                hint="wait for its end, or end it",
            )
        await asyncio.sleep(LOOK)
    os.ftruncate(file, 0)
    os.pwrite(file, str(os.getpid()).encode(), 0)


def _taken(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(file: int) -> str:
    number = os.pread(file, 16, 0).decode("ascii", "replace")
    return f"process {number} of xenlb" if number.isdecimal() else "another xenlb"
