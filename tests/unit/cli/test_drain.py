"""`drain`, `undrain`, `shutdown`, `reboot`: requests to the agent, and progress until the end."""

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


def in_turn(*sequence: dict[str, Any]) -> Callable[[Request], object]:
    """Give one answer after the other, and the last one from then on."""
    left = list(sequence)
    return lambda _: left.pop(0) if len(left) > 1 else left[0]


def begun(**fields: Any) -> dict[str, Any]:
    """The agent's answer to a request for a drain."""
    return {**answers.why(), "drain": drain(**fields)}


def test_drain_waits_until_no_connection_is_left(xenlb: Xenlb, agent: SmallAgent) -> None:
    busy = progress(connections_left=12)
    busy["holders"] = [
        {"address": "192.0.2.100", "connections": 9},
        {"address": "2001:db8::7", "connections": 1},
    ]
    busy["more_holders"] = 2
    agent.answers["drain"] = begun()
    agent.answers["progress"] = in_turn(
        busy,
        busy,
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
    request = agent.requests[0]
    assert (request["verb"], request["guest"], request["timeout"]) == ("drain", "mail2", 120.0)
    assert request["then"] is None


def test_warnings_and_the_timeout_are_printed(xenlb: Xenlb, agent: SmallAgent) -> None:
    agent.answers["drain"] = begun()
    fields = {"connections_left": 3, "warnings": ["its persistent clients still come: set it"]}
    agent.answers["progress"] = in_turn(
        progress(**fields), progress(**fields), progress(**fields, outcome="deadline")
    )
    done = xenlb("drain", "mail2")
    assert done.returncode == 1
    assert done.stdout.count("its persistent clients still come") == 1
    assert "the drain of mail2 timed out with 3 connections left" in done.stderr
    assert "it stays out of service" in done.stderr


def test_no_wait_returns_at_once(xenlb: Xenlb, agent: SmallAgent) -> None:
    agent.answers["drain"] = begun()
    done = xenlb("drain", "mail2", "--no-wait")
    assert (done.returncode, done.stdout) == (0, "mail2 gets no new connections\n")
    assert [request["verb"] for request in agent.requests] == ["drain"]
    assert agent.requests[0]["timeout"] is None


@pytest.mark.parametrize(
    ("end", "message"),
    [
        (ended(end="undrained"), "mail2 was put back into service"),
        (ended(outcome="empty", end="undrained"), "mail2 was put back into service"),
        (ended(end="guest stayed"), "mail2 did not stop in time and is back in service"),
        (progress(id="9.000000"), "another drain of mail2 has replaced this one"),
    ],
)
def test_a_drain_that_is_cancelled_or_replaced_fails(
    end: dict[str, Any], message: str, xenlb: Xenlb, agent: SmallAgent
) -> None:
    agent.answers["drain"] = begun()
    agent.answers["progress"] = in_turn(progress(connections_left=3), end)
    done = xenlb("drain", "mail2")
    assert done.returncode == 1
    assert message in done.stderr


def test_a_guest_that_stops_while_it_drains(xenlb: Xenlb, agent: SmallAgent) -> None:
    agent.answers["drain"] = begun()
    stopped = {**ended(end="guest gone"), "phase": "absent"}
    agent.answers["progress"] = in_turn(progress(connections_left=3), stopped)
    done = xenlb("drain", "mail2")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "mail2 has stopped")


def test_shutdown_waits_until_the_guest_has_stopped(xenlb: Xenlb, agent: SmallAgent) -> None:
    then = {"then": "poweroff"}
    agent.answers["drain"] = begun(**then)
    over = {**then, "outcome": "empty", "connections_left": 0}
    requested = progress(**over, asked=True)
    requested["request"] = {"asked_for": "poweroff", "until": answers.ago(minutes=-5, seconds=-20)}
    agent.answers["progress"] = in_turn(
        progress(**then, connections_left=2),
        progress(**over),
        requested,
        {**ended(**over, asked=True, end="guest gone"), "phase": "absent"},
    )
    done = xenlb("shutdown", "mail2")
    assert done.returncode == 0, done.stderr
    lines = [line.split(",")[0] for line in done.stdout.splitlines()]
    assert lines == [
        "mail2 gets no new connections",
        "mail2: 2 connections",
        "mail2 is drained",
        "mail2: shutdown requested",
        "mail2 still runs; 5m left",
        "mail2 has stopped",
    ]
    assert (agent.requests[0]["verb"], agent.requests[0]["then"]) == ("drain", "poweroff")


def test_shutdown_follows_a_drain_that_timed_out(xenlb: Xenlb, agent: SmallAgent) -> None:
    timed_out = {"then": "poweroff", "outcome": "deadline", "connections_left": 2}
    agent.answers["drain"] = begun(then="poweroff")
    agent.answers["progress"] = in_turn(
        progress(**timed_out),
        {**ended(**timed_out, asked=True, end="guest gone"), "phase": "absent"},
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
    assert "to put it back: xenlb undrain mail2" in done.stderr


def test_reboot_waits_until_the_guest_serves_again(xenlb: Xenlb, agent: SmallAgent) -> None:
    over = {"then": "reboot", "outcome": "empty", "asked": True}
    gone = ended(**over, end="guest gone")
    agent.answers["drain"] = begun(then="reboot")
    agent.answers["progress"] = in_turn(
        progress(**over), {**gone, "phase": "absent"}, gone, {**gone, "serves": True}
    )
    done = xenlb("reboot", "mail2", "--timeout", "500ms")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-3:] == [
        "mail2 is down",
        "mail2 is booting",
        "mail2 serves again",
    ]
    assert agent.requests[0]["timeout"] == 0.5


def test_a_reboot_that_the_guest_ignores_fails(xenlb: Xenlb, agent: SmallAgent) -> None:
    over = {"then": "reboot", "outcome": "empty", "asked": True}
    agent.answers["drain"] = begun(then="reboot")
    agent.answers["progress"] = ended(**over, end="guest stayed")
    done = xenlb("reboot", "mail2")
    assert done.returncode == 1
    assert "mail2 did not reboot in time" in done.stderr


def test_shutdown_while_libvirt_is_not_connected(xenlb: Xenlb, agent: SmallAgent) -> None:
    over = {"then": "poweroff", "outcome": "empty"}
    agent.answers["drain"] = begun(then="poweroff")
    agent.answers["progress"] = in_turn(
        {**progress(**over), "connected": False}, ended(**over, end="not asked")
    )
    done = xenlb("shutdown", "mail2")
    assert done.returncode == 1
    assert "mail2: libvirt is not connected; xenlb tries again" in done.stdout
    assert "libvirt was not connected in time to shut down mail2: it is back" in done.stderr


@pytest.mark.parametrize(
    ("then", "message"),
    [(None, "still draining"), ("poweroff", "the shutdown continues")],
)
def test_ctrl_c_stops_waiting_only(then: str | None, message: str, agent: SmallAgent) -> None:
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
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert f"mail2: {message}; to cancel: xenlb undrain mail2" in err
    verbs = [request["verb"] for request in agent.requests if request["verb"] != "progress"]
    assert verbs == ["drain"]


def test_a_restart_of_the_agent_does_not_end_the_command(xenlb: Xenlb, agent: SmallAgent) -> None:
    stopped = ControlError("the agent stopped", status=4)
    left: list[object] = [stopped, stopped, progress(connections_left=0, outcome="empty")]
    agent.answers["drain"] = begun()
    agent.answers["progress"] = lambda _: left.pop(0)
    done = xenlb("drain", "mail2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1:] == [
        "the agent cannot be reached; waiting for it",
        "mail2 is drained",
    ]


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
    agent.answers["drain-all"] = in_turn(
        first, done_first, {"guests": [progress(outcome="empty"), second], "kept": []}, last
    )
    done = xenlb("drain", "--all", "--timeout", "30s")
    assert done.returncode == 1, "as for one guest"
    assert "timed out with connections left: mail3 (1 connection)" in done.stderr
    assert done.stdout.splitlines() == [
        "no new connections: mail2",
        "1 guest draining, 4 connections left; in service until then (keep-in-service): mail3",
        "mail2: drained",
        "in service until then (keep-in-service): mail3",
        "1 guest draining, 0 connections left",
        "mail3: timed out with 1 connection left",
    ]
    assert [bool(request.get("rest")) for request in agent.requests] == [False, False, True, False]
    assert {request["timeout"] for request in agent.requests} == {30.0}


@pytest.mark.parametrize("arguments", [["drain"], ["drain", "--all", "mail1"], ["undrain"]])
def test_a_guest_or_all_is_required(arguments: list[str], xenlb: Xenlb) -> None:
    done = xenlb(*arguments)
    assert done.returncode == 2
    assert "name a guest, or give --all" in done.stderr


def test_undrain_names_the_operator(xenlb: Xenlb, agent: SmallAgent) -> None:
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


def test_reload_reports_the_change(xenlb: Xenlb, agent: SmallAgent) -> None:
    agent.answers["reload"] = {"reloaded": True, "changes": "no change (1 service)"}
    done = xenlb("reload")
    assert (done.returncode, done.stdout) == (0, "configuration loaded: no change (1 service)\n")
    agent.answers["reload"] = ControlError("refused", status=INVALID_CONFIGURATION)
    done = xenlb("reload")
    assert (done.returncode, done.stderr) == (3, "xenlb: refused\n")
