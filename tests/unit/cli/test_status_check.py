"""`status --check`: the line and the exit status for a monitoring system."""

from typing import Any

import pytest

from tests.unit.cli import answers
from tests.unit.cli.conftest import SmallAgent, Xenlb


def healthy() -> dict[str, Any]:
    answer = answers.status()
    del answer["libvirt"][1]
    answer["config"]["problems"] = []
    for service in answer["services"]:
        service |= {"foreign_servers": 0, "foreign": []}
    return answer | {"alarms": [], "refused": [], "differences": []}


def alarm(kind: str) -> list[dict[str, Any]]:
    text = "no server serves: 2 failed | 1 absent"
    return [{"service": "mail", "address": "192.0.2.10:25/tcp", "kind": kind, "text": text}]


@pytest.mark.parametrize(
    ("trouble", "status", "line"),
    [
        ({}, 0, "OK - 2 services, 4 servers: 2 serving, 1 draining, 1 absent; 48 active conn"),
        (
            {"alarms": alarm("down")},
            2,
            "CRITICAL - mail 192.0.2.10:25/tcp: no server serves: 2 failed / 1 absent",
        ),
        ({"alarms": alarm("below")}, 1, "WARNING - mail 192.0.2.10:25/tcp: no server"),
        ({"kernel": "the kernel has no IPVS"}, 2, "CRITICAL - the kernel has no IPVS"),
        ({"refused": [{}, {}]}, 1, "WARNING - 2 operations refused by the kernel"),
        ({"differences": ["x"]}, 1, "WARNING - 1 difference in the table"),
    ],
)
def test_exit_status_line_and_performance_data(
    xenlb: Xenlb, agent: SmallAgent, trouble: dict[str, Any], status: int, line: str
) -> None:
    agent.answers["status"] = healthy() | trouble
    done = xenlb("status", "--check")
    assert done.returncode == status
    (printed,) = done.stdout.splitlines()
    assert printed.startswith(f"XENLB {line}")
    assert printed.endswith(
        " | serving=2 starting=0 draining=1 paused=0 failed=0 absent=1 active_connections=48"
    )


def test_an_agent_that_cannot_be_reached_is_critical(xenlb: Xenlb) -> None:
    done = xenlb("status", "--check")
    assert done.returncode == 2
    assert done.stdout.startswith("XENLB CRITICAL - the agent cannot be reached")


def test_a_configured_weight_of_0_needs_attention(xenlb: Xenlb, agent: SmallAgent) -> None:
    answer = healthy()
    reason = "weight 0 is configured: it gets no new connections"
    answer["services"][1]["servers"] = [
        answers.server("web1", weight=0, configured_weight=0, reason=reason)
    ]
    agent.answers["status"] = answer
    assert f"    {reason}\n" in xenlb("status", "--failed").stdout
