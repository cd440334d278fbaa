"""`drain`, `undrain` and `reload`: what is asked of the agent, and how its answer is waited for."""

import os
from collections.abc import Callable
from typing import Any

from tests.unit.cli import answers
from tests.unit.cli.conftest import Request, SmallAgent, Xenlb
from xenlb.control.protocol import INVALID_CONFIGURATION, ControlError


def looks(*each: dict[str, Any]) -> Callable[[Request], object]:
    """One answer after the other, the last for good."""
    left = list(each)
    return lambda _: left.pop(0) if len(left) > 1 else left[0]


def look(active: int, inactive: int = 0, **given: Any) -> dict[str, Any]:
    answer = {**answers.why(), **given}
    answer["servers"][0]["active_connections"] = active
    answer["servers"][0]["inactive_connections"] = inactive
    return answer


def test_waits_until_no_connection_is_left(xenlb: Xenlb, agent: SmallAgent) -> None:
    agent.answers["drain"] = answers.why()
    agent.answers["why"] = looks(look(12), look(12), look(1), look(0), look(2), look(0, 7))
    done = xenlb("drain", "mail2", "--timeout", "2m")
    assert done.returncode == 0, done.stderr
    lines = [line.split(",")[0] for line in done.stdout.splitlines()]
    assert lines == [
        "mail2 gets no new connections",
        "mail2: 12 connections",
        "mail2: 1 connection",
        "mail2: 2 connections",  # a lull of one look is no end
        "mail2 is drained",
    ]
    asked = agent.requests[0]
    assert (asked["verb"], asked["guest"], asked["timeout"]) == ("drain", "mail2", 120.0)


def test_waits_for_all_entries_where_the_policy_says_so(xenlb: Xenlb, agent: SmallAgent) -> None:
    strict = look(0, 7)
    strict["servers"][0]["drain_until"] = "all"
    agent.answers["drain"] = answers.why()
    agent.answers["why"] = looks(strict, look(0))
    assert "mail2: 7 connections" in xenlb("drain", "mail2").stdout


def test_its_time_is_up(xenlb: Xenlb, agent: SmallAgent) -> None:
    over = {**answers.why()["drain"], "deadline": answers.ago(seconds=1)}
    agent.answers["drain"] = answers.why()
    agent.answers["why"] = looks(look(3), look(2, drain=over))
    done = xenlb("drain", "mail2")
    assert done.returncode == 1
    assert "mail2 still has 2 connections, and its time is up" in done.stderr


def test_no_wait(xenlb: Xenlb, agent: SmallAgent) -> None:
    agent.answers["drain"] = answers.why()
    done = xenlb("drain", "mail2", "--no-wait")
    assert (done.returncode, done.stdout) == (0, "mail2 gets no new connections\n")
    assert [request["verb"] for request in agent.requests] == ["drain"]
    assert agent.requests[0]["timeout"] is None


def test_put_back_meanwhile(xenlb: Xenlb, agent: SmallAgent) -> None:
    agent.answers["drain"] = answers.why()
    agent.answers["why"] = looks(look(3), look(3, drain=None))
    done = xenlb("drain", "mail2")
    assert done.returncode == 1
    assert "mail2 was put back into service meanwhile" in done.stderr


def test_stopped_meanwhile(xenlb: Xenlb, agent: SmallAgent) -> None:
    agent.answers["drain"] = answers.why()
    agent.answers["why"] = looks(look(3), look(0, drain=None, phase="absent"))
    done = xenlb("drain", "mail2")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "mail2 has stopped")


def test_undrain(xenlb: Xenlb, agent: SmallAgent) -> None:
    agent.answers["undrain"] = answers.why()
    done = xenlb("undrain", "mail2", SUDO_USER="alice")
    assert (done.returncode, done.stdout) == (0, "mail2 is in service again\n")
    assert agent.requests[0]["guest"] == "mail2"
    assert agent.requests[0]["by"] in {"alice (sudo)", f"uid {os.getuid()}"}


def test_reload(xenlb: Xenlb, agent: SmallAgent) -> None:
    agent.answers["reload"] = {"reloaded": True}
    done = xenlb("reload")
    assert (done.returncode, done.stdout) == (0, "the configuration is read and in use\n")
    agent.answers["reload"] = ControlError("it is refused", status=INVALID_CONFIGURATION)
    done = xenlb("reload")
    assert (done.returncode, done.stderr) == (3, "xenlb: it is refused\n")
