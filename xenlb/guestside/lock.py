"""A lock per guest: on one host, one xenlb process at a time changes a guest.

An apply reads files of the guest, decides, and writes; two at once would each overwrite what the
other has just read. The lock is on the host: only one host delivers to a guest, and a powered-off
guest cannot hold a lock. The kernel releases flock(2) when its holder dies. A killed apply leaves
whole operations only, and the next apply goes on from there.

Lock files are never removed: a process that waits for a removed file and one that creates it
would both get a lock.
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

POLL = 0.2  # seconds; a blocking flock(2) would need a thread that cannot be interrupted


def lock_folder(socket: Path) -> Path:
    """The folder of the locks; agent and commands derive it from the same socket."""
    return socket.parent / "guests"


@asynccontextmanager
async def guest_lock(
    folder: Path,
    uuid: UUID,
    *,
    name: str,
    patience: float,
    on_wait: Callable[[str], None] = lambda _sentence: None,
) -> AsyncIterator[None]:
    """Hold the lock of a guest. Raises DeliveryError.

    `patience`: seconds to wait for another holder. `on_wait`: called once if there is one.
    """
    file = _open(folder, uuid)
    try:
        await _acquire(file, name, patience, on_wait)
        yield
    finally:
        os.close(file)


def _open(folder: Path, uuid: UUID) -> int:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # For root only: a process that can open the file can lock it.
        return os.open(folder / f"{uuid}.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        permitted = error.errno not in {errno.EPERM, errno.EACCES}
        raise DeliveryError(
            f"{error.filename}: {error.strerror}",
            hint="check what is at that path" if permitted else "run it as root",
            permitted=permitted,
        ) from None


async def _acquire(file: int, name: str, patience: float, on_wait: Callable[[str], None]) -> None:
    loop = asyncio.get_running_loop()
    until, waiting = loop.time() + patience, False
    while not _try_lock(file):
        locked = f"{name} is locked by {_holder(file)}"
        if not waiting:
            waiting = True
            on_wait(f"{locked}; waiting")
        if loop.time() >= until:
            raise DeliveryError(
                f"{locked} for more than {patience:g} s", hint="wait until it ends, or end it"
            )
        await asyncio.sleep(POLL)
    os.ftruncate(file, 0)
    os.pwrite(file, str(os.getpid()).encode(), 0)


def _try_lock(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(file: int) -> str:
    number = os.pread(file, 16, 0).decode("ascii", "replace")
    return f"xenlb (pid {number})" if number.isdecimal() else "another xenlb"
