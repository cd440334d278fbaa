"""`drain`, `undrain`, `shutdown`, `reboot`: what the agent is asked, and how it is waited for."""

import os
import signal
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from tests.unit.cli import answers
from tests.unit.cli.answers import drain, ended, progress
from tests.unit.cli.conftest import COMMAND, Request, SmallAgent, Xenlb
from xenlb.control.protocol import INVALID_CONFIGURATION, ControlError


def looks(*each: dict[str, Any]) -> Callable[[Request], object]:
    """One answer after the other, the last for good."""
    left = list(each)
    return lambda _: left.pop(0) if len(left) > 1 else left[0]


def begun(**given: Any) -> dict[str, Any]:
    return {**answers.why(), "drain": drain(**given)}


def test_waits_until_no_connection_is_left(xenlb: Xenlb, agent: SmallAgent) -> None:
    held = progress(connections_left=12)
    held["holders"] = [
        {"address": "192.0.2.100", "connections": 9},
        {"address": "2001:db8::7", "connections": 1},
    ]
    held["more_holders"] = 2
    agent.answers["drain"] = begun()
    agent.answers["progress"] = looks(
        held,
        held,
        progress(connections_left=1),
        progress(connections_left=0),
        progress(connections_left=0, outcome="empty"),
    )
    done = xenlb("drain", "mail2", "--timeout", "2m")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "mail2 gets no new connections"
    assert lines[1].startswith("mail2: 12 connections, ")
    assert lines[1].endswith("s left; 192.0.2.100 (9), 2001:db8::7, 2 more")
    assert lines[2].startswith("mail2: 1 connection, ")
    assert lines[3:] == ["mail2 is drained"]
    asked = agent.requests[0]
    assert (asked["verb"], asked["guest"], asked["timeout"]) == ("drain", "mail2", 120.0)
    assert asked["then"] is None


def test_says_why_it_does_not_empty(xenlb: Xenlb, agent: SmallAgent) -> None:
    agent.answers["drain"] = begun()
    stays = {"connections_left": 3, "warnings": ["its persistent clients still come: set it"]}
    agent.answers["progress"] = looks(
        progress(**stays), progress(**stays), progress(**stays, outcome="deadline")
    )
    done = xenlb("drain", "mail2")
    assert done.returncode == 1
    assert done.stdout.count("its persistent clients still come") == 1
    assert "the drain of mail2 timed out with 3 connections left" in done.stderr
    assert "it stays out of service" in done.stderr


def test_no_wait(xenlb: Xenlb, agent: SmallAgent) -> None:
    agent.answers["drain"] = begun()
    done = xenlb("drain", "mail2", "--no-wait")
    assert (done.returncode, done.stdout) == (0, "mail2 gets no new connections\n")
    assert [request["verb"] for request in agent.requests] == ["drain"]
    assert agent.requests[0]["timeout"] is None


@pytest.mark.parametrize(
    ("later", "said"),
    [
        (ended(end="undrained"), "mail2 was put back into service meanwhile"),
        (ended(outcome="empty", end="undrained"), "mail2 was put back into service meanwhile"),
        (ended(end="guest stayed"), "mail2 did not go in time: it is put back into service"),
        (progress(id="9.000000"), "mail2 was drained anew meanwhile"),
    ],
)
def test_comes_to_something_else(
    later: dict[str, Any], said: str, xenlb: Xenlb, agent: SmallAgent
) -> None:
    agent.answers["drain"] = begun()
    agent.answers["progress"] = looks(progress(connections_left=3), later)
    done = xenlb("drain", "mail2")
    assert done.returncode == 1
    assert said in done.stderr


def test_stopped_meanwhile(xenlb: Xenlb, agent: SmallAgent) -> None:
    agent.answers["drain"] = begun()
    stopped = {**ended(end="guest gone"), "phase": "absent"}
    agent.answers["progress"] = looks(progress(connections_left=3), stopped)
    done = xenlb("drain", "mail2")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "mail2 has stopped")


def test_shutdown(xenlb: Xenlb, agent: SmallAgent) -> None:
    then = {"then": "poweroff"}
    agent.answers["drain"] = begun(**then)
    over = {**then, "outcome": "empty", "connections_left": 0}
    asked = progress(**over, asked=True)
    asked["request"] = {"asked_for": "poweroff", "until": answers.ago(minutes=-5, seconds=-20)}
    agent.answers["progress"] = looks(
        progress(**then, connections_left=2),
        progress(**over),
        asked,
        {**ended(**over, asked=True, end="guest gone"), "phase": "absent"},
    )
    done = xenlb("shutdown", "mail2")
    assert done.returncode == 0, done.stderr
    lines = [line.split(",")[0] for line in done.stdout.splitlines()]
    assert lines == [
        "mail2 gets no new connections",
        "mail2: 2 connections",
        "mail2 is drained",
        "mail2 was asked to shut down",
        "mail2 still runs; 5m left",
        "mail2 has stopped",
    ]
    assert (agent.requests[0]["verb"], agent.requests[0]["then"]) == ("drain", "poweroff")


def test_shutdown_when_its_time_is_up(xenlb: Xenlb, agent: SmallAgent) -> None:
    late = {"then": "poweroff", "outcome": "deadline", "connections_left": 2}
    agent.answers["drain"] = begun(then="poweroff")
    agent.answers["progress"] = looks(
        progress(**late),
        {**ended(**late, asked=True, end="guest gone"), "phase": "absent"},
    )
    done = xenlb("shutdown", "mail2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1:] == [
        "the drain of mail2 timed out with 2 connections left",
        "mail2 has stopped",
    ]


def test_shutdown_that_libvirt_refuses(xenlb: Xenlb, agent: SmallAgent) -> None:
    over = {"then": "poweroff", "outcome": "empty", "asked": True, "failure": "it is locked"}
    agent.answers["drain"] = begun(then="poweroff")
    agent.answers["progress"] = progress(**over)
    done = xenlb("shutdown", "mail2")
    assert done.returncode == 1
    assert "libvirt refuses to shut down mail2: it is locked" in done.stderr
    assert "xenlb undrain mail2 puts it back" in done.stderr


def test_reboot_waits_until_it_serves_again(xenlb: Xenlb, agent: SmallAgent) -> None:
    over = {"then": "reboot", "outcome": "empty", "asked": True}
    gone = ended(**over, end="guest gone")
    agent.answers["drain"] = begun(then="reboot")
    agent.answers["progress"] = looks(
        progress(**over), {**gone, "phase": "absent"}, gone, {**gone, "serves": True}
    )
    done = xenlb("reboot", "mail2", "--timeout", "500ms")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-3:] == ["mail2 is down", "mail2 boots", "mail2 serves again"]
    assert agent.requests[0]["timeout"] == 0.5


def test_ignored(xenlb: Xenlb, agent: SmallAgent) -> None:
    over = {"then": "reboot", "outcome": "empty", "asked": True}
    agent.answers["drain"] = begun(then="reboot")
    agent.answers["progress"] = ended(**over, end="guest stayed")
    done = xenlb("reboot", "mail2")
    assert done.returncode == 1
    assert "mail2 did not reboot in time" in done.stderr


def test_shutdown_while_libvirt_is_away(xenlb: Xenlb, agent: SmallAgent) -> None:
    over = {"then": "poweroff", "outcome": "empty"}
    agent.answers["drain"] = begun(then="poweroff")
    agent.answers["progress"] = looks(
        {**progress(**over), "connected": False}, ended(**over, end="not asked")
    )
    done = xenlb("shutdown", "mail2")
    assert done.returncode == 1
    assert "mail2: libvirt is not connected; it is asked again" in done.stdout
    assert "libvirt could not be asked to shut down mail2 in time: it is back in" in done.stderr


@pytest.mark.parametrize(
    ("then", "said"),
    [(None, "the drain goes on"), ("poweroff", "drain and shutdown go on")],
)
def test_ctrl_c_ends_the_waiting_alone(then: str | None, said: str, agent: SmallAgent) -> None:
    agent.answers["drain"] = begun(then=then)
    agent.answers["progress"] = progress(then=then, connections_left=3)
    process = subprocess.Popen(
        [*COMMAND, "--socket", str(agent.socket), "shutdown" if then else "drain", "mail2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    while "3 connections" not in process.stdout.readline():
        pass
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=20)
    assert process.returncode == 130
    assert f"mail2: {said}; to cancel: xenlb undrain mail2" in told
    assert [r["verb"] for r in agent.requests if r["verb"] != "progress"] == ["drain"]


def test_an_agent_that_is_restarted_is_waited_for(xenlb: Xenlb, agent: SmallAgent) -> None:
    away = ControlError("the agent stopped", status=4)
    left: list[object] = [away, away, progress(connections_left=0, outcome="empty")]
    agent.answers["drain"] = begun()
    agent.answers["progress"] = lambda _: left.pop(0)
    done = xenlb("drain", "mail2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1:] == ["the agent is away; waiting for it", "mail2 is drained"]


def test_drain_all_in_waves(xenlb: Xenlb, agent: SmallAgent) -> None:
    first = {"guests": [progress(connections_left=4)], "kept": ["mail3"]}
    done_first = {"guests": [progress(outcome="empty")], "kept": ["mail3"]}
    second = {**progress(), "guest": "mail3"}
    last = {
        "guests": [
            progress(outcome="empty"),
            {**second, "drain": drain(outcome="deadline", connections_left=1)},
        ],
        "kept": [],
    }
    agent.answers["drain-all"] = looks(
        first, done_first, {"guests": [progress(outcome="empty"), second], "kept": []}, last
    )
    done = xenlb("drain", "--all", "--timeout", "30s")
    assert done.returncode == 1, "as that of one guest ends"
    assert "timed out with connections left: mail3 (1 connection)" in done.stderr
    assert done.stdout.splitlines() == [
        "no new connections: mail2",
        "1 guest drains, 4 connections; 1 kept in service meanwhile: mail3",
        "mail2: drained",
        "1 kept in service meanwhile: mail3",
        "1 guest drains, 0 connections",
        "mail3: timed out with 1 connection left",
    ]
    assert [bool(r.get("rest")) for r in agent.requests] == [False, False, True, False]
    assert {r["timeout"] for r in agent.requests} == {30.0}


@pytest.mark.parametrize("arguments", [["drain"], ["drain", "--all", "mail1"], ["undrain"]])
def test_a_guest_or_all(arguments: list[str], xenlb: Xenlb) -> None:
    done = xenlb(*arguments)
    assert done.returncode == 2
    assert "name a guest, or give --all" in done.stderr


def test_undrain(xenlb: Xenlb, agent: SmallAgent) -> None:
    agent.answers["undrain"] = answers.why()
    done = xenlb("undrain", "mail2", SUDO_USER="alice")
    assert (done.returncode, done.stdout) == (0, "mail2 is in service again\n")
    assert agent.requests[0]["guest"] == "mail2"
    assert agent.requests[0]["by"] in {"alice (sudo)", f"uid {os.getuid()}"}
    agent.answers["undrain"] = answers.why() | {"changed": False}
    assert xenlb("undrain", "mail2").stdout == "mail2 is in service already\n"


def test_undrain_all(xenlb: Xenlb, agent: SmallAgent) -> None:
    agent.answers["undrain-all"] = {"guests": ["mail1", "mail2"]}
    done = xenlb("undrain", "--all")
    assert (done.returncode, done.stdout) == (0, "in service again: mail1, mail2\n")


def test_reload(xenlb: Xenlb, agent: SmallAgent) -> None:
    agent.answers["reload"] = {"reloaded": True, "changes": "no change (1 service)"}
    done = xenlb("reload")
    assert (done.returncode, done.stdout) == (0, "configuration loaded: no change (1 service)\n")
    agent.answers["reload"] = ControlError("it is refused", status=INVALID_CONFIGURATION)
    done = xenlb("reload")
    assert (done.returncode, done.stderr) == (3, "xenlb: it is refused\n")
