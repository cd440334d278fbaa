"""Run the command `xenlb` as a process, without the quarter of a second for its imports.

A server process imports all of xenlb and forks for each command. The child has its own arguments,
environment, folder, standard files and exit status, and runs what `python -m xenlb.cli` runs. Only
the time of imports differs: test_root.py checks imports with real processes. Tests of terminals and
of Ctrl-C use real processes too.
"""

import atexit
import gc
import importlib
import json
import os
import pkgutil
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import xenlb
from xenlb.cli import drain_progress
from xenlb.oneshot import collect

Wait = Callable[[], int]
# Started in isolated mode, as the installed command, it has to be told where the tests are.
START = """\
import sys
sys.path.append(sys.argv[1])
from tests.unit.cli.forks import serve
sys.path.remove(sys.argv[1])
serve(int(sys.argv[2]))
"""


class Forks:
    """The tests' end."""

    def __init__(self) -> None:
        self._socket, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        root = str(Path(__file__).parents[3])
        with its:
            self._server = subprocess.Popen(
                [sys.executable, "-I", "-c", START, root, str(its.fileno())],
                pass_fds=[its.fileno()],
                stdin=subprocess.DEVNULL,
                env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
            )

    def close(self) -> None:
        self._socket.close()
        self._server.wait(30)

    @contextmanager
    def start(
        self, arguments: Sequence[str], environment: Mapping[str, str], *, out: int, err: int
    ) -> Iterator[Wait]:
        """A command that writes to two files; what waits for its end gives its status. Killed at
        the end of the block if it still runs."""
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            with its:
                call = json.dumps([arguments, dict(environment), os.getcwd()]).encode()
                socket.send_fds(self._socket, [call], [its.fileno(), out, err])
            pid = int(ours.recv(100))
            status: int | None = None

            def wait() -> int:
                nonlocal status
                if status is None:
                    status = int(ours.recv(100))
                return status

            try:
                yield wait
            finally:
                if status is None:
                    os.kill(pid, signal.SIGKILL)
                    wait()

    def run(
        self, arguments: Sequence[str], environment: Mapping[str, str]
    ) -> "subprocess.CompletedProcess[bytes]":
        """A command to its end."""
        with (
            open(os.memfd_create("out"), "rb") as out,
            open(os.memfd_create("err"), "rb") as err,
        ):
            with self.start(arguments, environment, out=out.fileno(), err=err.fileno()) as wait:
                status = wait()
            for file in (out, err):
                file.seek(0)
            return subprocess.CompletedProcess(arguments, status, out.read(), err.read())


def serve(number: int) -> None:
    """The server's end, and that of its children."""
    for module in pkgutil.walk_packages(xenlb.__path__, "xenlb."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    drain_progress.POLL = 0.02  # how often a drain is looked at
    collect.ADDRESSES = 0.2  # seconds; libvirt's test driver never tells any
    gc.freeze()
    with socket.socket(fileno=number) as ours:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel collects those that watch
        while True:
            call, files, _, _ = socket.recv_fds(ours, 1 << 20, 3)
            if not call:
                return
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                break
            for file in files:
                os.close(file)
    with socket.socket(fileno=files[0]) as asks:
        if pid := os.fork():
            asks.send(str(pid).encode())
            for file in files[1:]:
                os.close(file)
            _, status = os.waitpid(pid, 0)
            asks.send(str(os.waitstatus_to_exitcode(status)).encode())
            os._exit(0)
    arguments, environment, folder = json.loads(call)
    for file, place in zip(files[1:], (1, 2), strict=True):
        os.dup2(file, place)
        os.close(file)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    sys.argv = ["xenlb", *arguments]
    try:
        runpy.run_module("xenlb.cli", run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        # As Python ends, but for the memory, of which it would give back all: that takes longest.
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        gc.collect()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(ended.code or 0))
