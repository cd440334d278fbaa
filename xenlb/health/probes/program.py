"""The exec check: a program with the exit status of the Nagios plugins.

0 is up, 1 (WARNING) up with its words, 2 (CRITICAL) down. 3 (UNKNOWN), any other status and a
signal say that the program could not tell: nothing is known then, which takes nobody out of service
and lets nobody in. A program that does not end is killed with its group and its descendants
(descendants.py) when the timeout is over, which is down.

It is started without a shell, in a session of its own, as `user`, with two to five variables in its
environment: XENLB_ADDRESS, XENLB_PORT, XENLB_TYPE, PATH and LANG. Of its output the first line is
shown, without the performance data behind a `|`; the words of a program that says OK are not, as
they mostly have a time in them and would be news with every probe.

FACTS

- The niceness of the agent (-10) and its OOM score (-500) pass to children, which must not have
  them. From outside neither can be set back: both would need the child's user, or a capability that
  the agent does not have. So the program is started by a thread that has set its own niceness back
  (on Linux that is a thread's; a fork has that of its thread), and the score by two words of sh
  before the program takes its place, as the same process.
- Popen waits until the program is executed, which may take long on a busy disk: not in the loop.
- The leader of a process group that was not waited for keeps its number: killing the group by it
  before is safe, and ends what a program left running.
- no_new_privs and the unit's capabilities (xenlb.service) are the program's too: one that is
  set-uid, or has file capabilities, such as ping, does not get them.
"""

import asyncio
import os
import pwd
import re
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
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
MOST = 65536  # bytes of each output that are read; the rest is thrown away
OOM_SCORE = Path("/proc/self/oom_score_adj")
# Status of a program that the shell of _ORDINARY could not execute.
NOT_EXECUTED = frozenset({126, 127})

# In its own process: raising one's own score needs no capability.
_ORDINARY = ("/bin/sh", "-c", 'echo 0 2>/dev/null >/proc/self/oom_score_adj; exec "$@"', "sh")

_PERCENT = re.compile(r"(\d{1,5})(?:\.\d*)?%", re.ASCII)
_WEIGHT = re.compile(r"'?weight'?=(\d{1,5})(?:\.\d*)?%", re.ASCII)


async def probe(target: Target, budget: Budget) -> Answer:
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
        status, said = await _run(asks.command, environment, asks.user)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return _not_told(asks, f"{first_line(reason).lower()}")
    return judged(asks, status, said)


def judged(asks: Exec, status: int, said: str) -> Answer:
    """The answer of a program that has ended with this status (negative: by that signal)."""
    program = asks.command[0]
    words = first_line(said.partition("|")[0])
    tail = f": {words}" if words else ""
    share = None if asks.share is None else _share(said)
    part = "" if share is None else f", {share:.0%} of its weight"
    match status:
        case 0:
            return Answer(up=True, detail=f"{program} says OK{part}", share=share)
        case 1:
            return Answer(up=True, detail=f"{program} says WARNING{part}{tail}", share=share)
        case 2:
            return Answer(up=False, detail=f"{program} says CRITICAL{tail}", share=share)
        case 3:
            return Answer(up=None, detail=f"{program} cannot tell (UNKNOWN){tail}")
        case _ if status < 0:
            return _not_told(asks, f"it was ended by {_signal(-status)}{tail}")
        case _ if status in NOT_EXECUTED:
            return _not_told(asks, f"it cannot be executed (status {status}){tail}")
        case _:
            return _not_told(asks, f"its exit status {status} is none of a plugin's (0-3){tail}")


def _not_told(asks: Exec, reason: str) -> Answer:
    return Answer(up=None, detail=f"this host cannot check by {asks.command[0]}: {reason}")


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _share(said: str) -> float | None:
    """As said: `weight=75%` among the performance data, or a line `75%`, the first of them."""
    for line in said.splitlines():
        found = _PERCENT.fullmatch(line.strip())
        for word in line.partition("|")[2].split():
            found = found or _WEIGHT.match(word)
        if found:
            return int(found[1]) / 100
    return None


async def _run(
    command: Sequence[str], environment: Mapping[str, str], user: str
) -> tuple[int, str]:
    """Its exit status, and what it wrote to its output, else to its error output."""
    loop = asyncio.get_running_loop()
    starting = asyncio.create_task(
        asyncio.to_thread(_in_ordinary_thread, command, environment, user)
    )
    try:
        started = await asyncio.shield(starting)
    except asyncio.CancelledError:
        starting.add_done_callback(_abandoned)  # it may be there already, or be soon
        await asyncio.wait([starting])
        raise
    ended = asyncio.Event()
    loop.add_reader(started.pidfd, ended.set)
    outputs = [_Output(pipe=pipe) for pipe in started.pipes]
    for output in outputs:
        loop.add_reader(output.pipe, output.readable)
    try:
        await ended.wait()
        for output in outputs:  # what is in the pipes still
            output.drain()
    finally:
        for output in outputs:
            loop.remove_reader(output.pipe)
        started.kill()
        try:
            # A process that hangs in the kernel (a dead NFS server) outlives its SIGKILL. Until it
            # has ended this probe has not, so that they do not pile up; the loop goes on.
            await ended.wait()
        finally:
            loop.remove_reader(started.pidfd)
            started.close()
    status = started.process.poll()
    assert status is not None
    out, errors = (output.read.decode("utf-8", "replace") for output in outputs)
    return status, out if out.strip() else errors


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Started:
    """A program that runs; the pipes are its output and its error output."""

    process: subprocess.Popen[bytes]
    pidfd: int
    pipes: tuple[IO[bytes], ...]

    def kill(self) -> None:
        """Also what the program started, and left in its group."""
        descendants.kill(self.process.pid)

    def close(self) -> None:
        self.process.poll()
        os.close(self.pidfd)
        for pipe in self.pipes:
            pipe.close()


@dataclass(slots=True, kw_only=True, eq=False)
class _Output:
    """One of a program's outputs, as far as it is read."""

    pipe: IO[bytes]
    read: bytearray = field(default_factory=bytearray)

    def readable(self) -> None:
        """Takes some of it; the end of the pipe is not waited for: a child may keep it open."""
        if not self._take():
            asyncio.get_running_loop().remove_reader(self.pipe)

    def drain(self) -> None:
        while len(self.read) < MOST and self._take():
            pass

    def _take(self) -> bool:
        try:
            data = os.read(self.pipe.fileno(), MOST)
        except BlockingIOError:
            return False
        self.read += data[: MOST - len(self.read)]
        return bool(data)


def _abandoned(starting: asyncio.Task[_Started]) -> None:
    if not starting.cancelled() and starting.exception() is None:
        started = starting.result()
        started.kill()
        started.close()
        started.process.wait()


def _in_ordinary_thread(
    command: Sequence[str], environment: Mapping[str, str], user: str
) -> _Started:
    """A thread's niceness can be raised, but not lowered again: so one for each program."""
    done: list[_Started] = []
    failed: list[Exception] = []

    def start() -> None:
        try:
            if os.getpriority(os.PRIO_PROCESS, 0) < 0:
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 0)
            done.append(_started(command, environment, user))
        except Exception as error:  # it is the caller's
            failed.append(error)

    thread = threading.Thread(target=start, name=f"start {command[0]}")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return done[0]


def _started(command: Sequence[str], environment: Mapping[str, str], user: str) -> _Started:
    """Raises OSError, ValueError (no such user) or SubprocessError."""
    privileges: dict[str, Any] = {}
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        raise ValueError(f"there is no user {user} here") from None
    if entry.pw_uid != os.geteuid():
        privileges = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    favoured = int(OOM_SCORE.read_text()) < 0
    process = subprocess.Popen(
        [*(_ORDINARY if favoured else ()), *command],
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
        return _Started(process=process, pidfd=os.pidfd_open(process.pid), pipes=pipes)
    except BaseException:
        process.kill()
        process.wait()
        for pipe in pipes:
            pipe.close()
        raise
