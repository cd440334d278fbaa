"""Runs a test in a network name space of its own, as root there, with the real kernel's rtnetlink.

The test runs in a forked child, so neither root nor a lab is needed: where this user is not root,
the child makes a user name space first. Skipped, with the reason, where the kernel permits neither.
"""

import ctypes
import functools
import os
import shlex
import signal
import subprocess
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec

import pytest

P = ParamSpec("P")

CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000
NOT_PERMITTED = 77


def in_own_network(test: Callable[P, None]) -> Callable[P, None]:
    """Runs the test in a child with no interface but `lo`, which is down."""

    @functools.wraps(test)
    def forked(*args: P.args, **kwargs: P.kwargs) -> None:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            status = 1
            with os.fdopen(writer, "w") as report:
                try:
                    if (reason := _unshare()) is not None:
                        report.write(reason)
                        status = NOT_PERMITTED
                    else:
                        files = set(os.listdir("/proc/self/fd"))
                        test(*args, **kwargs)
                        left = set(os.listdir("/proc/self/fd")) - files
                        assert not left, f"files left open: {left}"
                        status = 0
                except BaseException:
                    report.write(traceback.format_exc())
                finally:
                    report.flush()
                    os._exit(status)
        os.close(writer)
        try:
            with os.fdopen(reader) as report:
                said = report.read()
        except BaseException:  # the time limit, Ctrl-C
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise
        _, status = os.waitpid(child, 0)
        match os.waitstatus_to_exitcode(status):
            case 0:
                return
            case code if code == NOT_PERMITTED and not os.environ.get("XENLB_REQUIRE_LABS"):
                pytest.skip(f"no network name space: {said}")
            case code:
                pytest.fail(said or f"the test's process ended with {code}", pytrace=False)

    return forked


def sh(script: str) -> str:
    """Runs each line of a script; a line that fails raises, with what it said."""
    out = ""
    for line in filter(None, map(str.strip, script.splitlines())):
        done = subprocess.run(shlex.split(line), capture_output=True, text=True, check=False)
        if done.returncode:
            raise AssertionError(f"{line}: {done.stderr.strip()}")
        out += done.stdout
    return out


def _unshare() -> str | None:
    """Enters the name space; says what the kernel says against it."""
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.geteuid(), os.getegid()
    if user == 0:
        return None if libc.unshare(CLONE_NEWNET) == 0 else os.strerror(ctypes.get_errno())
    if libc.unshare(CLONE_NEWUSER | CLONE_NEWNET) != 0:
        return os.strerror(ctypes.get_errno())
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    return None
