"""What an observer in Dom0 has seen (it runs observer.py there), and figures made of it.

Asking a lab by commands costs a process each time; here tests wait by reading the end of a file
that the observer writes. All times are seconds of Dom0's CLOCK_BOOTTIME.
"""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.lab.host import LabError, LabHost, Process, Result

PROGRAM = Path(__file__).with_name("observer.py")
PLACE = "/run/lab-observer"
PYTHON = ["/usr/bin/python3", "-IS"]


@dataclass(frozen=True, slots=True)
class Seen:
    """One line of the observer; `data` is what the line has besides."""

    at: float
    what: str
    data: dict[str, Any]

    @property
    def text(self) -> str:
        """Of a line of the agent's journal, after the name of its guest."""
        return f"{self.data.get('guest') or ''}: {self.data['text']}"


class Observer:
    """The observer of one lab; `seen` is all it has said so far."""

    def __init__(self, lab: LabHost) -> None:
        self.lab = lab
        self.seen: list[Seen] = []
        self._offset = 0
        self._pending = b""
        self._asked = 0
        self._runs = 0
        self._process: Process | None = None
        self._wall = 0.0  # to be added to get the wall clock

    def start(self) -> None:
        self.lab.run(["rm", "-rf", PLACE])
        self.lab.write(f"{PLACE}/observer.py", PROGRAM.read_bytes())
        self._process = self.lab.spawn(
            [*PYTHON, f"{PLACE}/observer.py"], log=f"{PLACE}/observer.log"
        )
        self.wait(0, "ready", lambda seen: seen.data["source"] == "kernel")
        self.wait(0, "ready", lambda seen: seen.data["source"] == "store")
        clock = self.find(0, "clock")[0]
        self._wall = clock.data["wall"] - clock.at

    def stop(self) -> None:
        if self._process is not None and self._process.alive():
            self._process.terminate()

    # --- what it has seen --------------------------------------------------------------------

    def mark(self) -> int:
        """Where the next lines will be: for `find` and `wait`."""
        self._read()
        return len(self.seen)

    def find(
        self, since: int, what: str, fits: Callable[[Seen], bool] = lambda seen: True
    ) -> list[Seen]:
        self._read()
        return [seen for seen in self.seen[since:] if seen.what == what and fits(seen)]

    def wait(
        self,
        since: int,
        what: str,
        fits: Callable[[Seen], bool] = lambda seen: True,
        *,
        timeout: float = 240,
        wanted: str = "",
    ) -> Seen:
        """The first such line since a mark, as soon as there is one."""
        until = time.monotonic() + timeout * self.lab.patience
        looked = since
        while True:
            self._read()
            for seen in self.seen[looked:]:
                if seen.what == what and fits(seen):
                    return seen
            looked = max(looked, len(self.seen))
            if time.monotonic() > until:
                last = "\n".join(
                    f"{seen.at:.3f} {seen.what} {seen.data}" for seen in self.seen[-20:]
                )
                raise LabError(f"{timeout:g} s without {wanted or what}; last seen:\n{last}")
            time.sleep(0.2)  # each look costs the emulated Dom0 some milliseconds

    def changes(self, since: int, address: str, op: str | None = None) -> list[Seen]:
        """What happened to a server in the kernel's table."""
        return self.find(
            since, "kernel", lambda s: s.data["address"] == address and op in (None, s.data["op"])
        )

    def wait_change(
        self, since: int, address: str, op: str, weight: int | None = None, *, timeout: float = 240
    ) -> Seen:
        """The kernel's `op` (add, edit, del) on a server, with that weight if one is given."""
        return self.wait(
            since,
            "kernel",
            lambda seen: (
                (seen.data["address"], seen.data["op"]) == (address, op)
                and weight in (None, seen.data["weight"])
            ),
            timeout=timeout,
            wanted=f"{op} of {address} in the kernel",
        )

    def wait_note(
        self, since: int, kind: str, *words: str, guest: str | None = None, timeout: float = 240
    ) -> Seen:
        """The first note of that kind, about that guest, which has all these words."""
        return self.wait(
            since,
            "agent",
            lambda seen: (
                seen.data.get("kind") == kind
                and guest in (None, seen.data["guest"])
                and all(word in seen.text for word in words)
            ),
            timeout=timeout,
            wanted=f"a note {kind} {words} about {guest or 'anything'}",
        )

    def status(self) -> dict[str, Any]:
        """The agent's status, asked for now; through the socket, as `xenlb status --json`."""
        assert self._process is not None
        since = self.mark()
        self._asked += 1
        self._process.signal(signal.SIGUSR1)
        number = self._asked
        answer = self.wait(since, "status", lambda seen: seen.data["number"] == number, timeout=60)
        if answer.data["status"] is None:
            raise LabError("the agent does not answer")
        status: dict[str, Any] = answer.data["status"]
        return status

    def started(self, result: Result) -> float:
        """When a command began."""
        return result.started - self._wall

    def ended(self, result: Result) -> float:
        return result.ended - self._wall

    def knock(self, address: str, port: int) -> Callable[[], float]:
        """Notes when a server begins to take connections; call what it returns to get the time."""
        self._runs += 1
        log = f"{PLACE}/knock-{self._runs}.log"
        command = [*PYTHON, f"{PLACE}/observer.py", "knock", address, str(port)]
        process = self.lab.spawn(command, log=log)

        def answered() -> float:
            process.wait(180)
            return float(self.lab.text(log))

        return answered

    def _read(self) -> None:
        data = self.lab.read(f"{PLACE}/observer.log", offset=self._offset)
        self._offset += len(data)
        *lines, self._pending = (self._pending + data).split(b"\n")
        for line in lines:
            try:
                entry = json.loads(line)
            except ValueError:
                raise LabError(f"the observer failed: {line.decode(errors='replace')}") from None
            self.seen.append(Seen(entry.pop("at"), entry.pop("what"), entry))


@dataclass
class Figures:
    """Durations by name, in seconds, and the table of them."""

    samples: dict[str, list[float]] = field(default_factory=dict)

    def note(self, name: str, seconds: float) -> None:
        self.samples.setdefault(name, []).append(seconds)

    def table(self) -> str:
        width = max((len(name) for name in self.samples), default=0)
        lines = [f"{'milliseconds':{width}}  {'n':>4} {'min':>8} {'p50':>8} {'p99':>8} {'max':>8}"]
        for name, seconds in self.samples.items():
            ordered = sorted(seconds)
            figures = (
                ordered[0],
                percentile(ordered, 50),
                percentile(ordered, 99),
                ordered[-1],
            )
            shown = " ".join(f"{figure * 1000:8.1f}" for figure in figures)
            lines.append(f"{name:{width}}  {len(ordered):4} {shown}")
        return "\n".join(lines)


def percentile(ordered: list[float], share: float) -> float:
    """Nearest rank: a value that was measured, none in between."""
    return ordered[max(0, math.ceil(len(ordered) * share / 100) - 1)]
