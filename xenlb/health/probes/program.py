"""The exec check: a program with the exit status of the Nagios plugins.

0 is up, 1 (WARNING) up with the program's text, 2 (CRITICAL) down. After 3 (UNKNOWN), any other
status and a signal nothing is known, which neither removes nor adds a server. A program that
exceeds the timeout is killed with its group and its descendants, and the server is down.

The program is started without a shell, in a session of its own, as `user`, with XENLB_ADDRESS,
XENLB_PORT, XENLB_TYPE, PATH and LANG in its environment. The detail has the first line of its
output, without the performance data after a `|`. The text of OK is dropped: it mostly contains a
time, and would change with every probe.

FACTS

- Children inherit the agent's niceness (-10) and OOM score (-500), which they must not keep. To
  reset them from outside takes the child's user, or a capability that the agent does not have. So
  a thread resets its own niceness (on Linux it belongs to a thread, and a fork inherits its
  thread's) and starts the program. A line of sh resets the score before it executes the program.
- Popen waits until the program is executed, which may take long on a busy disk: not in the loop.
- The leader of a process group keeps its number until it is reaped: until then it is safe to kill
  the group by that number, which ends processes that the program left running.
- no_new_privs and the unit's capabilities (xenlb.service) apply to the program: a set-uid program
  or one with file capabilities, such as ping, does not get them.
"""

import asyncio
import os
import pwd
import re
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from xenlb.health.probes import descendants
from xenlb.health.transport.result import Answer
from xenlb.model.checks import Exec
from xenlb.model.target import Target
from xenlb.untrusted.budget import Budget
from xenlb.untrusted.printable import first_line

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
MOST = 65536  # bytes of each output that are kept
OOM_SCORE = Path("/proc/self/oom_score_adj")
NOT_EXECUTED = frozenset({126, 127})  # status of a shell that could not execute the program

# A process needs no capability to raise its own score.
_RESET_SCORE = ("/bin/sh", "-c", 'echo 0 2>/dev/null >/proc/self/oom_score_adj; exec "$@"', "sh")

_PERCENT = re.compile(r"(\d{1,5})(?:\.\d*)?%", re.ASCII)
_WEIGHT = re.compile(r"'?weight'?=(\d{1,5})(?:\.\d*)?%", re.ASCII)


async def probe(target: Target, budget: Budget) -> Answer:
    """Run the check."""
    asks = target.check.asks
    assert isinstance(asks, Exec)
    environment = {
        "XENLB_ADDRESS": str(target.address),
        "XENLB_PORT": str(target.port),
        "XENLB_TYPE": target.check.type,
        "PATH": PATH,
        "LANG": "C.UTF-8",
    }
    try:
        status, output = await _run(asks.command, environment, asks.user)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return _unknown(asks, f"{first_line(reason).lower()}")
    return answer_for_status(asks, status, output)


def answer_for_status(asks: Exec, status: int, output: str) -> Answer:
    """Return the answer for a program's exit status (negative: a signal) and output."""
    program = asks.command[0]
    text = first_line(output.partition("|")[0])
    tail = f": {text}" if text else ""
    share = None if asks.share is None else _share(output)
    weight = "" if share is None else f", {share:.0%} of its weight"
    match status:
        case 0:
            return Answer(up=True, detail=f"{program} says OK{weight}", share=share)
        case 1:
            return Answer(up=True, detail=f"{program} says WARNING{weight}{tail}", share=share)
        case 2:
            return Answer(up=False, detail=f"{program} says CRITICAL{tail}", share=share)
        case 3:
            return Answer(up=None, detail=f"{program} cannot tell (UNKNOWN){tail}")
        case _ if status < 0:
            return _unknown(asks, f"it was ended by {_signal_name(-status)}{tail}")
        case _ if status in NOT_EXECUTED:
            return _unknown(asks, f"it cannot be executed (status {status}){tail}")
        case _:
            return _unknown(asks, f"its exit status {status} is none of a plugin's (0-3){tail}")


def _unknown(asks: Exec, reason: str) -> Answer:
    return Answer(up=None, detail=f"this host cannot check by {asks.command[0]}: {reason}")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _share(output: str) -> float | None:
    """Return the first `weight=75%` in performance data or line `75%`, as a fraction."""
    for line in output.splitlines():
        match = _PERCENT.fullmatch(line.strip())
        for word in line.partition("|")[2].split():
            match = match or _WEIGHT.match(word)
        if match:
            return int(match[1]) / 100
    return None


async def _run(
    command: Sequence[str], environment: Mapping[str, str], user: str
) -> tuple[int, str]:
    """Run the program; return its exit status and its output, or error output if that is empty."""
    loop = asyncio.get_running_loop()
    starting = asyncio.create_task(asyncio.to_thread(_start_in_thread, command, environment, user))
    try:
        program = await asyncio.shield(starting)
    except asyncio.CancelledError:
        starting.add_done_callback(_kill_started)
        await asyncio.wait([starting])
        raise
    ended = asyncio.Event()
    loop.add_reader(program.pidfd, ended.set)
    outputs = [_Output(pipe=pipe) for pipe in program.pipes]
    for output in outputs:
        loop.add_reader(output.pipe, output.read_once)
    try:
        await ended.wait()
        for output in outputs:
            output.read_all()
    finally:
        for output in outputs:
            loop.remove_reader(output.pipe)
        program.kill()
        try:
            # A process that hangs in the kernel (a dead NFS server) outlives its SIGKILL. The probe
            # waits for its end, so that such processes do not accumulate; the loop goes on.
            await ended.wait()
        finally:
            loop.remove_reader(program.pidfd)
            program.close()
    status = program.process.poll()
    assert status is not None
    out, errors = (output.data.decode("utf-8", "replace") for output in outputs)
    return status, out if out.strip() else errors


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Program:
    """A running program; the pipes are its output and its error output."""

    process: subprocess.Popen[bytes]
    pidfd: int
    pipes: tuple[IO[bytes], ...]

    def kill(self) -> None:
        """Kill the program, its group and its descendants."""
        descendants.kill(self.process.pid)

    def close(self) -> None:
        self.process.poll()
        os.close(self.pidfd)
        for pipe in self.pipes:
            pipe.close()


@dataclass(slots=True, kw_only=True, eq=False)
class _Output:
    """One of a program's outputs. Its end is not waited for: a child may keep the pipe open."""

    pipe: IO[bytes]
    data: bytearray = field(default_factory=bytearray)

    def read_once(self) -> None:
        if not self._read():
            asyncio.get_running_loop().remove_reader(self.pipe)

    def read_all(self) -> None:
        while len(self.data) < MOST and self._read():
            pass

    def _read(self) -> bool:
        try:
            data = os.read(self.pipe.fileno(), MOST)
        except BlockingIOError:
            return False
        self.data += data[: MOST - len(self.data)]
        return bool(data)


def _kill_started(starting: asyncio.Task[_Program]) -> None:
    if not starting.cancelled() and starting.exception() is None:
        program = starting.result()
        program.kill()
        program.close()
        program.process.wait()


def _start_in_thread(command: Sequence[str], environment: Mapping[str, str], user: str) -> _Program:
    """Start the program in a new thread, as a thread cannot lower its niceness again."""

    def start() -> _Program:
        if os.getpriority(os.PRIO_PROCESS, 0) < 0:
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 0)
        return _start(command, environment, user)

    with ThreadPoolExecutor(max_workers=1) as executor:
        return executor.submit(start).result()


def _start(command: Sequence[str], environment: Mapping[str, str], user: str) -> _Program:
    """Start the program. Raises OSError, ValueError (no such user) or SubprocessError."""
    privileges: dict[str, Any] = {}
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        raise ValueError(f"there is no user {user} here") from None
    if entry.pw_uid != os.geteuid():
        privileges = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    reset_score = int(OOM_SCORE.read_text()) < 0
    process = subprocess.Popen(
        [*(_RESET_SCORE if reset_score else ()), *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd="/",
        env=dict(environment),
        start_new_session=True,
        **privileges,
    )
    assert process.stdout
    assert process.stderr
    pipes = (process.stdout, process.stderr)
    try:
        for pipe in pipes:
            os.set_blocking(pipe.fileno(), False)
        return _Program(process=process, pidfd=os.pidfd_open(process.pid), pipes=pipes)
    except BaseException:
        process.kill()
        process.wait()
        for pipe in pipes:
            pipe.close()
        raise
