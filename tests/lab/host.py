"""The machine that runs pytest, as seen from a lab: the client side of `execd.py`.

`LabHost` is what a test holds: it runs commands in the lab, moves files, waits for things and
collects what is needed to understand a failure. How a lab boots and is powered off is the
business of its own class (`tests.lab.uml`, `tests.lab.xen`); those override `boot`, `close` and,
for what only they have, `capture_commands`.

A call either returns in time or raises `LabError` with what it was doing and the last lines of
the lab's console: a lab that has locked up never hangs the tests.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import itertools
import json
import os
import re
import shlex
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

T = TypeVar("T")
Command = str | Sequence[str]

CHECKOUT = Path(__file__).resolve().parents[2]
# Over a command's own timeout: what a busy lab may take to kill it and to answer.
GRACE = 60.0
# A message of this size passes any of the channels without hogging it.
CHUNK = 256 * 1024


class LabError(Exception):
    """Something in a lab failed; the message names the step and shows the evidence."""


def cache_directory() -> Path:
    """Where images, kernels and logs of the labs live; never in the checkout."""
    named = os.environ.get("XENLB_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "xenlb"


def artifacts_directory() -> Path:
    """Where tests leave what they have to show: $XENLB_ARTIFACTS, or CACHE/artifacts."""
    named = os.environ.get("XENLB_ARTIFACTS")
    return Path(named) if named else cache_directory() / "artifacts"


def venv_directory() -> Path:
    """The virtual environment with the agent in it: $XENLB_VENV, or the checkout's own."""
    named = os.environ.get("XENLB_VENV")
    return Path(named) if named else CHECKOUT / ".venv"


def last_lines(text: str, count: int = 25) -> str:
    return "\n".join(text.splitlines()[-count:])


# How a kernel's complaint begins; a panic comes some lines after it.
COMPLAINT = re.compile(
    r"Oops:|BUG:|kernel BUG at|general protection|invalid opcode|traps:|Kernel panic|Panic on CPU"
)


def console_end(text: str) -> str:
    """The lines of a console that matter: those of its first complaint and panic, or the last."""
    lines = text.splitlines()
    first = next((n for n, line in enumerate(lines) if COMPLAINT.search(line)), None)
    return last_lines(text) if first is None else "\n".join(lines[first : first + 60])


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """How a command ended; `started` and `ended` are the lab's wall clock, in seconds."""

    command: str
    rc: int
    out: str
    err: str
    seconds: float
    started: float
    ended: float


def shown(command: Command) -> str:
    return command if isinstance(command, str) else shlex.join(command)


class Channel:
    """Requests and answers over one stream socket; safe to use from several threads."""

    # A tty inside holds 4096 bytes, and User-mode Linux (6.1, arch/um/drivers/line.c) has no way
    # back from a full one: throttling takes the descriptor out of its epoll set for good. So no
    # more than this is under way before it is acknowledged.
    WINDOW = 2048

    def __init__(self, stream: socket.socket, *, name: str, acknowledged: bool = False) -> None:
        self.name = name
        self.hello = threading.Event()
        self._stream = stream
        self._numbers = itertools.count(1)
        self._waiting: dict[int, Future[dict[str, Any]]] = {}
        self._lock = threading.Lock()
        self._send_lock = threading.Lock()
        self._acknowledged = acknowledged
        self._under_way = 0
        self._room = threading.Condition()
        self._gone = False
        self._reader = threading.Thread(target=self._read, name=f"{name}-channel", daemon=True)
        self._reader.start()

    @property
    def gone(self) -> bool:
        """The other side has hung up."""
        return self._gone

    def request(self, what: str, *, wait: float, **message: object) -> dict[str, Any]:
        """Sends one request and returns its answer; `wait` is in seconds."""
        number = next(self._numbers)
        future: Future[dict[str, Any]] = Future()
        with self._lock:
            if self._gone:
                raise LabError(f"{self.name} is gone; it was to {what}")
            self._waiting[number] = future
        data = json.dumps({"id": number, **message}).encode() + b"\n"
        try:
            with self._send_lock:
                self._send(data, time.monotonic() + wait)
            answer = future.result(wait)
        except FutureTimeout:
            raise LabError(f"{self.name} did not answer within {wait:.0f} s: {what}") from None
        except OSError as error:
            raise LabError(f"{self.name} went away ({error}) when asked to {what}") from error
        finally:
            with self._lock:
                self._waiting.pop(number, None)
        if answer.get("gone"):
            raise LabError(f"{self.name} went away during: {what}")
        if "error" in answer:
            raise LabError(f"{self.name} could not {what}: {answer['error']}")
        return answer

    def _send(self, data: bytes, until: float) -> None:
        if not self._acknowledged:
            self._stream.sendall(data)
            return
        view = memoryview(data)
        while view:
            with self._room:
                room = self.WINDOW - self._under_way
                if room <= 0 and not self._gone:
                    if not self._room.wait(until - time.monotonic()):
                        raise FutureTimeout
                    continue
                piece = view[: max(room, 1)]
                self._under_way += len(piece)
            self._stream.sendall(piece)
            view = view[len(piece) :]

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.shutdown(socket.SHUT_RDWR)
        if threading.current_thread() is not self._reader:
            self._reader.join(5)
        self._stream.close()

    def _read(self) -> None:
        pending = bytearray()
        while True:
            try:
                data = self._stream.recv(1 << 16)
            except OSError:
                data = b""
            if not data:
                break
            start = len(pending)
            pending += data
            while (end := pending.find(b"\n", start)) >= 0:
                self._take(bytes(pending[:end]))
                del pending[: end + 1]
                start = 0
        with self._lock, self._room:
            self._gone = True
            self._room.notify_all()
            for future in self._waiting.values():
                if not future.done():
                    future.set_result({"gone": True})

    def _take(self, line: bytes) -> None:
        try:
            message = json.loads(line)
        except ValueError:
            return  # a tty may carry the kernel's last words
        if message.get("id") == "hello":
            self.hello.set()
            return
        if message.get("id") == "ack":
            with self._room:
                self._under_way -= message["bytes"]
                self._room.notify_all()
            return
        with self._lock:
            future = self._waiting.get(message.get("id"))
            if future and not future.done():
                future.set_result(message)


class Process:
    """A process that `LabHost.spawn` left running in the lab."""

    def __init__(self, lab: LabHost, *, command: str, pid: int, log_path: str, started: float):
        self.lab = lab
        self.command = command
        self.pid = pid
        self.log_path = log_path
        self.started = started
        self.ended: float | None = None  # the lab's clock; known once wait() has returned

    def __repr__(self) -> str:
        return f"<Process {self.pid} {self.command!r}>"

    def signal(self, number: int = signal.SIGTERM, *, group: bool = False) -> bool:
        """Sends a signal; False when the process was gone already."""
        answer = self.lab.request(
            f"send signal {number} to {self.command!r}",
            op="signal",
            pid=self.pid,
            sig=int(number),
            group=group,
        )
        return bool(answer["sent"])

    def poll(self) -> int | None:
        """The exit status (negative: the signal that ended it), or None while it runs."""
        return self._status(0)

    def alive(self) -> bool:
        return self.poll() is None

    def wait(self, timeout: float = 30) -> int:
        timeout *= self.lab.patience
        status = self._status(timeout)
        if status is None:
            raise LabError(
                f"{self.command!r} still runs after {timeout} s; its log ends:\n"
                + last_lines(self.log())
            )
        return status

    def kill(self) -> None:
        """Ends it and all it started (its process group) at once, and waits for that."""
        self.signal(signal.SIGKILL, group=True)
        self.wait(10)

    def terminate(self, timeout: float = 10) -> int:
        """SIGTERM, then the exit status."""
        self.signal(signal.SIGTERM)
        return self.wait(timeout)

    def log(self) -> str:
        return self.lab.text(self.log_path) if self.log_path != os.devnull else ""

    def _status(self, timeout: float) -> int | None:
        answer = self.lab.request(
            f"wait {timeout} s for {self.command!r}",
            op="wait",
            pid=self.pid,
            timeout=timeout,
            wait=timeout + GRACE,
        )
        self.ended = answer["ended"]
        rc: int | None = answer["rc"]
        return rc


class LabHost:
    """A machine to test on; see the module's docstring."""

    # Tests write timeouts as for a quiet machine; none of them says what is right, only when there
    # is no point in waiting any longer. Two labs on two cores need more, an emulated one most.
    patience = 2.0

    def __init__(self, name: str) -> None:
        self.name = name
        self._channel: Channel | None = None
        self._spawned = itertools.count(1)
        # How to run traffic.py inside the lab.
        self.traffic: list[str] = [
            "/usr/bin/python3",
            "-IS",
            str(CHECKOUT / "tests/lab/traffic.py"),
        ]

    # How it lives -------------------------------------------------------------------------

    def boot(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """Powers the lab off and leaves no process behind; may be called twice."""
        raise NotImplementedError

    def reset(self) -> None:
        """Takes back all that tests did: here, powers it off and boots it anew."""
        self.close()
        self.boot()

    def __enter__(self) -> Self:
        try:
            self.boot()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def console(self) -> str:
        """The lab's console from its start."""
        return ""

    def attach(self, stream: socket.socket, *, tty: bool = False) -> None:
        """Talks to the execd at the other end of `stream` from now on."""
        self._channel = Channel(stream, name=self.name, acknowledged=tty)

    def detach(self) -> None:
        if self._channel:
            self._channel.close()
            self._channel = None

    @property
    def attached(self) -> bool:
        return self._channel is not None and not self._channel.gone

    def attach_tcp(
        self,
        address: str,
        port: int,
        *,
        timeout: float,
        running: Callable[[], bool] = lambda: True,
    ) -> None:
        """Waits for an execd behind a TCP port; `running` says whether waiting has a point.

        QEMU's user network accepts a connection before anything listens in the guest, so only
        an answered ping counts.
        """
        what = f"wait for execd at {address} port {port}"
        until = time.monotonic() + timeout
        while time.monotonic() < until:
            if not running():
                raise self._told(f"{self.name} ended while it was to {what}")
            try:
                stream = socket.create_connection((address, port), timeout=5)
            except OSError:
                time.sleep(0.1)
                continue
            stream.settimeout(None)
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            channel = Channel(stream, name=self.name)
            try:
                channel.request(what, wait=5, op="ping")
            except LabError:
                channel.close()
                time.sleep(0.1)
                continue
            self._channel = channel
            return
        raise self._told(f"{self.name} did not {what} within {timeout:.0f} s")

    def request(self, what: str, *, wait: float = GRACE, **message: object) -> dict[str, Any]:
        """One operation of execd's protocol; `what` is the sentence for the error."""
        if self._channel is None:
            raise LabError(f"{self.name} is not running; it was to {what}")
        try:
            return self._channel.request(what, wait=wait, **message)
        except LabError as error:
            if " could not " in str(error):
                raise
            raise self._told(str(error)) from error

    def _told(self, message: str) -> LabError:
        return LabError(f"{message}\nthe console of {self.name} ends:\n{console_end(self.console)}")

    # Commands -----------------------------------------------------------------------------

    def run(
        self,
        command: Command,
        *,
        input: str | None = None,
        timeout: float = 60,
        check: bool = True,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
    ) -> Result:
        """Runs a command to its end; a string goes through /bin/sh.

        A command over its timeout is killed with its process group and always raises; any other
        failure raises unless `check` is False.
        """
        timeout *= self.patience
        what = f"run {shown(command)}"
        answer = self.request(
            what,
            op="run",
            input=input,
            timeout=timeout,
            wait=timeout + GRACE,
            env=dict(env or {}),
            cwd=cwd,
            **self._form(command),
        )
        result = Result(
            command=shown(command),
            rc=answer["rc"],
            out=answer["out"],
            err=answer["err"],
            seconds=answer["seconds"],
            started=answer["started"],
            ended=answer["ended"],
        )
        if answer["timed_out"]:
            raise LabError(f"killed after {timeout} s in {self.name}: {self._report(result)}")
        if check and result.rc != 0:
            raise LabError(f"failed with status {result.rc} in {self.name}: {self._report(result)}")
        return result

    def out(self, command: Command, *, timeout: float = 60) -> str:
        """The standard output of a command that must succeed."""
        return self.run(command, timeout=timeout).out

    def spawn(
        self,
        command: Command,
        *,
        log: str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
    ) -> Process:
        """Starts a command in a session of its own, its output in `log` (in the lab)."""
        path = log or f"/run/lab/spawned-{next(self._spawned)}.log"
        if path.startswith("/run/lab/"):
            self.run(["mkdir", "-p", "/run/lab"])
        answer = self.request(
            f"start {shown(command)}",
            op="spawn",
            log=path,
            env=dict(env or {}),
            cwd=cwd,
            **self._form(command),
        )
        return Process(
            self,
            command=shown(command),
            pid=answer["pid"],
            log_path=path,
            started=answer["started"],
        )

    def read(self, path: str, *, offset: int = 0) -> bytes:
        """A file's content, from a byte of it on."""
        answer = self.request(f"read {path}", wait=60, op="read", path=path, offset=offset)
        return base64.b64decode(answer["data"])

    def text(self, path: str) -> str:
        return self.read(path).decode("utf-8", "replace")

    def write(self, path: str, data: str | bytes, mode: int | None = 0o644) -> None:
        """Writes a file in place (parents are made); mode None leaves an existing file's."""
        content = data.encode() if isinstance(data, str) else data
        self.request(
            f"write {path}",
            wait=60,
            op="write",
            path=path,
            data=base64.b64encode(content).decode(),
            mode=mode,
        )

    def wait_until(
        self,
        condition: str | Callable[[], T],
        timeout: float,
        what: str,
        *,
        every: float = 0.05,
    ) -> T | str:
        """Polls until a function answers something true (returned), or a shell command is 0.

        `what` is the end of the sentence "waited in vain for …".
        """
        timeout *= self.patience
        until = time.monotonic() + timeout
        last: object = None
        while True:
            if isinstance(condition, str):
                result = self.run(condition, timeout=60, check=False)
                if result.rc == 0:
                    return result.out
                last = self._report(result)
            else:
                value = condition()
                if value:
                    return value
                last = value
            if time.monotonic() > until:
                raise LabError(f"waited {timeout} s in vain for {what}; last seen: {last}")
            time.sleep(every)

    def time(self) -> float:
        """The lab's wall clock."""
        return float(self.request("tell the time", op="ping")["time"])

    # Evidence -----------------------------------------------------------------------------

    def capture_commands(self) -> dict[str, str]:
        """File name → shell command whose output explains a failure."""
        return {
            "dmesg.txt": "dmesg",
            "ipvsadm.txt": "ipvsadm -Sn; ipvsadm -Ln --stats; ipvsadm -Lcn",
            "network.txt": "ip -br link; ip addr; ip route; ip -6 route; ip rule; ip neigh",
            "processes.txt": "ps axfww -o pid,ppid,pgid,stat,etimes,args",
            "virsh.txt": "timeout 10 virsh list --all",
        }

    def capture_files(self) -> Sequence[str]:
        """Shell patterns of the lab's files to copy."""
        return ("/run/xenlb/state.json", "/run/lab/*.log", "/var/log/libvirt/*/*.log")

    def capture(self, directory: Path) -> None:
        """Copies the lab's logs and state into a directory; says in it what it could not get."""
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "console.txt").write_text(self.console)
        if not self.attached:
            return
        for name, command in self.capture_commands().items():
            try:
                result = self.run(f"exec 2>&1; {command}", timeout=20, check=False)
                text = result.out
            except LabError as error:
                text = str(error)
            (directory / name).write_text(text, errors="surrogateescape")
        patterns = " ".join(self.capture_files())
        try:
            paths = self.run(f"ls -d {patterns} 2>/dev/null", check=False).out.split()
            for path in paths:
                target = directory / re.sub(r"[^\w.-]+", "_", path.strip("/"))
                target.write_bytes(self.read(path)[-CHUNK:])
        except LabError as error:
            (directory / "capture-failed.txt").write_text(str(error))

    # ----------------------------------------------------------------------------------------

    @staticmethod
    def _form(command: Command) -> dict[str, Any]:
        return {"sh": command} if isinstance(command, str) else {"argv": list(command)}

    @staticmethod
    def _report(result: Result) -> str:
        parts = [result.command]
        if result.out.strip():
            parts.append("--- stdout\n" + last_lines(result.out, 60))
        if result.err.strip():
            parts.append("--- stderr\n" + last_lines(result.err, 60))
        return "\n".join(parts)
