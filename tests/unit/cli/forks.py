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
# Python in isolated mode, as the installed command has it, does not find the tests by itself.
START = """\
import sys
sys.path.append(sys.argv[1])
from tests.unit.cli.forks import serve
sys.path.remove(sys.argv[1])
serve(int(sys.argv[2]))
"""


class Forks:
    """The end of the connection in the tests."""

    def __init__(self) -> None:
        self._socket, remote = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        root = str(Path(__file__).parents[3])
        with remote:
            self._server = subprocess.Popen(
                [sys.executable, "-I", "-c", START, root, str(remote.fileno())],
                pass_fds=[remote.fileno()],
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
        """Start a command that writes to two files, and yield a function that waits for its status.

        A command that still runs at the end of the block is killed.
        """
        local, remote = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with local:
            with remote:
                call = json.dumps([arguments, dict(environment), os.getcwd()]).encode()
                socket.send_fds(self._socket, [call], [remote.fileno(), out, err])
            pid = int(local.recv(100))
            status: int | None = None

            def wait() -> int:
                nonlocal status
                if status is None:
                    status = int(local.recv(100))
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
        """Run a command to its end."""
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
    """Serve the tests; in a child, run one command."""
    for module in pkgutil.walk_packages(xenlb.__path__, "xenlb."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    drain_progress.POLL = 0.02  # seconds between requests for the progress
    collect.ADDRESSES = 0.2  # seconds; libvirt's test driver reports no addresses
    gc.freeze()
    with socket.socket(fileno=number) as requests:
        signal.signal(
            signal.SIGCHLD, signal.SIG_IGN
        )  # the kernel reaps the children that wait for a command
        while True:
            call, files, _, _ = socket.recv_fds(requests, 1 << 20, 3)
            if not call:
                return
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                break
            for file in files:
                os.close(file)
    with socket.socket(fileno=files[0]) as client:
        if pid := os.fork():
            client.send(str(pid).encode())
            for file in files[1:]:
                os.close(file)
            _, status = os.waitpid(pid, 0)
            client.send(str(os.waitstatus_to_exitcode(status)).encode())
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
        # The steps of Python's own exit, but without freeing all memory, which takes longest.
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        gc.collect()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(ended.code or 0))
