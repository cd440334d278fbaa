"""Kills a program and its descendants, also those in sessions of their own.

FACTS

- setsid(2) leaves a process group and a session, as `setsid`, `timeout` or ssh do it. The parent
  still connects the process to the program: /proc/PID/task/TID/children.
- A process whose parent has ended is a child of init and is not found: a daemon, by design. Finding
  it would need a cgroup, which the agent has no right to create.
- A stopped process starts no process and reaps none: its children keep their numbers. So each is
  stopped before its children are read, and opened as a pidfd before anything is killed.
"""

import contextlib
import os
import signal
from pathlib import Path

MOST = 1000  # processes of one program


def kill(leader: int) -> None:
    """Kill the leader of a process group, its group and its descendants.

    The leader must not have been reaped.
    """
    pidfds: dict[int, int] = {}  # by process
    try:
        _stop(leader, pidfds)
        for pidfd in pidfds.values():
            _send(pidfd, signal.SIGKILL)
    finally:
        for pidfd in pidfds.values():
            os.close(pidfd)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def _stop(leader: int, pidfds: dict[int, int]) -> None:
    """Stop the tree from the top; add its processes to `pidfds`."""
    with contextlib.suppress(OSError):
        pidfds[leader] = os.pidfd_open(leader)
    pending = list(pidfds)
    while pending and len(pidfds) < MOST:
        parent = pending.pop()
        _send(pidfds[parent], signal.SIGSTOP)
        for child in _children(parent):
            with contextlib.suppress(OSError):
                pidfd = os.pidfd_open(child)
                if child in pidfds or child not in _children(parent):  # the number was reused
                    os.close(pidfd)
                else:
                    pidfds[child] = pidfd
                    pending.append(child)


def _children(parent: int) -> list[int]:
    children: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{parent}/task").iterdir():
            children += map(int, (task / "children").read_text().split())
    return children


def _send(pidfd: int, number: signal.Signals) -> None:
    with contextlib.suppress(OSError):
        signal.pidfd_send_signal(pidfd, number)
