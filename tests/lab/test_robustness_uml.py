"""Kills and restarts under traffic: nobody who asks a healthy guest may notice.

The agent is killed with SIGKILL at random points while guests come and go; libvirtd is restarted
while guests come and go. The traffic goes to a service whose guests stay healthy: not one request
of it may fail, none of its servers may be removed and added again, and the table must be right at
the end. XENLB_SOAK=1 runs the long forms (50 kills, 10 restarts).

A request may take 10 s: one sent to a server that is gone, or whose entry is, fails in any case,
and a machine that is busy with something else must not fail the test.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from tests.lab.agent import LabAgent
from tests.lab.netns import NetNs
from tests.lab.uml import UmlLab
from tests.lab.uml.guests import LxcGuest
from tests.soak import SOAK

KILLS = 50 if SOAK else 12
RESTARTS = 10 if SOAK else 3

CONFIG = """
libvirt: {uris: ["lxc:///"]}
director: {interface: front0}
services:
  steady:
    address: 192.0.2.10
    ports: [80]
    scheduler: rr
    forwarding: masquerade
    check: {type: tcp, interval: 1s, timeout: 900ms, rise: 1, fall: 10}
    servers: [{guest: "steady*"}, {host: 10.0.0.21}]
  churning:
    address: 192.0.2.11
    ports: [80]
    scheduler: wlc
    forwarding: masquerade
    check: {type: tcp, interval: 1s, timeout: 900ms, rise: 1, fall: 10}
    servers: [{guest: "churn*", weight: 3}]
"""


@dataclass
class Farm:
    lab: UmlLab
    agent: LabAgent
    client: NetNs
    churning: list[LxcGuest]
    running: dict[str, bool] = field(default_factory=dict)

    def churn(self, *, politely: bool) -> None:
        """Starts or ends one of the churning guests, whichever it can.

        `politely`: by shutdown too. Right after its own restart, libvirtd (9.0, LXC) refuses that:
        «Init process ID is not yet known».
        """
        guest = random.choice(self.churning)
        if self.running.get(guest.name):
            if politely:
                guest.wait_serving()  # before, its init would not hear the signal
            random.choice([guest.destroy, guest.shutdown] if politely else [guest.destroy])()
            guest.wait_gone()
        else:
            guest.start()
        self.running[guest.name] = not self.running.get(guest.name)

    def wanted(self) -> set[str]:
        """The servers that must be in the table, as ipvsadm names them."""
        steady = {f"192.0.2.10:80 -r 10.0.0.{n}:80 -m -w 1" for n in (11, 12, 21)}
        return steady | {
            f"192.0.2.11:80 -r {guest.address}:80 -m -w 3"
            for guest in self.churning
            if self.running.get(guest.name)
        }

    def servers(self) -> set[str]:
        return {
            line.removeprefix("-a -t ")
            for line in self.agent.table().splitlines()
            if line.startswith("-a")
        }

    def settle(self) -> None:
        self.lab.wait_until(lambda: self.servers() == self.wanted(), 60, "the table to be right")


@pytest.fixture(scope="module")
def farm(uml: UmlLab) -> Iterator[Farm]:
    random.seed(7)
    uml.start_libvirtd()
    steady = [
        uml.define_lxc_guest(f"steady{n}", f"10.0.0.{n}", address6=f"fd00:10::{n}")
        for n in (11, 12)
    ]
    churning = [uml.define_lxc_guest(f"churn{n}", f"10.0.0.{n}") for n in (31, 32)]
    host = uml.server_ns("host21", "10.0.0.21")
    host.serve("0.0.0.0:80")
    for guest in steady:
        guest.start()
    agent = LabAgent(uml, CONFIG)
    agent.start()
    made = Farm(lab=uml, agent=agent, client=uml.client("client", "192.0.2.100"), churning=churning)
    made.settle()
    yield made
    agent.stop()


def changes_of_steady(logs: list[str]) -> list[str]:
    """Operations on servers of the steady service, from the agents' logs."""
    pattern = re.compile(r"ipvsadm (-[ade] -t 192\.0\.2\.10:80 -r .*)")
    return [found[1] for log in logs for found in pattern.finditer(log)]


def test_kill_9_at_random_points_under_traffic(farm: Farm) -> None:
    logs: list[str] = []
    load = farm.client.load("192.0.2.10:80", rate=40, timeout=10)
    farm.agent.stop()
    farm.agent.launch()
    started = time.monotonic()
    for _ in range(KILLS):
        time.sleep(random.uniform(0.0, 2.5))  # before, in and after its first pass
        if random.random() < 0.5:
            farm.churn(politely=True)
            time.sleep(random.uniform(0.0, 0.2))
        farm.agent.kill()
        logs.append(farm.agent.log())
        farm.agent.launch()
    farm.agent.wait_ready()
    farm.settle()
    logs.append(farm.agent.log())
    summary = load.stop()
    print(
        f"\nkill -9: {KILLS} in {time.monotonic() - started:.0f} s,"
        f" {summary['sent']} requests, {summary['failed']} failed"
    )
    assert changes_of_steady(logs) == []
    assert summary["failures"] == []
    assert summary["sent"] > 100
    assert len(summary["by_server"]) == 3
    assert not any("Traceback" in log for log in logs), "a traceback in an agent's log"


def test_libvirtd_restarts_under_guest_churn(farm: Farm) -> None:
    load = farm.client.load("192.0.2.10:80", rate=40, timeout=10)
    started = time.monotonic()
    before = farm.agent.log()
    for _ in range(RESTARTS):
        farm.churn(politely=False)
        farm.lab.stop_libvirtd()
        time.sleep(random.uniform(0.0, 1.5))
        farm.lab.start_libvirtd()
        farm.churn(politely=False)
    farm.settle()
    summary = load.stop()
    log = farm.agent.log().removeprefix(before)
    print(
        f"\nlibvirtd: {RESTARTS} restarts in {time.monotonic() - started:.0f} s,"
        f" {summary['sent']} requests, {summary['failed']} failed"
    )
    assert log.count("is not connected") >= RESTARTS
    assert changes_of_steady([log]) == []
    assert summary["failures"] == []
    assert "Traceback" not in log
