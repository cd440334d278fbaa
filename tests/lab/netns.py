"""Network name spaces of a lab: clients that make load and plain servers that take it.

Both labs use them; what they are attached to (which bridge, which addresses) is the lab's own
business. Needs `ip` and, for load, Python in the lab (`LabHost.traffic`).
"""

from __future__ import annotations

import itertools
import json
import shlex
import signal
from pathlib import Path
from typing import Any

from tests.lab.host import Command, LabHost, Process, Result

_numbers = itertools.count(1)


class Load:
    """A running `traffic.py client`; `stop` ends it and returns its summary."""

    def __init__(self, lab: LabHost, *, process: Process, summary: str, live: str) -> None:
        self.lab = lab
        self.process = process
        self._summary = summary
        self._live = live

    def live(self) -> list[dict[str, Any]]:
        """What was counted so far, one entry a second."""
        found = self.lab.run(["cat", self._live], check=False)
        return [json.loads(line) for line in found.out.splitlines() if line.endswith("}")]

    def wait(self, timeout: float) -> dict[str, Any]:
        """The summary of a load with a duration."""
        if status := self.process.wait(timeout):
            raise AssertionError(f"the load ended with {status}:\n{self.process.log()}")
        summary: dict[str, Any] = json.loads(self.lab.text(self._summary))
        return summary

    def stop(self, timeout: float = 30) -> dict[str, Any]:
        self.process.signal(signal.SIGTERM)
        return self.wait(timeout)


class NetNs:
    """A network name space with an `eth0`, made by the lab."""

    def __init__(self, lab: LabHost, name: str, *, address: str) -> None:
        self.lab = lab
        self.name = name
        self.address = address

    def argv(self, command: Command) -> list[str]:
        inner = ["/bin/sh", "-c", command] if isinstance(command, str) else list(command)
        return ["ip", "netns", "exec", self.name, *inner]

    def run(self, command: Command, *, timeout: float = 60, check: bool = True) -> Result:
        return self.lab.run(self.argv(command), timeout=timeout, check=check)

    def out(self, command: Command) -> str:
        return self.run(command).out

    def spawn(self, command: Command, *, log: str | None = None) -> Process:
        return self.lab.spawn(self.argv(command), log=log)

    def load(
        self,
        target: str,
        *,
        rate: float = 10,
        duration: float = 0,
        timeout: float = 2,
        path: str = "/",
        bind: str | None = None,
        reuse_ports: str | None = None,
        downloads: int = 0,
        download_seconds: float = 10,
        plain: bool = False,
        udp: bool = False,
    ) -> Load:
        """Starts load on ADDRESS:PORT; without a duration (seconds) it runs until stopped."""
        stem = f"/run/lab/load-{self.name}-{next(_numbers)}"
        options: dict[str, object] = {
            "rate": rate,
            "duration": duration,
            "timeout": timeout,
            "path": path,
            "bind": bind,
            "reuse-ports": reuse_ports,
            "downloads": downloads,
            "download-seconds": download_seconds,
            "summary": f"{stem}.json",
            "live": f"{stem}.live",
        }
        given = [f"--{key}={value}" for key, value in options.items() if value is not None]
        given += [flag for flag, on in (("--plain", plain), ("--udp", udp)) if on]
        process = self.spawn([*self.lab.traffic, "client", target, *given], log=f"{stem}.log")
        self.lab.wait_until(
            f"test -s {stem}.log || ! kill -0 {process.pid}", 120, f"the load of {self.name}"
        )
        return Load(self.lab, process=process, summary=f"{stem}.json", live=f"{stem}.live")

    def fetch(self, target: str, *, timeout: float = 10, udp: bool = False) -> str:
        """One request to ADDRESS:PORT; the name of the server that answered.

        A request that fails raises AssertionError with the step and the reason.
        """
        python, tool = self.lab.traffic[:-1], Path(self.lab.traffic[-1]).with_name("fetch.py")
        address, _, port = target.rpartition(":")
        timeout *= self.lab.patience
        command = [*python, str(tool), address.strip("[]"), port, str(timeout)]
        result = self.run([*command, *(["udp"] if udp else [])], timeout=timeout + 30, check=False)
        if result.rc:
            raise AssertionError(f"{self.name} → {target}: {result.out.strip()}{result.err}")
        return result.out.strip()

    def burst(
        self, target: str, count: int, *, timeout: float = 10, udp: bool = False
    ) -> dict[str, Any]:
        """`count` requests in one second; the summary."""
        timeout *= self.lab.patience
        command = [*self.lab.traffic, "client", target, f"--rate={count}", f"--count={count}"]
        command += [f"--timeout={timeout}", *(["--udp"] if udp else [])]
        out = self.run(command, timeout=timeout + 30).out
        summary: dict[str, Any] = json.loads(out.partition("\n")[2])
        return summary

    def serve(
        self, *listen: str, udp: tuple[str, ...] = (), name: str | None = None, more: str = ""
    ) -> Process:
        """Runs `traffic.py server` on ADDRESS:PORTs and waits until it serves."""
        command = [*self.lab.traffic, "server", "--name", name or self.name]
        for text in listen:
            command += ["--listen", text]
        for text in udp:
            command += ["--udp", text]
        log = f"/run/lab/server-{self.name}-{next(_numbers)}.log"
        process = self.spawn([*command, *shlex.split(more)], log=log)
        self.lab.wait_until(f"grep -q 'serving on' {log}", 30, f"{self.name} to serve")
        return process

    def delete(self) -> None:
        """Ends what runs in it and removes it with its interfaces."""
        self.lab.run(
            f"[ -e /run/netns/{self.name} ] || exit 0; pids=$(ip netns pids {self.name}); "
            f'[ -z "$pids" ] || kill -9 $pids; ip netns delete {self.name}'
        )
