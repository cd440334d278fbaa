"""Every rule that depends on the time, with nothing heard after the first moment.

The owner's loop runs on a clock that jumps from timer to timer. The table is never read again, so
that a change which no deadline brings is not made by the next full read either.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.kernel import FakeKernel
from tests.unit.agent.test_loop import SERVICE, SETTINGS, Desk, agent_at_work, guest, listed
from tests.unit.health import virtual
from xenlb.agent import loop as agent_module
from xenlb.ipvs.table import Protocol
from xenlb.model.domain import RequestKind
from xenlb.model.drain import Outcome
from xenlb.model.events import DrainRequested, Event, ShutdownRequested
from xenlb.model.settings import DrainPolicy, Port, ServiceSettings


class Loop(virtual.VirtualLoop):
    """Threads do their work at once: the clock would jump on while they are at it."""

    def run_in_executor(  # type: ignore[override]
        self, executor: object, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        done = self.create_future()
        done.set_result(func(*args))
        return done


class Clock:
    """Stands for xenlb.clock in the agent."""

    def now(self) -> float:
        return virtual.now()

    def wall(self, at: float) -> str:
        return f"{at:.3f}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """After `event` at second 0, the weight of mail1 is by these seconds what stands there."""

    service: ServiceSettings
    event: Callable[[float], Event] | None
    weights: Mapping[float, int | None]
    holds: Callable[[Desk], bool] = field(default=lambda _: True)


UNCHECKED = replace(SERVICE, checks=())
UDP = Port(number=25, protocol=Protocol.UDP)
RAMP = {0.5: 1, 3.9: 1, 4.1: 2, 5.9: 2, 6.1: 3, 9.9: 4, 10.1: 5, 19.9: 9, 20.1: 10}


def drain(timeout: float) -> Callable[[float], Event]:
    return lambda at: DrainRequested(at=at, guest=guest(1), by="root", timeout=timeout)


def outcome(desk: Desk) -> Outcome | None:
    drain = desk.agent.state.guests[guest(1)].drain
    return None if drain is None else drain.outcome


RULES = {
    "each step of a slow start": Rule(
        service=replace(UNCHECKED, weight=10, slow_start=20.0), event=None, weights=RAMP
    ),
    "a slow start of more steps than can be told apart": Rule(
        service=replace(UNCHECKED, weight=60000, slow_start=20.0),
        event=None,
        weights={0.05: 1, 0.15: 300, 9.95: 29700, 10.05: 30000, 19.95: 59700, 20.05: 60000},
    ),
    "the end of the grace of a request": Rule(
        service=replace(UNCHECKED, drain=DrainPolicy(shutdown_grace=30.0)),
        event=lambda at: ShutdownRequested(
            at=at, guest=guest(1), incarnation=5, kind=RequestKind.POWEROFF
        ),
        weights={0.1: 0, 29.9: 0, 30.1: 1},
    ),
    "UDP that leaves a drained guest": Rule(
        service=replace(UNCHECKED, ports=(UDP,), drain=DrainPolicy(udp=7.0)),
        event=drain(60.0),
        weights={0.1: 0, 6.9: 0, 7.1: None, 30.0: None},
    ),
    "the deadline of a drain": Rule(
        service=UNCHECKED,
        event=drain(17.0),
        weights={0.1: 0, 16.9: 0, 17.1: 0},
        holds=lambda desk: outcome(desk) is Outcome.DEADLINE,
    ),
}


@pytest.mark.parametrize("rule", RULES.values(), ids=list(RULES))
def test_the_time_alone_brings_what_is_due(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rule: Rule
) -> None:
    monkeypatch.setattr(agent_module, "clock", Clock())
    monkeypatch.setattr(agent_module, "RESYNC", inf)

    async def story() -> None:
        settings = replace(SETTINGS, services=(rule.service,))
        async with agent_at_work(tmp_path, FakeKernel(), settings, patience=1000) as desk:
            at = virtual.now()
            await desk.say(replace(listed(mail1=5, mail2=4), at=at, requested_at=at))
            began = virtual.now()
            if rule.event is not None:
                await desk.say(rule.event(began))
            seen = {}
            for second in rule.weights:
                await asyncio.sleep(began + second - virtual.now())
                seen[second] = desk.weights(rule.service).get("10.0.0.11")
            assert seen == rule.weights
            assert rule.holds(desk)
            assert "drift" not in desk.told()

    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(story())
