"""The agent inside a lab: started, asked, killed and restarted as an operator or a crash would.

In User-mode Linux it runs from the checkout's virtual environment; in the Xen lab it is the service
that `make install` has put there, under systemd.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from typing import Any

from tests.lab.host import LabError, LabHost, Process, Result, last_lines, venv_directory

CONFIG = "/etc/xenlb/xenlb.yaml"
SOCKET = "/run/xenlb/control.sock"
STATE = "/run/xenlb/state.json"


class LabAgent:
    """An agent of a lab, by default run from the checkout's virtual environment."""

    def __init__(self, lab: LabHost, config: str) -> None:
        self.lab = lab
        self.command = [str(venv_directory() / "bin/python"), "-m", "xenlb.cli"]
        self._process: Process | None = None
        self._runs = 0
        lab.run("mkdir -p /etc/xenlb /run/xenlb")
        self.configure(config)

    def configure(self, config: str) -> None:
        """Replaces the configuration as editors do; a running agent takes it by itself."""
        self.lab.write(CONFIG + ".new", config)
        self.lab.run(["mv", CONFIG + ".new", CONFIG])

    # --- running -----------------------------------------------------------------------------

    def start(self, *, ready: float = 60) -> None:
        """Starts it and waits until it answers."""
        self.launch()
        self.wait_ready(ready)

    def launch(self) -> None:
        self._runs += 1
        self._process = self.lab.spawn(
            [*self.command, "--verbose", "run"], log=f"/run/lab/agent-{self._runs}.log"
        )

    def wait_ready(self, timeout: float = 60) -> None:
        def answers() -> bool:
            if not self.alive():
                raise LabError(f"the agent ended:\n{last_lines(self.log())}")
            return self.xenlb("status", "--json", check=False).rc == 0

        self.lab.wait_until(answers, timeout, "the agent to answer")

    def alive(self) -> bool:
        return self.process.alive()

    @property
    def process(self) -> Process:
        if self._process is None:
            raise LabError("the agent was not started")
        return self._process

    def stop(self, timeout: float = 20) -> None:
        self.process.signal(signal.SIGTERM)
        self.process.wait(timeout)

    def kill(self) -> None:
        self.process.signal(signal.SIGKILL)
        self.process.wait(20)

    def log(self) -> str:
        return "" if self._process is None else self._process.log()

    # --- asking ------------------------------------------------------------------------------

    def xenlb(self, *arguments: str, check: bool = True, timeout: float = 60) -> Result:
        return self.lab.run([*self.command, *arguments], check=check, timeout=timeout)

    def status(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.xenlb("status", "--json").out)
        return answer

    def why(self, guest: str) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.xenlb("why", guest, "--json").out)
        return answer

    def servers(self, service: str | None = None) -> dict[str, dict[str, Any]]:
        """Servers by guest name, or address for hosts; of the first port of one service."""
        found: dict[str, dict[str, Any]] = {}
        for entry in self.status()["services"]:
            if service in (None, entry["name"]):
                for server in entry["servers"]:
                    found.setdefault(server["guest"] or server["address"], server)
        return found

    def wait_server(
        self, name: str, what: Callable[[dict[str, Any]], bool], timeout: float = 60
    ) -> dict[str, Any]:
        """Waits until that server of the status is as `what` says, and returns it."""
        until = time.monotonic() + timeout * self.lab.patience
        server: dict[str, Any] | None = None
        while time.monotonic() < until:
            server = self.servers().get(name)
            if server is not None and what(server):
                return server
            time.sleep(0.1)
        raise LabError(f"{name} did not get there within {timeout:g} s: {server}")

    def wait_serving(self, *names: str, timeout: float = 60) -> None:
        for name in names:
            self.wait_server(name, lambda s: s["phase"] == "serving" and s["weight"] > 0, timeout)

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.xenlb("events", "--json").out.splitlines()]

    def table(self) -> str:
        """What ipvsadm says the kernel has."""
        return self.lab.run(["ipvsadm", "-Sn"]).out


class ServiceAgent(LabAgent):
    """The installed agent as the service xenlb.service."""

    def __init__(self, lab: LabHost, config: str) -> None:
        super().__init__(lab, config)
        self.command = [lab.out("command -v xenlb").strip()]
        self._cursor = "@0"

    def launch(self) -> None:
        self._cursor = f"@{self.lab.time():.6f}"
        self.lab.run(["systemctl", "reset-failed", "xenlb"], check=False)
        self.lab.run(["systemctl", "start", "xenlb"], timeout=120)

    def alive(self) -> bool:
        return self.lab.run(["systemctl", "is-active", "xenlb"], check=False).rc == 0

    def stop(self, timeout: float = 20) -> None:
        self.lab.run(["systemctl", "stop", "xenlb"], timeout=timeout + 30)

    def kill(self) -> None:
        """SIGKILL, which systemd answers by starting it again."""
        self.lab.run(["systemctl", "kill", "-s", "KILL", "xenlb"])

    def log(self) -> str:
        """What it has logged since its last start."""
        return self.lab.out(
            ["journalctl", "-u", "xenlb", "--since", self._cursor, "-o", "short-precise"]
        )
