#!/usr/bin/python3
"""The hands of a test inside a lab: runs commands for the machine that runs pytest.

This file runs INSIDE a lab as root with nothing but the standard library; `host.py` is its other
end. The protocol is one JSON object a line, both ways, over any byte stream: a tty for User-mode
Linux (``--tty``), TCP for Xen (``--tcp``). A request is ``{"id": N, "op": NAME, ...}``; its answer
is ``{"id": N, ...}`` or ``{"id": N, "error": "..."}``, in whatever order the operations end. On a
tty it first sends ``{"id": "hello"}``, and ``{"id": "ack", "bytes": N}`` for all it has read, so
that the sender can keep what is under way small (see Channel.WINDOW in host.py).

    run    {argv | sh, input, timeout, env, cwd} -> {rc, out, err, seconds, started, ended}
    spawn  {argv | sh, env, cwd, log}            -> {pid, started}      own session
    signal {pid, sig, group}                     -> {sent}
    wait   {pid, timeout}                        -> {rc | null, ended}
    read   {path, offset}                        -> {data}              base64
    write  {path, data, mode}                    -> {}                  data is base64
    ping   {}                                    -> {time, monotonic, pid}
    quit   {}                                    -> {}                  ends this process

`input`, `out` and `err` are text in UTF-8 with surrogateescape, so binary output survives. Times
are the lab's time.time(). Nothing here knows about IPVS, libvirt or a kind of lab.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import tty
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Json = dict[str, Any]


class Stream:
    """One peer: a pair of descriptors, and the lock that keeps answers whole."""

    def __init__(self, fd: int, *, acknowledge: bool = False) -> None:
        self.fd = fd
        self.acknowledge = acknowledge
        self._lock = threading.Lock()

    def lines(self) -> Iterator[bytes]:
        pending = bytearray()
        while True:
            try:
                data = os.read(self.fd, 65536)
            except OSError:  # a tty whose other side hung up answers EIO
                return
            if not data:
                return
            if self.acknowledge:
                self.send({"id": "ack", "bytes": len(data)})
            pending += data
            while (end := pending.find(b"\n")) >= 0:
                line = bytes(pending[:end])
                del pending[: end + 1]
                if line.strip():
                    yield line

    def send(self, message: Json) -> None:
        view = memoryview(json.dumps(message).encode() + b"\n")
        with self._lock, contextlib.suppress(OSError):  # the peer may be gone; nobody to tell
            while view:
                view = view[os.write(self.fd, view) :]


class Spawned:
    """A process started by `spawn`; its own thread reaps it, so `ended` is exact."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.done = threading.Event()
        self.ended = 0.0
        threading.Thread(target=self._reap, daemon=True).start()

    def _reap(self) -> None:
        self.process.wait()
        self.ended = time.time()
        self.done.set()


SPAWNED: dict[int, Spawned] = {}


def _command(request: Json) -> list[str]:
    if "sh" in request:
        return ["/bin/sh", "-c", request["sh"]]
    return list(request["argv"])


def _environment(request: Json) -> dict[str, str]:
    return {**os.environ, **(request.get("env") or {})}


def _memory_file(name: str, content: bytes = b"") -> int:
    # Not a pipe: a daemon that a command leaves behind keeps the pipe open, and the command
    # would never be seen to end.
    fd = os.memfd_create(name)
    if content:
        os.write(fd, content)
        os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _content(fd: int) -> str:
    size = os.fstat(fd).st_size
    return os.pread(fd, size, 0).decode("utf-8", "surrogateescape")


def run(request: Json) -> Json:
    text = request.get("input")
    content = b"" if text is None else text.encode("utf-8", "surrogateescape")
    files = [_memory_file("in", content), _memory_file("out"), _memory_file("err")]
    timeout = request.get("timeout")
    started, clock = time.time(), time.monotonic()
    try:
        process = subprocess.Popen(
            _command(request),
            stdin=files[0],
            stdout=files[1],
            stderr=files[2],
            env=_environment(request),
            cwd=request.get("cwd"),
            start_new_session=True,
        )
        timed_out = not _ends_within(process.pid, timeout)
        if timed_out:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        code = process.wait()
        return {
            "rc": code,
            "out": _content(files[1]),
            "err": _content(files[2]),
            "timed_out": timed_out,
            "seconds": time.monotonic() - clock,
            "started": started,
            "ended": time.time(),
        }
    finally:
        for fd in files:
            os.close(fd)


def _ends_within(pid: int, timeout: float | None) -> bool:
    # subprocess's own wait(timeout) polls with sleeps of up to 50 ms; a pidfd wakes at once.
    fd = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        return bool(poll.poll(None if timeout is None else timeout * 1000))
    finally:
        os.close(fd)


def spawn(request: Json) -> Json:
    with open(request.get("log") or os.devnull, "ab") as log:
        process = subprocess.Popen(
            _command(request),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=_environment(request),
            cwd=request.get("cwd"),
            start_new_session=True,
        )
    SPAWNED[process.pid] = Spawned(process)
    return {"pid": process.pid, "started": time.time()}


def send_signal(request: Json) -> Json:
    pid, number = int(request["pid"]), int(request["sig"])
    known = SPAWNED.get(pid)
    if known and known.done.is_set() and not request.get("group"):
        return {"sent": False}  # reaped: the number may belong to another process by now
    try:
        if request.get("group"):
            os.killpg(pid, number)
        else:
            os.kill(pid, number)
    except ProcessLookupError:
        return {"sent": False}
    return {"sent": True}


def wait(request: Json) -> Json:
    spawned = SPAWNED[int(request["pid"])]
    if not spawned.done.wait(request.get("timeout")):
        return {"rc": None, "ended": None}
    return {"rc": spawned.process.returncode, "ended": spawned.ended}


def read(request: Json) -> Json:
    with Path(request["path"]).open("rb") as file:
        if offset := request.get("offset"):
            file.seek(offset)
        return {"data": base64.b64encode(file.read()).decode()}


def write(request: Json) -> Json:
    # In place, not by rename: the target may be in /proc or /sys.
    path = Path(request["path"])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(base64.b64decode(request["data"]))
    if request.get("mode") is not None:
        path.chmod(int(request["mode"]))
    return {}


def ping(_request: Json) -> Json:
    return {"time": time.time(), "monotonic": time.monotonic(), "pid": os.getpid()}


OPERATIONS: dict[str, Callable[[Json], Json]] = {
    "run": run,
    "spawn": spawn,
    "signal": send_signal,
    "wait": wait,
    "read": read,
    "write": write,
    "ping": ping,
}


def answer(stream: Stream, request: Json) -> None:
    try:
        result = OPERATIONS[request["op"]](request)
    except (OSError, KeyError, TypeError, ValueError) as error:
        result = {"error": f"{type(error).__name__}: {error}"}
    stream.send({"id": request.get("id"), **result})


def serve(stream: Stream) -> None:
    """Answers a peer until it goes away; every request runs in a thread of its own."""
    for line in stream.lines():
        try:
            request = json.loads(line)
        except ValueError as error:
            stream.send({"id": None, "error": f"not JSON: {error}"})
            continue
        if request.get("op") == "quit":
            stream.send({"id": request.get("id")})
            os._exit(0)
        threading.Thread(target=answer, args=(stream, request), daemon=True).start()


def serve_tcp(address: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.create_server((address, port), family=family, backlog=16)
    # The port is told, so that port 0 (any free one) is of use.
    print(f"execd: listening on {address} port {listener.getsockname()[1]}", flush=True)
    while True:
        connection, _peer = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=_serve_connection, args=(connection,), daemon=True).start()


def _serve_connection(connection: socket.socket) -> None:
    with connection:
        serve(Stream(connection.fileno()))


def serve_tty(path: str) -> None:
    fd = os.open(path, os.O_RDWR | os.O_NOCTTY)
    tty.setraw(fd)
    stream = Stream(fd, acknowledge=True)
    stream.send({"id": "hello", **ping({})})
    serve(stream)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description="runs commands inside a lab for its tests")
    way = parser.add_mutually_exclusive_group(required=True)
    way.add_argument("--tcp", metavar="ADDRESS:PORT")
    way.add_argument("--tty", metavar="DEVICE", help="ends when the other side hangs up")
    way.add_argument("--fd", metavar="N", type=int, help="an inherited socket")
    options = parser.parse_args(argv)
    if options.tcp:
        address, _, port = options.tcp.rpartition(":")
        serve_tcp(address.strip("[]"), int(port))
    elif options.tty:
        serve_tty(options.tty)
    else:
        serve(Stream(options.fd))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
