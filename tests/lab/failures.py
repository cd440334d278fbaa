"""Servers that die under load, and who takes them out how soon: xenlb beside its peers.

The same two containers stand behind a service address of each balancer, in one kernel's table and
under the same sysctls; each address has a load of its own. A server dies for all of them at the
same moment, stays dead until all that notice have taken it out, and comes back. What is measured is
when the kernel's table has changed (tablewatch.py), and which requests have failed.

Containers share the director's kernel, which goes on answering for a frozen one: it accepts
connections for it until the listener's queue is full. A frozen machine answers nothing, so here its
packets are dropped, too, from the moment on at which libvirt is asked to freeze it. Packets are
dropped where they come in: what a local rule rejects on its way out says nothing about the server
(EPERM), and xenlb takes nobody out for that.
"""

from __future__ import annotations

import itertools
import json
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.lab import peers
from tests.lab.agent import LabAgent
from tests.lab.host import CHECKOUT, LabError, venv_directory
from tests.lab.netns import Load
from tests.lab.uml import UmlLab, mac_of
from tests.lab.uml.guests import LxcGuest, lxc_xml

SERVERS = {"web1": "10.0.0.11", "web2": "10.0.0.12"}
RATE = 20  # requests a second to each address; half of them go to the server that dies
TIMEOUT = 2.0  # seconds that a request may take
PATIENCE = 30.0  # seconds until a server that is still in the table stays there

# Balancer → its service address.
XENLB = {"xenlb": "192.0.2.10", "xenlb, fall: 1": "192.0.2.11"}
KEEPALIVED = {"keepalived": "192.0.2.12", "keepalived, retry 0": "192.0.2.13"}
LDIRECTORD = {"ldirectord": "192.0.2.14"}
VIPS = XENLB | KEEPALIVED | LDIRECTORD
# Type of check → how each balancer is told to do it every second. The peers' numbers of retries are
# their own defaults, where they are not named.
TIMES = "interval: 1s, timeout: 900ms"
HTTP_GET = "HTTP_GET {{ url {{ path /\n status_code 200\n }}\n connect_timeout 1\n{more} }}"
CHECKS = {
    "tcp": {
        "xenlb": f"{{type: tcp, {TIMES}}}",
        "xenlb, fall: 1": f"{{type: tcp, {TIMES}, fall: 1}}",
        "keepalived": "TCP_CHECK { connect_timeout 1 }",
        "keepalived, retry 0": "TCP_CHECK { connect_timeout 1\nretry 0 }",
        "ldirectord": "checktype=connect",
    },
    "http": {
        "xenlb": f"{{type: http, {TIMES}}}",
        "xenlb, fall: 1": f"{{type: http, {TIMES}, fall: 1}}",
        "keepalived": HTTP_GET.format(more=""),
        "keepalived, retry 0": HTTP_GET.format(more="retry 0\n"),
        "ldirectord": 'checktype=negotiate\n    service=http\n    request="/"\n    receive="web"',
    },
}

CONFIG = """\
libvirt: {{uris: ["lxc:///"]}}
director: {{interface: front0, sysctls: apply}}
services:
{services}"""
SERVICE = """\
  s{number}:
    address: {vip}
    ports: [80]
    scheduler: rr
    forwarding: masquerade
    check: {check}
    servers:
      - {{guest: web1, address: 10.0.0.11}}
      - {{guest: web2, address: 10.0.0.12}}
"""
# A server that was killed starts again when it is told to.
INIT = """
exec >$GUEST_LOG 2>&1
ip link set lo up
while :; do
    TRAFFIC server --name $GUEST --listen 0.0.0.0:80
    until [ -e /run/lab/again-$GUEST ]; do sleep 0.1; done
    rm /run/lab/again-$GUEST
done
"""
DROP = "iptables-legacy -t mangle {what} PREROUTING -s {address} -j DROP"

# Death → how it comes and how it goes, as shell commands in the lab.
DROPPED = [DROP.format(what=what, address="{address}") for what in ("-I", "-D")]
PID = "$(pgrep -f '[s]erver --name {name} ')"
DEATHS = {
    "process killed": (f"kill -9 {PID}", "touch /run/lab/again-{name}"),
    # It accepts connections and says nothing, and libvirt does not know.
    "process stopped": (f"kill -STOP {PID}", f"kill -CONT {PID}"),
    "packets dropped": (DROPPED[0], DROPPED[1]),
    "virsh suspend": (
        f"{DROPPED[0]}; virsh -q -c lxc:/// suspend {{name}}",
        f"virsh -q -c lxc:/// resume {{name}}; {DROPPED[1]}",
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One death. Times are the lab's clock (s): `died` and `revived` when it was begun; of each
    balancer, when the server was out of the table or at weight 0, and back; None: it was not."""

    death: str
    server: str
    died: float
    revived: float
    out: Mapping[str, float | None]
    back: Mapping[str, float | None]


@dataclass(slots=True, kw_only=True)
class Outcome:
    rounds: list[Round] = field(default_factory=list)
    summaries: dict[str, dict[str, Any]] = field(default_factory=dict)

    def failed(self, balancer: str, death: str | None = None) -> int:
        """Requests to the balancer that failed because of this kind of death, or of all."""
        starts = [each.died - TIMEOUT for each in self.rounds]
        return sum(
            any(
                start <= failure["t"] < end
                for each, start, end in zip(
                    self.rounds, starts, [*starts[1:], float("inf")], strict=True
                )
                if death in (None, each.death)
            )
            for failure in self.summaries[balancer]["failures"]
        )

    def table(self) -> str:
        """Seconds (median and most) until out and until back, and failed requests a death."""
        lines = [
            f"{'':<18} {'':<20} {'out s p50':>10} {'max':>6} {'back s p50':>11} {'max':>6}"
            f" {'failed':>7}  of {RATE} requests/s, a death"
        ]
        for death in dict.fromkeys(each.death for each in self.rounds):
            rounds = [each for each in self.rounds if each.death == death]
            for balancer in VIPS:
                outs = [_since(each.died, each.out[balancer]) for each in rounds]
                backs = [_since(each.revived, each.back[balancer]) for each in rounds]
                failed = self.failed(balancer, death) / len(rounds)
                lines.append(
                    f"{death:<18} {balancer:<20} {_middle(outs):>10} {_most(outs):>6}"
                    f" {_middle(backs):>11} {_most(backs):>6} {failed:>7.1f}"
                )
        return "\n".join(lines)


def _since(begun: float, at: float | None) -> float:
    return float("inf") if at is None else at - begun


def _middle(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds):.2f}"


def _most(seconds: Sequence[float]) -> str:
    return f"{max(seconds):.2f}"


class Arena:
    """The servers, the balancers before them, and who watches the table."""

    def __init__(self, lab: UmlLab, check: str) -> None:
        self.lab = lab
        checks = CHECKS[check]
        lab.start_libvirtd()
        for name, address in SERVERS.items():
            self._start(name, address)
        peers.sysctls(lab, "masquerade")
        addresses = list(SERVERS.values())
        checked = {vip: checks[name] for name, vip in KEEPALIVED.items()}
        peers.keepalived(lab, checked, method="masquerade", addresses=addresses)
        for name, vip in LDIRECTORD.items():
            peers.ldirectord(lab, vip, checks[name], method="masquerade", addresses=addresses)
        services = "".join(
            SERVICE.format(number=number, vip=vip, check=checks[name])
            for number, (name, vip) in enumerate(XENLB.items())
        )
        self.agent = LabAgent(lab, CONFIG.format(services=services))
        self.agent.start()
        self.client = lab.client("client", "192.0.2.100")
        command = [str(venv_directory() / "bin/python"), "-m", "tests.lab.tablewatch"]
        self.watch = lab.spawn(command, cwd=str(CHECKOUT), log="/run/lab/table.log")
        for address in addresses:
            if missing := [name for name, at in self._when(address, up=True).items() if at is None]:
                raise LabError(f"{address} did not come into service of {missing}")

    def _start(self, name: str, address: str) -> None:
        guest = LxcGuest(self.lab, name=name, address=address)
        init = INIT.replace("TRAFFIC", " ".join(self.lab.traffic))
        environment = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "GUEST": name,
            "GUEST_LOG": guest.log_path,
        }
        guest.define(
            lxc_xml(
                name=name,
                address=address,
                mac=mac_of(address),
                metadata=None,
                init=["/bin/sh", "-c", init],
                environment=environment,
            )
        )
        guest.start()
        guest.wait_serving()

    def play(self, deaths: Sequence[str], rounds: int) -> Outcome:
        """`rounds` of each of these deaths, of one server after the other."""
        outcome = Outcome()
        servers = itertools.cycle(SERVERS.items())
        with self._load(outcome):
            for death, _ in itertools.product(deaths, range(rounds)):
                outcome.rounds.append(self._round(death, *next(servers)))
        return outcome

    @contextmanager
    def _load(self, outcome: Outcome) -> Iterator[None]:
        loads: dict[str, Load] = {}
        try:
            for name, vip in VIPS.items():
                loads[name] = self.client.load(f"{vip}:80", rate=RATE, timeout=TIMEOUT)
            time.sleep(2)
            yield
            time.sleep(TIMEOUT)
        finally:
            for name, load in loads.items():
                outcome.summaries[name] = load.stop()

    def _round(self, death: str, name: str, address: str) -> Round:
        come, go = DEATHS[death]
        died = self._do(come.format(name=name, address=address))
        out = self._when(address, up=False, since=died)
        time.sleep(1)
        revived = self._do(go.format(name=name, address=address))
        back = self._when(address, up=True, since=revived)
        # What fails after this is counted for the next one.
        time.sleep(TIMEOUT + 1)
        return Round(death=death, server=name, died=died, revived=revived, out=out, back=back)

    def _do(self, command: str) -> float:
        """When it was begun."""
        return float(self.lab.out(f"date +%s.%N; {command}").split()[0])

    def _when(self, address: str, *, up: bool, since: float = 0.0) -> dict[str, float | None]:
        """When each balancer has the server in service, or no more; those that never have: None."""
        until = time.monotonic() + PATIENCE
        while True:
            found = {vip: self._first(vip, address, up=up, since=since) for vip in VIPS.values()}
            if None not in found.values() or time.monotonic() > until:
                return {name: found[vip] for name, vip in VIPS.items()}
            time.sleep(0.2)

    def _first(self, vip: str, address: str, *, up: bool, since: float) -> float | None:
        """The first moment since then at which it was so, unless it was so all along."""
        was = not up
        for line in self.watch.log().splitlines():
            seen = json.loads(line)
            now = seen["table"].get(vip, {}).get(address, 0) > 0
            if seen["t"] >= since and now is up and was is not up:
                return float(seen["t"])
            was = now
        return None
