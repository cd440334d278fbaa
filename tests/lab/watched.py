"""The agent under close watch: its status and the kernel's table, side by side.

`status` here asks the control socket itself, because `xenlb status` costs half a second in the
lab and tests ask often; `agree` holds what `xenlb status --json` says against `ipvsadm -Sn`.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from tests.lab.agent import SOCKET, LabAgent
from tests.lab.host import LabError

# Service as ipvsadm names it ("-t 192.0.2.10:80", "-f 7") → server → (-m|-g|-i, weight).
Servers = dict[str, tuple[str, int]]
Shown = dict[str, Servers]

ASK = """
import json, socket, sys
s = socket.socket(socket.AF_UNIX)
s.settimeout(60)
s.connect(sys.argv[1])
s.sendall(json.dumps({"verb": sys.argv[2]}).encode() + b"\\n")
sys.stdout.write(s.makefile().readline())
"""

KINDS = {"masquerade": "-m", "gatewaying": "-g", "tunnel": "-i"}
PROTOCOLS = {"tcp": "-t", "udp": "-u", "sctp": "--sctp-service"}


def parsed(saved: str) -> Shown:
    """The output of `ipvsadm -Sn`."""
    found: Shown = {}
    for line in saved.splitlines():
        words = shlex.split(line)
        service = " ".join(words[1:3])
        if words[0] == "-A":
            found[service] = {}
            continue
        options = {word: words[place + 1 : place + 2] for place, word in enumerate(words)}
        kind = next(word for word in words if word in KINDS.values())
        found[service][options["-r"][0]] = (kind, int(options["-w"][0]))
    return found


def shown(status: Mapping[str, Any]) -> Shown:
    """What a status says that the kernel has, in the words of ipvsadm."""
    found: Shown = {}
    for service in status["services"]:
        if not service["in_table"]:
            continue
        if service["fwmark"] is not None:
            name = f"-f {service['fwmark']}"
        else:
            name = f"{PROTOCOLS[service['protocol']]} {place(service['address'], service['port'])}"
        servers = found.setdefault(name, {})
        for server in service["servers"]:
            if server["in_table"]:
                key = place(server["address"], server["port"])
                servers[key] = (KINDS[service["forwarding"]], server["weight"])
    return found


def place(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


class WatchedAgent(LabAgent):
    """See the module's docstring."""

    def _ask(self, verb: str) -> dict[str, Any]:
        answer = self.lab.run(["/usr/bin/python3", "-IS", "-c", ASK, SOCKET, verb], timeout=90).out
        said: dict[str, Any] = json.loads(answer)
        if "ok" not in said:
            raise LabError(f"the agent does not {verb}: {said}")
        ok: dict[str, Any] = said["ok"]
        return ok

    def status(self) -> dict[str, Any]:
        return self._ask("status")

    def use(self, config: str) -> None:
        """A new configuration, of which the kernel has heard when this returns.

        By the order to reload: a file that changes by itself and removes a service is taken up
        seconds later.
        """
        self.configure(config)
        self._ask("reload")

    def use_by_itself(self, config: str) -> None:
        """The same, by the change of the file alone."""
        before = self.status()["config"]["loaded"]
        self.configure(config)
        self.lab.wait_until(
            lambda: self.status()["config"]["loaded"] != before, 30, "the file to be taken up"
        )

    def kernel(self) -> Shown:
        return parsed(self.table())

    def servers_of(self, service: str) -> Servers:
        """What the kernel has under a service named as ipvsadm names it; {} without it."""
        return self.kernel().get(service, {})

    def wait_kernel(self, service: str, servers: Servers, timeout: float = 60) -> None:
        """Until the kernel's service has exactly these servers."""
        self.lab.wait_until(
            lambda: self.servers_of(service) == servers or None,
            timeout,
            f"{service} to have {servers}; the table is {self.table()}",
        )

    def agree(self, *, foreign: Iterable[tuple[str, str | None]] = ()) -> Shown:
        """Asserts that `xenlb status --json` shows what the kernel has, but for what is foreign:
        services, and servers of services. Polls: between the two looks something may happen."""
        seen: list[tuple[Shown, Shown]] = []

        def equal() -> Shown | None:
            kernel = self.kernel()
            for service, server in foreign:
                if server is None:
                    del kernel[service]
                else:
                    del kernel[service][server]
            said = shown(json.loads(self.xenlb("status", "--json").out))
            seen[:] = [(kernel, said)]
            return kernel if kernel == said else None

        try:
            self.lab.wait_until(equal, 5, "status and table to agree")
        except LabError:
            assert seen[0][1] == seen[0][0], "`xenlb status --json` shows another table"
        return seen[0][0]

    def journal(self) -> str:
        return "\n".join(entry["text"] for entry in self.events())
