"""Kills a program with what it started, also in sessions of its own.

FACTS

- A process group, and a session, is left by setsid(2), as `setsid`, `timeout` or ssh do it. What is
  left of the program then is the parent of each process: /proc/PID/task/TID/children.
- A process whose parent has ended is a child of init, and is not found: a daemon, by design. Only a
  cgroup would find it, which the agent has no right to make.
- A stopped process starts nothing and waits for nobody: its children stay, with their numbers. So
  each is stopped before they are read, and held by a pidfd before anything is killed.
"""

import contextlib
import os
import signal
from pathlib import Path

MOST = 1000  # processes of one program that are looked for


def kill(leader: int) -> None:
    """The leader of a process group, which was not waited for, its group and its descendants."""
    held: dict[int, int] = {}  # process → pidfd
    try:
        _hold(leader, held)
        for pidfd in held.values():
            _send(pidfd, signal.SIGKILL)
    finally:
        for pidfd in held.values():
            os.close(pidfd)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def _hold(leader: int, held: dict[int, int]) -> None:
    """Stops the tree from the top."""
    with contextlib.suppress(OSError):
        held[leader] = os.pidfd_open(leader)
    waiting = list(held)
    while waiting and len(held) < MOST:
        parent = waiting.pop()
        _send(held[parent], signal.SIGSTOP)
        for child in _children(parent):
            with contextlib.suppress(OSError):
                pidfd = os.pidfd_open(child)
                if child in held or child not in _children(parent):  # its number is another's now
                    os.close(pidfd)
                else:
                    held[child] = pidfd
                    waiting.append(child)


def _children(parent: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{parent}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    return found


def _send(pidfd: int, number: signal.Signals) -> None:
    with contextlib.suppress(OSError):
        signal.pidfd_send_signal(pidfd, number)
