"""Channels that run shell scripts as root in a running guest, and child processes for them."""

import asyncio
import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from xenlb.untrusted.printable import printable

MOST_OUTPUT = 4 * 1024 * 1024  # bytes, of each of the two outputs
# Seconds. A script starts some dozens of programs: 60 were not enough in a guest that boots on an
# overloaded host. A guest that is gone or does not answer is detected sooner by ssh and libvirt.
LIMIT = 180.0
_STDERR_AFTER_END = 1.0
_MARK = b"\n=xenlb: the script begins\n"


class DeliveryError(Exception):
    """Reading or changing a guest failed: a sentence, and a hint what to do.

    `permitted` False: the caller lacks the rights on this host.
    """

    def __init__(self, message: str, *, hint: str = "", permitted: bool = True) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.permitted = permitted


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """The result of a script: untrusted, since the guest wrote it."""

    status: int
    out: bytes
    err: bytes

    @property
    def complaint(self) -> str:
        """The last line of its errors, cut and printable."""
        return last_line(self.err)


class Channel(Protocol):
    """Access to a running guest."""

    async def run(self, script: str, *, limit: float = LIMIT) -> Output:
        """Run a script in the guest; `limit` in seconds. An exit status is not an error.

        Raises DeliveryError for an unreachable or slow guest, and for too much output.
        """


def wrapped(script: str) -> bytes:
    """The script as one function that is called at its end.

    A shell runs standard input line by line: half a script would run after a cut connection, and a
    command that reads would read the rest of it. `unwrapped` finds the script's own output by the
    mark: a user's start-up files may print something before.
    """
    mark = _MARK.decode().strip()
    head = f"xenlb_script() {{\nprintf '\\n%s\\n' '{mark}'\n"
    return f"{head}{script}\n}}\nxenlb_script </dev/null\n".encode()


def unwrapped(output: Output) -> Output | None:
    """The output of the script itself; None if it did not run."""
    _, mark, out = output.out.partition(_MARK)
    return Output(status=output.status, out=out, err=output.err) if mark else None


def last_line(data: bytes) -> str:
    """The last line that is not empty, cut and printable."""
    lines = [line for line in data[-4096:].decode("utf-8", "replace").splitlines() if line.strip()]
    return printable(lines[-1].strip(), 200) if lines else ""


async def run_child(
    command: Sequence[str | os.PathLike[str]],
    *,
    stdin: bytes,
    limit: float = LIMIT,
    task: str,
    package: str,
) -> Output:
    """Run a program of this host. Raises DeliveryError if it fails to start or exceeds a limit.

    It has a session of its own: it cannot ask at the terminal, and is killed with its children.
    `task` names it in messages; `package` is the Debian package that has it.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, "LC_ALL": "C"},
        )
    except OSError as error:
        raise DeliveryError(
            f"{command[0]} cannot be started: {error.strerror}", hint=f"apt install {package}"
        ) from None
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    errors = asyncio.create_task(_read_all(process.stderr, task))
    feeding = asyncio.create_task(_feed(process.stdin, stdin))
    try:
        async with asyncio.timeout(limit):
            out = await _read_all(process.stdout, task)
            status = await process.wait()
            # A child in the background (ssh's ControlPersist) may hold it open.
            await asyncio.wait([errors], timeout=_STDERR_AFTER_END)
        return Output(status=status, out=out, err=errors.result() if errors.done() else b"")
    except TimeoutError:
        raise DeliveryError(
            f"{task} did not end within {limit:.0f} s", hint="check the guest, and try again"
        ) from None
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        for child in (errors, feeding):
            child.cancel()
        await asyncio.gather(errors, feeding, return_exceptions=True)
        await process.wait()
        # The pipes of a killed child are closed only with the transport.
        process._transport.close()  # type: ignore[attr-defined]


async def _feed(stream: asyncio.StreamWriter, data: bytes) -> None:
    with suppress(BrokenPipeError, ConnectionResetError):
        stream.write(data)
        await stream.drain()
    with suppress(BrokenPipeError, ConnectionResetError):
        stream.close()
        await stream.wait_closed()


async def _read_all(stream: asyncio.StreamReader, task: str) -> bytes:
    parts: list[bytes] = []
    size = 0
    while part := await stream.read(65536):
        size += len(part)
        if size > MOST_OUTPUT:
            raise DeliveryError(f"{task} printed more than {MOST_OUTPUT} bytes")
        parts.append(part)
    return b"".join(parts)
