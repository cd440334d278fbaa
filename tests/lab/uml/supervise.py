#!/usr/bin/python3
"""Runs a lab's machine and ends it, whatever becomes of the tests.

    supervise.py DIRECTORY COMMAND...

Runs on the machine of the tests, between pytest and linux.uml. Standard input is a pipe that only
pytest holds the other end of: when it closes, however pytest ended, the machine is killed and
DIRECTORY removed. Where the system allows it, the command gets a process name space of its own,
so that killing its first process ends all of them (one linux.uml is one process for each process
inside), and a tmpfs on DIRECTORY/memory, since the machine's memory is a file in $TMPDIR and /tmp
is often a disk.

The command stays on one processor. User-mode Linux has one, and of its host processes one runs at
a time: each system call and page fault inside hands over from one to another. Between two
processors a hand-over waits for the other to wake up: system calls took 8 times as long, and
imports of Python 4 times.
"""

from __future__ import annotations

import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1
ISOLATE = ["unshare", "--mount", "--pid", "--fork", "--kill-child=KILL", "--mount-proc"]


def die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def isolation() -> list[str]:
    probe = subprocess.run([*ISOLATE, "true"], capture_output=True, check=False)
    return ISOLATE if probe.returncode == 0 else []


def processor(processors: set[int], worker: str) -> int:
    """The one to stay on; `worker`: the name that pytest-xdist gave the process of the tests
    ("gw1"). The first is alone on the first processor: it has the Xen lab (tests/lanes.py), which
    takes the longest and all of a processor."""
    number = int(worker.removeprefix("gw") or 0)
    return sorted(processors)[min(number, len(processors) - 1)]


def main(argv: list[str]) -> int:
    directory, command = Path(argv[0]), argv[1:]
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    os.sched_setaffinity(0, {processor(os.sched_getaffinity(0), worker)})
    memory = directory / "memory"
    memory.mkdir(exist_ok=True)
    isolate = isolation()
    if isolate:
        # $0 and "$@" keep any path whole. Not exec: the first process of a name space ignores
        # its own abort(), and a panicked kernel would stay for good.
        script = 'mount -t tmpfs tmpfs "$0"; "$@"; exit $?'
        command = [*isolate, "/bin/sh", "-c", script, str(memory), *command]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        close_fds=False,
        env={**os.environ, "TMPDIR": str(memory)},
        # Its own group, for the systems without isolation.
        start_new_session=True,
        preexec_fn=die_with_parent,  # noqa: PLW1509 - there are no threads here
    )
    ended = os.pidfd_open(process.pid)
    poll = select.poll()
    poll.register(ended, select.POLLIN)
    poll.register(0, select.POLLIN | select.POLLHUP)
    while True:
        ready = {fd for fd, _ in poll.poll()}
        if ended in ready:
            return process.wait()
        if 0 in ready and not os.read(0, 4096):
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            # Only here: of a machine that ended by itself, the tests want to read the console.
            shutil.rmtree(directory, ignore_errors=True)
            return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
