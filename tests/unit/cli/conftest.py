"""The command as a process, against a small agent: a control server with prepared answers."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.unit.cli.forks import Forks
from xenlb.control.protocol import ControlError
from xenlb.control.server import ControlServer, Handler

COMMAND = [sys.executable, "-I", "-m", "xenlb.cli"]
Request = Mapping[str, object]
Xenlb = Callable[..., "subprocess.CompletedProcess[str]"]


class SmallAgent:
    """Answers each verb from `answers`, and keeps the requests in `requests`.

    An answer is a value, a ControlError, a function of the request, or for events a list.
    """

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self.answers: dict[str, object] = {}
        self.requests: list[Request] = []
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()

    def serve(self, started: threading.Event) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve(started))

    async def _serve(self, started: threading.Event) -> None:
        handlers = {
            verb: Handler(self._handler(verb))
            for verb in (
                *("status", "why", "reload", "progress", "debug-state"),
                *("drain", "undrain", "drain-all", "undrain-all"),
            )
        }
        async with ControlServer(self.socket, {**handlers, "events": Handler(self._events)}):
            started.set()
            await self._stop.wait()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)

    def _handler(self, verb: str) -> Callable[[Request], Awaitable[object]]:
        async def handle(request: Request) -> object:
            self.requests.append(request)
            answer = self.answers[verb]
            if callable(answer):
                answer = answer(request)
            if isinstance(answer, ControlError):
                raise answer
            return answer

        return handle

    async def _events(self, request: Request) -> AsyncIterator[object]:
        self.requests.append(request)
        events = self.answers["events"]
        assert isinstance(events, list)
        for event in events:
            yield event
        if request["follow"]:
            await asyncio.Event().wait()


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[SmallAgent]:
    small = SmallAgent(tmp_path / "control.sock")
    started = threading.Event()
    thread = threading.Thread(target=small.serve, args=(started,))
    thread.start()
    assert started.wait(10)
    yield small
    small.stop()
    thread.join(10)


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    forks = Forks()
    yield forks
    forks.close()


@pytest.fixture
def xenlb(forks: Forks, tmp_path: Path) -> Xenlb:
    """Runs `xenlb ARGUMENTS` to its end, with the socket of this test's agent."""

    def call(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        done = forks.run(
            arguments,
            {
                "PATH": "/usr/bin:/bin",
                "LC_ALL": "C.UTF-8",
                "TZ": "UTC",
                "XENLB_SOCKET": str(tmp_path / "control.sock"),
                "XENLB_CONFIG": str(tmp_path / "xenlb.yaml"),
                "XENLB_STATE": str(tmp_path / "state.json"),
                "XENLB_LAST_GOOD": str(tmp_path / "last-good.yaml"),
                **environment,
            },
        )
        return subprocess.CompletedProcess(
            done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
        )

    return call
