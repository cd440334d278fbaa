"""A drain in the middle of which something is restarted: the agent (kill -9), or libvirtd.

Whatever the direction a shutdown came from, weight 0 stays, the connection in progress ends by
itself, the guest goes when it is over, and one that comes back serves again. Containers with a real
systemd and the hold; rounds.py has the same without a disturbance.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator

import pytest

from tests.lab.agent import LabAgent
from tests.lab.host import Process
from tests.lab.rounds import VIP, Stage
from tests.lab.stages import uml_stage
from tests.lab.uml import UmlLab
from tests.lab.uml.debian import DebianGuest
from tests.soak import SOAK

SECONDS = 6  # that the connection in progress lasts


@pytest.fixture(scope="module")
def stage(uml: UmlLab) -> Stage:
    return uml_stage(uml, "masquerade", hold=True)


@pytest.fixture
def guest(stage: Stage) -> Iterator[DebianGuest]:
    """The first guest, in service, before and after."""
    first = stage.guests[0]
    assert isinstance(first, DebianGuest)
    stage.wait_serving(first)
    yield first
    if not first.alive():
        first.start()
    stage.wait_serving(first)


def agent_of(stage: Stage) -> LabAgent:
    assert stage.agent is not None
    return stage.agent


class Download:
    """One request to a guest through the service address that lasts SECONDS."""

    def __init__(self, stage: Stage, guest: DebianGuest) -> None:
        self._stage = stage
        agent = agent_of(stage)
        other = stage.guests[1]
        # The other one is set aside for the moment in which this connection is made.
        agent.xenlb("drain", other.name, "--no-wait")
        command = [*stage.lab.traffic, "client", f"{VIP}:80", "--count=1", "--timeout=60"]
        self.process = stage.client.spawn([*command, f"--path=/slow?seconds={SECONDS}"])
        agent.wait_server(guest.name, lambda server: server["active_connections"] == 1)
        agent.xenlb("undrain", other.name)
        stage.wait_serving(other)

    def finished(self) -> bool:
        self.process.wait(60)
        return '"failed": 0' in self.process.log() and '"ok": 1' in self.process.log()


def restart_agent(stage: Stage) -> None:
    agent = agent_of(stage)
    agent.kill()
    agent.start()


def restart_libvirtd(stage: Stage) -> None:
    assert isinstance(stage.lab, UmlLab)
    stage.lab.restart_libvirtd(number=signal.SIGKILL)


DISTURBANCES = {"agent killed": restart_agent, "libvirtd killed": restart_libvirtd}
disturbed = pytest.mark.parametrize("disturb", DISTURBANCES.values(), ids=list(DISTURBANCES))


def begin(stage: Stage, direction: str, guest: DebianGuest) -> Process | None:
    """Asks; a command that waits goes on in the background."""
    agent = agent_of(stage)
    match direction:
        case "virsh shutdown":
            guest.shutdown()
        case "virsh reboot":
            guest.reboot()
        case "poweroff inside":
            guest.power_off_inside()
        case "reboot inside":
            guest.reboot_inside()
        case "xenlb shutdown" | "xenlb reboot":
            return stage.lab.spawn([*agent.command, direction.split()[1], guest.name])
    return None


DIRECTIONS = ("virsh shutdown", "poweroff inside", "xenlb shutdown", "virsh reboot", "xenlb reboot")
QUICK = {
    ("virsh shutdown", "agent killed"),
    ("poweroff inside", "agent killed"),
    ("xenlb reboot", "libvirtd killed"),
}
PAIRS = [
    pytest.param(direction, disturb, id=f"{direction}-{name}")
    for name, disturb in DISTURBANCES.items()
    for direction in DIRECTIONS
    if SOAK or (direction, name) in QUICK
]


@pytest.mark.parametrize(("direction", "disturb"), PAIRS)
def test_disturbed_in_the_middle(
    stage: Stage, guest: DebianGuest, direction: str, disturb: Callable[[Stage], None]
) -> None:
    agent = agent_of(stage)
    download = Download(stage, guest)
    before = guest.init_pid()
    command = begin(stage, direction, guest)
    agent.wait_server(guest.name, lambda server: server["in_table"] and server["weight"] == 0)
    disturb(stage)
    if download.process.alive():  # on a busy machine it may be over
        held = agent.servers()[guest.name]
        assert (held["phase"], held["weight"], held["in_table"]) == ("draining", 0, True)
    assert download.finished(), download.process.log()
    if "reboot" in direction:
        guest.wait_rebooted(before)
        agent.wait_serving(guest.name)
    else:
        guest.wait_gone()
        agent.wait_server(guest.name, lambda server: not server["in_table"])
    if command is not None:
        assert command.wait(60) == 0, command.log()
        last = {"xenlb shutdown": "has stopped", "xenlb reboot": "serves again"}[direction]
        assert command.log().splitlines()[-1] == f"{guest.name} {last}"
    drain = agent.why(guest.name)["last_drain"]
    assert drain["outcome"] in {"empty", "guest gone"}
    assert not drain["connections_left"], drain


@disturbed
def test_drained_by_hand_stays_so_until_undrained(
    stage: Stage, guest: DebianGuest, disturb: Callable[[Stage], None]
) -> None:
    agent = agent_of(stage)
    download = Download(stage, guest)
    agent.xenlb("drain", guest.name, "--no-wait")
    disturb(stage)
    drain = agent.why(guest.name)["drain"]
    assert (drain["reason"], drain["by"]) == ("drained", "root")
    done = agent.xenlb("drain", guest.name)
    assert done.out.splitlines()[-1] == f"{guest.name} is drained"
    assert download.finished()
    disturb(stage)
    held = agent.servers()[guest.name]
    assert (held["phase"], held["weight"]) == ("draining", 0)
    agent.xenlb("undrain", guest.name)
    agent.wait_serving(guest.name)
    assert agent.why(guest.name)["last_drain"]["end"] == "undrained"


def test_asked_while_the_agent_is_away(stage: Stage, guest: DebianGuest) -> None:
    """The hold tells again and again until it is heard: a restart costs no connection."""
    agent = agent_of(stage)
    download = Download(stage, guest)
    agent.kill()
    guest.shutdown()
    agent.start()
    agent.wait_server(guest.name, lambda server: server["weight"] == 0)
    assert download.finished()
    guest.wait_gone()


def test_drain_says_who_holds_on(stage: Stage, guest: DebianGuest) -> None:
    agent = agent_of(stage)
    download = Download(stage, guest)
    done = agent.xenlb("drain", guest.name)
    assert f"{guest.name}: 1 connection, " in done.out
    assert "s left; 192.0.2.100" in done.out
    assert download.finished()
    agent.xenlb("undrain", guest.name)


def test_a_hold_that_is_stopped_and_started_by_hand(stage: Stage, guest: DebianGuest) -> None:
    agent = agent_of(stage)
    guest.run("systemctl stop xenlb-hold", timeout=60)
    server = agent.wait_server(guest.name, lambda server: server["weight"] == 0)
    assert server["reason"].startswith("shuts down from inside")
    guest.run("systemctl start xenlb-hold")
    agent.wait_serving(guest.name)
