"""Rounds of taking a guest down under load, and what the clients noticed: the point of it all.

A stage is a lab with two Debian guests behind a service, a client that asks many times a second
(each a new connection, no retry, source ports that come round every few seconds) and never has
fewer than DOWNLOADS downloads of 10 s under way. A round takes one of the two guests down in
one of the WAYS, waits until it is gone (or back), starts it again, and goes on with the other. The
load runs through all rounds of a way; its summary is the result.

The peers take the same guests out as operators do without xenlb.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from tests.lab.agent import LabAgent
from tests.lab.host import LabError, LabHost, Result
from tests.lab.netns import NetNs

VIP = "192.0.2.10"
DOWNLOADS = 5
# Seconds until a client's port comes round: well within the 120 s that IPVS remembers a connection
# in FIN_WAIT.
PORTS_COME_ROUND = 20

CONFIG = """\
libvirt: {{uris: ["{uri}"], keepalive: 3m}}
director: {{interface: front0, sysctls: apply}}
{guests}
services:
  web:
    address: {vip}
    ports: [80]
    scheduler: {scheduler}
    forwarding: {method}
    check: {{type: tcp, {check}}}
    drain: {{timeout: 60s}}
    servers:
      - {{guest: web1, address: 10.0.0.11}}
      - {{guest: web2, address: 10.0.0.12}}
"""


class Guest(Protocol):
    name: str

    def start(self) -> Result: ...
    def shutdown(self) -> Result: ...
    def reboot(self) -> Result: ...
    def power_off_inside(self) -> object: ...
    def wait_gone(self, timeout: float = ...) -> None: ...
    def wait_serving(self, timeout: float = ...) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """`agent` None: a peer does what it can. `wait_serving` waits until a guest is in service.
    `rate`: requests a second; `timeout`: seconds that one may take."""

    lab: LabHost
    guests: tuple[Guest, Guest]
    client: NetNs
    agent: LabAgent | None
    wait_serving: Callable[[Guest], None]
    rate: int = 100
    timeout: float = 10.0
    patience: float = 120.0


@dataclass(slots=True, kw_only=True)
class Tally:
    """What the clients noticed of the rounds of one way. `took`: seconds from asking until the
    guest was gone, or back."""

    way: str
    rounds: int = 0
    took: list[float] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)

    @property
    def failed(self) -> int:
        return int(self.summary["failed"])

    @property
    def cut(self) -> int:
        return int(self.summary["downloads"]["cut"])

    def row(self, label: str) -> str:
        downloads, took = self.summary["downloads"], sorted(self.took)
        slowest = self.summary["latencies"]["max"] or 0.0
        return (
            f"{label:<34} {self.way:<18} {self.rounds:>6} {self.summary['sent']:>8}"
            f" {self.failed:>6} {downloads['finished']:>9} {self.cut:>4}"
            f" {took[len(took) // 2]:>7.1f} {took[-1]:>6.1f} {slowest * 1000:>8.0f}"
        )

    def explained(self) -> str:
        """The failures, for the message of a test."""
        return (
            f"{self.summary['failures'][:20]}\n{self.summary['downloads']['cuts'][:20]}\n"
            f"the client stood still: {self.summary['stalls']}"
        )


HEAD = (
    f"{'':<34} {'way':<18} {'rounds':>6} {'requests':>8} {'failed':>6} {'downloads':>9} {'cut':>4}"
    f" {'s p50':>7} {'max':>6} {'slowest':>8}"
)


def virsh_shutdown(stage: Stage, guest: Guest) -> None:
    guest.shutdown()
    guest.wait_gone(stage.patience)


def poweroff_inside(stage: Stage, guest: Guest) -> None:
    guest.power_off_inside()
    guest.wait_gone(stage.patience)


def xenlb_shutdown(stage: Stage, guest: Guest) -> None:
    assert stage.agent is not None
    done = stage.agent.xenlb("shutdown", guest.name, timeout=stage.patience)
    assert done.out.splitlines()[-1] == f"{guest.name} has stopped", done.out
    guest.wait_gone(stage.patience)


def virsh_reboot(stage: Stage, guest: Guest) -> None:
    before = _boots(stage, guest)
    guest.reboot()
    stage.lab.wait_until(
        lambda: _boots(stage, guest) > before, stage.patience, f"{guest.name} anew", every=0.3
    )


def _boots(stage: Stage, guest: Guest) -> int:
    """How often the agent saw it let into the table."""
    assert stage.agent is not None
    address = {"web1": "10.0.0.11", "web2": "10.0.0.12"}[guest.name]
    lines = (line["text"] for line in stage.agent.events())
    return sum(line.startswith(f"ipvsadm -a -t {VIP}:80 -r {address}:80") for line in lines)


def _start(guest: Guest) -> None:
    """libvirt on Xen says «shut off» a moment before it would start the domain again."""
    until = time.monotonic() + 120
    while True:
        try:
            guest.start()
        except LabError as error:
            if "already active" not in str(error) or time.monotonic() > until:
                raise
            time.sleep(0.5)
        else:
            return


WAYS: dict[str, Callable[[Stage, Guest], None]] = {
    "virsh shutdown": virsh_shutdown,
    "poweroff inside": poweroff_inside,
    "xenlb shutdown": xenlb_shutdown,
    "virsh reboot": virsh_reboot,
}


@contextmanager
def load(stage: Stage) -> Iterator[dict[str, Any]]:
    """Steady load while the context is entered; its summary fills the dictionary at the end."""
    summary: dict[str, Any] = {}
    running = stage.client.load(
        f"{VIP}:80",
        rate=stage.rate,
        timeout=stage.timeout,
        reuse_ports=f"20000-{20000 + PORTS_COME_ROUND * stage.rate - 1}",
        downloads=DOWNLOADS,
    )
    try:
        time.sleep(2)
        yield summary
        time.sleep(3)
    finally:
        summary |= running.stop()


def play(
    stage: Stage,
    way: str,
    rounds: int,
    *,
    first: int = 0,
    down: float = 0.0,
    stays_off: bool = False,
    said: Callable[[str], object] = print,
) -> Tally:
    """`rounds` rounds of one way under one load, in turn with the two guests from `first` on.

    For `down` seconds a guest is left off; with `stays_off` the last one is not started again.
    """
    tally = Tally(way=way)
    with load(stage) as summary:
        for number in range(rounds):
            guest = stage.guests[(first + number) % 2]
            began = time.monotonic()
            WAYS[way](stage, guest)
            tally.took.append(time.monotonic() - began)
            tally.rounds += 1
            said(f"{way}: round {number + 1} of {rounds}, gone after {tally.took[-1]:.1f} s")
            if stays_off and number + 1 == rounds:
                break
            if way != "virsh reboot":
                time.sleep(down)
                _start(guest)
            guest.wait_serving(stage.patience)
            stage.wait_serving(guest)
            time.sleep(1)
    tally.summary = summary
    return tally


def show(tallies: Sequence[Tally], label: str) -> None:
    print("\n" + "\n".join([HEAD, *(tally.row(label) for tally in tallies)]), flush=True)


def every_drain_ended_empty(stage: Stage) -> None:
    """By the agent's own records: nobody was cut off, at whatever end."""
    assert stage.agent is not None
    events = [event for event in stage.agent.events() if event["kind"] == "drain-ended"]
    assert events, "nothing was drained"
    assert not [event for event in events if event["text"].endswith("left")]
