"""A script into a guest that runs, and what it says out again; and child processes for that.

A channel runs one POSIX script as root, given on standard input. Which channels there are: ssh.py
and guest_agent.py. What the scripts do to files: remote_files.py.
"""

import asyncio
import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from xenlb.untrusted.printable import printable

MOST_OUTPUT = 4 * 1024 * 1024  # bytes, of each of the two outputs
# Seconds. A script starts some dozens of programs: in a guest that boots on a starved host 60 were
# not enough, however often it was tried. Who is gone, or does not answer, the way in tells sooner.
LIMIT = 180.0
_STDERR_AFTER_END = 1.0
_MARK = b"\n=xenlb: the script begins\n"


class DeliveryError(Exception):
    """Files could not be brought into a guest, or read there: one sentence, and what to do.
    `permitted`: no, where this host does not let the caller."""

    def __init__(self, message: str, *, hint: str = "", permitted: bool = True) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.permitted = permitted


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """What a script came to. The guest wrote it: not to be trusted."""

    status: int
    out: bytes
    err: bytes

    @property
    def complaint(self) -> str:
        """The last line of its errors, cut and made harmless."""
        return last_line(self.err)


class Channel(Protocol):
    async def run(self, script: str, *, limit: float = LIMIT) -> Output:
        """Runs it in the guest; `limit` in seconds. Raises DeliveryError where the guest cannot be
        reached, is too slow or says too much, not for a status other than 0."""


class TransportTimeout(Exception):
    """A child process did not end in time, and was killed."""


class OutputTooLong(Exception):
    """A child process said more than MOST_OUTPUT, and was killed."""


def wrapped(script: str) -> bytes:
    """The script as one function that is called at its end.

    A shell runs a script on standard input line by line. Were the connection cut, half of it would
    run; and a command that reads would read the rest of it. Of the mark `unwrapped` knows whether
    it ran at all, and where its output begins: what a user's start-up files say comes first.
    """
    mark = _MARK.decode().strip()
    head = f"xenlb_script() {{\nprintf '\\n%s\\n' '{mark}'\n"
    return f"{head}{script}\n}}\nxenlb_script </dev/null\n".encode()


def unwrapped(output: Output) -> Output | None:
    """What the script itself said; None: it did not run."""
    _, mark, out = output.out.partition(_MARK)
    if not mark:
        return None
    return Output(status=output.status, out=out, err=output.err)


def last_line(data: bytes) -> str:
    """The last line that says something, cut and made harmless."""
    lines = [line for line in data[-4096:].decode("utf-8", "replace").splitlines() if line.strip()]
    line = lines[-1].strip() if lines else ""
    return printable(line, 200)


async def run_child(
    command: Sequence[str | os.PathLike[str]], *, stdin: bytes, limit: float = LIMIT
) -> Output:
    """A program of this host with that on its standard input.

    It has a session of its own: it cannot ask at the terminal, and it dies with all its children.
    Raises OSError, TooLate, TooMuch.
    """
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, "LC_ALL": "C"},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    errors = asyncio.create_task(_all_of(process.stderr))
    feeding = asyncio.create_task(_feed(process.stdin, stdin))
    try:
        async with asyncio.timeout(limit):
            out = await _all_of(process.stdout)
            status = await process.wait()
            # A child that went to the background (ssh's ControlPersist) may hold it open.
            await asyncio.wait([errors], timeout=_STDERR_AFTER_END)
        return Output(status=status, out=out, err=errors.result() if errors.done() else b"")
    except TimeoutError:
        raise TransportTimeout from None
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        for task in (errors, feeding):
            task.cancel()
        await asyncio.gather(errors, feeding, return_exceptions=True)
        await process.wait()
        # The pipes of a child that was killed are closed when the transport is.
        process._transport.close()  # type: ignore[attr-defined]


async def _feed(stream: asyncio.StreamWriter, data: bytes) -> None:
    with suppress(BrokenPipeError, ConnectionResetError):
        stream.write(data)
        await stream.drain()
    with suppress(BrokenPipeError, ConnectionResetError):
        stream.close()
        await stream.wait_closed()


async def _all_of(stream: asyncio.StreamReader) -> bytes:
    parts: list[bytes] = []
    size = 0
    while part := await stream.read(65536):
        size += len(part)
        if size > MOST_OUTPUT:
            raise OutputTooLong
        parts.append(part)
    return b"".join(parts)
