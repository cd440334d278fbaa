"""What the hypervisor room tells in a lab: runs listen.py there and reads its lines."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from tests.lab.host import LabError, LabHost, Process, last_lines, venv_directory

PROGRAM = Path(__file__).with_name("listen.py")
INSTALLED = "/usr/local/lib/xenlb/bin/python"

Told = dict[str, Any]


class Listener:
    """A context manager; `told` is every event so far, oldest first."""

    def __init__(self, lab: LabHost, uri: str, *, hooks: bool = False) -> None:
        self.lab = lab
        self.uri = uri
        self._words = [uri, "hooks"] if hooks else [uri]
        self._process: Process | None = None

    def __enter__(self) -> Self:
        there = self.lab.run(["test", "-x", INSTALLED], check=False).rc == 0
        python = INSTALLED if there else str(venv_directory() / "bin/python")
        self.lab.write("/run/lab/listen.py", PROGRAM.read_bytes())
        name = self.uri.partition(":")[0]
        self._log = f"/run/lab/listen-{name}.log"
        self.lab.write(self._log, "")
        self.lab.run(["mkdir", "-p", "/run/xenlb"])
        self._process = self.lab.spawn([python, "/run/lab/listen.py", *self._words], log=self._log)
        self.wait(lambda e: e["event"] == "GuestsListed", "the listing", timeout=120)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate(30)
        self._process = None

    def stall(self) -> None:
        """Holds its event loop for 0.3 s."""
        assert self._process is not None
        self._process.signal(signal.SIGUSR1)

    @property
    def told(self) -> list[Told]:
        lines = self.lab.text(self._log).splitlines()
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]

    def log(self) -> str:
        return self.lab.text(self._log)

    def logged(self, text: str, *, after: float = 0) -> list[float]:
        """When a line with that text was logged."""
        lines = [line.split(" ", 1) for line in self.log().splitlines() if text in line]
        return [float(line[0]) for line in lines if float(line[0]) > after]

    def since(self, moment: float, guest: str | None = None) -> list[Told]:
        """Events after a moment of the lab's clock, without those that only describe."""
        dull = {"MetadataChanged", "AddressesFound", "GuestsListed", "Hook"}
        return [
            event
            for event in self.told
            if event["t"] > moment
            and event["event"] not in dull
            and (guest is None or event.get("guest") == guest)
        ]

    def names(self, moment: float, guest: str) -> list[str]:
        return [event["event"] for event in self.since(moment, guest)]

    def calls(self, moment: float, guest: str) -> list[tuple[str, int | None]]:
        """Calls of the hook script after a moment: operation and domain id."""
        return [
            (event["operation"], event["domid"])
            for event in self.told
            if event["event"] == "Hook" and event["t"] > moment and event["guest"] == guest
        ]

    def wait_calls(self, moment: float, guest: str, *calls: tuple[str, int | None]) -> None:
        """Until exactly these calls were heard."""
        self.lab.wait_until(
            lambda: self.calls(moment, guest) == list(calls),
            60,
            f"the calls {calls}; there are {self.calls(moment, guest)}",
            every=0.1,
        )

    def wait(
        self, wanted: Callable[[Told], object], what: str, *, after: float = 0, timeout: float = 60
    ) -> Told:
        """The first event after a moment that is wanted."""

        def found() -> Told | None:
            return next((e for e in self.told if e["t"] > after and wanted(e)), None)

        try:
            event = self.lab.wait_until(found, timeout, what, every=0.1)
        except LabError as error:
            raise LabError(f"{error}\nits log ends:\n{last_lines(self.log())}") from None
        assert isinstance(event, dict)
        return event

    def wait_for(
        self, name: str, guest: str, *, after: float = 0, timeout: float = 60, **fields: object
    ) -> Told:
        def wanted(event: Told) -> bool:
            return (
                event["event"] == name
                and event.get("guest") == guest
                and all(event.get(key) == value for key, value in fields.items())
            )

        what = f"{name} of {guest} {fields or ''}"
        return self.wait(wanted, what, after=after, timeout=timeout)
