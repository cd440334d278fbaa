"""The runner's intervals and reported results, in virtual time with fake probes."""

import asyncio
import contextlib
import logging
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from tests.unit.health.virtual import gaps, now, run
from xenlb.health.runner import SLOWEST, HealthRunner
from xenlb.health.transport.result import Answer
from xenlb.model.checks import Agent, Share
from xenlb.model.events import ProbeFinished
from xenlb.model.health import Health, apply_result
from xenlb.model.settings import Check
from xenlb.model.target import Target
from xenlb.untrusted.budget import Budget

CHECK = Check(type="fake", interval=5.0, timeout=3.0, rise=1, fall=3)
BASE = int(IPv4Address("10.0.0.1"))


def target(number: int = 0, check: Check = CHECK) -> Target:
    return Target(check=check, address=IPv4Address(BASE + number), port=25)


class Servers:
    """Probes with given answers, which record their calls."""

    def __init__(self) -> None:
        self.answers: dict[Target, Answer] = {}
        self.asked: dict[Target, list[float]] = {}
        self.hang: set[Target] = set()
        self.under_way: Counter[Target] = Counter()
        self.most = 0
        self.cancelled: list[Target] = []
        self.broken: set[Target] = set()
        self.cost: dict[Target, float] = {}  # s of the processor, of each answer
        self.spend: set[Target] = set()  # whose answers spend their budget

    async def probe(self, asked: Target, budget: Budget) -> Answer:
        self.asked.setdefault(asked, []).append(now())
        self.under_way[asked] += 1
        assert self.under_way[asked] == 1, "two probes of one target at once"
        self.most = max(self.most, self.under_way.total())
        try:
            if asked in self.broken:
                raise ZeroDivisionError
            budget.add_time(self.cost.get(asked, 0.0))
            if asked in self.spend:
                budget.take(budget.pieces + 1)
            await asyncio.sleep(1e6 if asked in self.hang else 0.001)
        except asyncio.CancelledError:
            self.cancelled.append(asked)
            raise
        finally:
            self.under_way[asked] -= 1
        return self.answers.get(asked, Answer(up=True, detail="accepts"))


class Bench:
    """A runner with the model's health rules, as in the agent."""

    def __init__(self, *, max_running: int = 100) -> None:
        self.servers = Servers()
        self.told: list[ProbeFinished] = []
        self.health: Mapping[Target, Health] = {}
        self.runner = HealthRunner(
            self.emit, now, probe=self.servers.probe, max_running=max_running
        )

    def emit(self, result: ProbeFinished) -> None:
        self.told.append(result)
        # The agent takes the event in another task, a little later.
        asyncio.get_running_loop().call_soon(self.take, result)

    def take(self, result: ProbeFinished) -> None:
        if (health := self.health.get(result.target)) is not None:
            verdict = apply_result(health, result, result.target.check)
            self.step({**self.health, result.target: verdict})

    def step(self, health: Mapping[Target, Health]) -> None:
        self.health = health
        self.runner.set_targets(health)

    def unknown(self, *targets: Target) -> None:
        self.step({each: Health(valid_from=now()) for each in targets})


@contextlib.asynccontextmanager
async def running(bench: Bench) -> AsyncIterator[None]:
    task = asyncio.create_task(bench.runner.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert bench.servers.under_way.total() == 0


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(10_000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come to it within 100 s")


def test_a_new_target_is_probed_and_reported_at_once() -> None:
    async def main() -> None:
        bench, start = Bench(), now()
        async with running(bench):
            bench.unknown(target())
            await asyncio.sleep(0.01)
            assert bench.servers.asked[target()] == [start]
        assert [(r.started, r.up, r.detail) for r in bench.told] == [(start, True, "accepts")]
        assert bench.told[0].at == pytest.approx(start + 0.001)
        assert bench.health[target()].up is True

    run(main())


def test_targets_given_before_it_runs_are_not_lost() -> None:
    async def main() -> None:
        bench = Bench()
        bench.unknown(target())
        async with running(bench):
            await asyncio.sleep(0.01)
        assert len(bench.told) == 1

    run(main())


def test_a_booting_guest_is_probed_ever_less_often_and_reported_once() -> None:
    async def main() -> None:
        bench, one = Bench(), target()
        bench.servers.answers[one] = Answer(up=False, detail="refused")
        async with running(bench):
            bench.unknown(one)
            await asyncio.sleep(600)
        waits = gaps(bench.servers.asked[one])
        assert waits[:10] == [0.25] * 10
        assert waits == sorted(waits)
        assert waits[-1] == 5.0
        # Nobody waits much longer for its admission than it took to boot.
        for moment, wait in zip(bench.servers.asked[one], waits, strict=False):
            assert wait <= max(0.25, 0.021 * (moment - bench.servers.asked[one][0]))
        assert [(r.up, r.detail) for r in bench.told] == [(False, "refused")]
        assert bench.health[one].up is None

    run(main())


def test_a_healthy_server_is_probed_at_the_interval_and_not_reported() -> None:
    async def main() -> None:
        bench, one = Bench(), target()
        async with running(bench):
            bench.unknown(one)
            await asyncio.sleep(1000)
        waits = gaps(bench.servers.asked[one])
        assert waits[0] < 5.5, "the first wait is cut short, to spread the herd"
        assert all(4.5 <= wait <= 5.5 for wait in waits[1:])
        assert len(set(waits)) > 100, "jitter"
        assert len(bench.told) == 1

    run(main())


def test_failures_are_probed_quickly_and_reported_until_the_verdict() -> None:
    async def main() -> None:
        bench, one = Bench(), target()
        async with running(bench):
            bench.unknown(one)
            await asyncio.sleep(60)
            bench.servers.answers[one] = Answer(up=False, detail="refused")
            await asyncio.sleep(60)
            down = bench.told[1:]
            assert [r.up for r in down] == [False] * 3
            assert gaps(r.started for r in down) == [0.5, 0.5]
            assert bench.health[one].up is False
            later = [t for t in bench.servers.asked[one] if t > down[-1].at]
            assert all(4.5 <= wait <= 5.5 for wait in gaps(later))

            bench.servers.answers[one] = Answer(up=True, detail="accepts")
            await asyncio.sleep(60)
        assert [r.up for r in bench.told[4:]] == [True]
        assert bench.health[one].up is True

    run(main())


def test_a_damped_target_is_probed_at_its_interval_until_the_damping_ends() -> None:
    """Minutes of damping at the interval of a series of failures would be many probes."""

    async def main() -> None:
        bench, one = Bench(), target(check=replace(CHECK, fall=1, flap_damping=300.0))
        async with running(bench):
            held = now() + 91.0
            bench.step({one: Health(valid_from=0.0, up=False, failures=8, held_until=held)})
            await until(lambda: bool(bench.health[one].up))
            back = now()
        assert held <= back < held + 0.1
        waits = gaps(bench.servers.asked[one])
        assert len(waits) < 24
        assert all(wait <= 5.5 for wait in waits)
        # The first good result, and the one that counts; between them nothing is new.
        assert [r.up for r in bench.told] == [True, True]

    run(main())


def test_a_failure_during_damping_resets_the_passes() -> None:
    async def main() -> None:
        bench, one = Bench(), target(check=replace(CHECK, rise=2))
        async with running(bench):
            held = now() + 60.0
            bench.step({one: Health(valid_from=0.0, up=False, failures=8, held_until=held)})
            await until(lambda: bench.health[one].streak == 2)
            bench.servers.answers[one] = Answer(up=False, detail="refused")
            await until(lambda: bench.health[one].streak == 0)
            assert bench.health[one].up is False
            await asyncio.sleep(60)
            assert bench.health[one].up is False
            bench.servers.answers[one] = Answer(up=True, detail="accepts")
            await until(lambda: bool(bench.health[one].up))

    run(main())


def test_a_changed_share_is_reported_within_its_bounds() -> None:
    async def main() -> None:
        check = replace(CHECK, asks=Agent(share=Share(least=0.1, most=1.0)))
        bench, one = Bench(), target(check=check)
        async with running(bench):
            bench.unknown(one)
            for share in (0.5, 0.5, 0.0, 0.1, -3.0, 1.0):
                bench.servers.answers[one] = Answer(up=True, detail="up", share=share)
                await asyncio.sleep(12)
            bench.servers.answers[one] = Answer(up=True, detail="up", share=1.0, declines=True)
            await asyncio.sleep(12)
        assert [(r.share, r.declines) for r in bench.told] == [
            (0.5, False),
            (0.0, False),
            (1.0, False),
            (1.0, True),
        ]
        assert bench.health[one].share == 0.0

    run(main())


@pytest.mark.parametrize("up", [None, False])
def test_every_result_is_reported_while_a_verdict_is_overridden(up: bool | None) -> None:
    """A target that stays down is not reported again as long as its detail is the same."""

    async def main() -> None:
        bench, one = Bench(), target()
        bench.servers.answers[one] = Answer(up=False, detail="refused")
        async with running(bench):
            bench.step({one: Health(valid_from=now(), up=up, detail="refused", overridden=True)})
            await asyncio.sleep(2.1)
            assert [r.up for r in bench.told] == [False] * 5
            assert set(gaps(r.started for r in bench.told)) == {0.5}
            bench.servers.answers[one] = Answer(up=None, detail="no file left")
            await asyncio.sleep(12)
            assert len(bench.told) == 5, "this host's trouble is none of the server"
            bench.servers.answers[one] = Answer(up=False, detail="refused")
            bench.step({one: replace(bench.health[one], overridden=False)})
            await asyncio.sleep(12)
            assert len(bench.told) == 5

    run(main())


def test_a_pass_ends_a_series_of_failures() -> None:
    async def main() -> None:
        bench, one = Bench(), target()
        async with running(bench):
            bench.unknown(one)
            await asyncio.sleep(60)
            for _ in range(4):  # two failures each, of fall: 3
                bench.servers.answers[one] = Answer(up=False, detail="refused")
                await until(lambda: bench.health[one].streak == 2)
                bench.servers.answers[one] = Answer(up=True, detail="accepts")
                await until(lambda: bench.health[one].streak == 0)
        assert [r.up for r in bench.told] == [True, *[False, False, True] * 4]
        assert bench.health[one].up is True

    run(main())


def test_a_short_interval_is_kept() -> None:
    async def main() -> None:
        bench, one = Bench(), target(check=replace(CHECK, interval=0.1))
        bench.servers.answers[one] = Answer(up=False, detail="refused")
        async with running(bench):
            bench.unknown(one)
            await asyncio.sleep(10)
        assert set(gaps(bench.servers.asked[one])) == {0.1}

    run(main())


def test_a_short_interval_shortens_the_probes_after_a_failure() -> None:
    async def main() -> None:
        bench, one = Bench(), target(check=replace(CHECK, interval=1.0))
        async with running(bench):
            bench.unknown(one)
            await asyncio.sleep(60)
            bench.servers.answers[one] = Answer(up=False, detail="refused")
            await asyncio.sleep(60)
        assert gaps(r.started for r in bench.told[1:]) == [0.25, 0.25]

    run(main())


def test_a_probe_without_an_answer_ends_at_its_timeout() -> None:
    async def main() -> None:
        bench, one, start = Bench(), target(), now()
        bench.servers.hang.add(one)
        async with running(bench):
            bench.unknown(one)
            await asyncio.sleep(6.5)
        assert bench.told[0].detail == "no answer within 3 s from 10.0.0.1 port 25"
        assert bench.told[0].at == pytest.approx(start + 3)
        assert gaps(bench.servers.asked[one]) == [3, 3], "one after the other, never two at once"

    run(main())


def test_a_changed_detail_is_reported() -> None:
    async def main() -> None:
        bench, one = Bench(), target()
        async with running(bench):
            bench.unknown(one)
            for words in ("no route", "no route", "refused", "refused"):
                bench.servers.answers[one] = Answer(up=False, detail=words)
                await asyncio.sleep(1)
        assert [r.detail for r in bench.told] == ["no route", "refused"]
        assert bench.health[one].detail == "refused"

    run(main())


def test_a_dropped_target_is_not_probed_any_more() -> None:
    async def main() -> None:
        bench, stays, hangs, waits = Bench(), target(1), target(2), target(3)
        bench.servers.hang.add(hangs)
        async with running(bench):
            bench.unknown(stays, hangs, waits)
            await asyncio.sleep(1)
            bench.step({stays: bench.health[stays]})
            asked = {each: len(times) for each, times in bench.servers.asked.items()}
            told = len(bench.told)
            await asyncio.sleep(60)
            assert bench.servers.cancelled == [hangs]
            assert len(bench.servers.asked[hangs]) == asked[hangs]
            assert len(bench.servers.asked[waits]) == asked[waits]
            assert len(bench.servers.asked[stays]) > asked[stays]
            assert len(bench.told) == told

    run(main())


def test_a_rebooted_guest_is_probed_at_once() -> None:
    async def main() -> None:
        bench, hangs, rests = Bench(), target(1), target(2)
        bench.servers.hang.add(hangs)
        async with running(bench):
            bench.unknown(hangs, rests)
            await asyncio.sleep(1)
            assert bench.health[rests].up is True
            again = now()
            bench.unknown(hangs, rests)
            await asyncio.sleep(0.01)
            assert bench.servers.cancelled == [hangs]
            assert bench.servers.asked[hangs] == [again - 1, again]
            assert bench.servers.asked[rests][-1] == again
            assert bench.told[-1].started >= bench.health[rests].valid_from
            assert bench.health[rests].up is True

    run(main())


def test_a_target_dropped_and_taken_back_has_one_probe() -> None:
    async def main() -> None:
        bench, one = Bench(), target()
        bench.servers.hang.add(one)
        async with running(bench):
            bench.unknown(one)
            await asyncio.sleep(1)
            for _ in range(3):  # the probe counts itself: two at once fail the test
                bench.step({})
                bench.unknown(one)
            await asyncio.sleep(0.1)
            assert bench.servers.under_way[one] == 1
            assert len(bench.servers.asked[one]) == 2

    run(main())


def test_results_from_before_valid_from_are_dropped() -> None:
    async def main() -> None:
        bench, one = Bench(), target()
        async with running(bench):
            bench.step({one: Health(valid_from=now() + 2)})
            await asyncio.sleep(1.9)
            assert one not in bench.servers.asked
            await asyncio.sleep(0.2)
            assert len(bench.told) == 1

    run(main())


def test_errors_of_this_host_remove_no_server(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        bench, serving, booting = Bench(), target(1), target(2)
        async with running(bench):
            bench.unknown(serving)
            await asyncio.sleep(1)
            trouble = Answer(up=None, detail="this host cannot probe: too many open files")
            bench.servers.answers |= {serving: trouble, booting: trouble}
            bench.step({**bench.health, booting: Health(valid_from=now())})
            await asyncio.sleep(100)
        assert bench.health[serving].up is True
        assert bench.health[serving].streak == 0
        assert bench.health[booting].up is None
        assert bench.health[booting].detail == trouble.detail, "why it is not admitted"

    with caplog.at_level(logging.WARNING):
        run(main())
    assert [record.message for record in caplog.records] == [
        "this host cannot probe: too many open files; it stays in service"
    ]


def test_a_defect_of_a_probe_affects_no_other_target(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        bench, broken, fine = Bench(), target(1), target(2)
        bench.servers.broken.add(broken)
        async with running(bench):
            bench.unknown(broken, fine)
            await asyncio.sleep(100)
        assert len(bench.servers.asked[fine]) > 15
        assert len(bench.servers.asked[broken]) > 15
        assert {r.target for r in bench.told} == {fine}

    with caplog.at_level(logging.ERROR):
        run(main())
    assert "the probe of fake 10.0.0.1" not in caplog.text
    assert "the probe of fake 10.0.0.2:25 failed: ZeroDivisionError()" in caplog.text


def test_many_targets_are_spread_and_bounded() -> None:
    async def main() -> None:
        bench = Bench(max_running=20)
        many = [target(number) for number in range(500)]
        async with running(bench):
            bench.unknown(*many)
            await asyncio.sleep(100)
            assert bench.servers.most == 20
            assert len(bench.told) == len(many)
            # After the start the herd has dissolved: every second has its share of the probes.
            late = Counter(
                int(moment)
                for times in bench.servers.asked.values()
                for moment in times
                if moment > times[0] + 50
            )
            assert max(list(late.values())[1:-1]) < 2 * len(many) / 5
            assert len(bench.runner._heap) < 3 * len(many)

    run(main())


def test_probes_are_spread_after_one_interval() -> None:
    async def main() -> None:
        bench = Bench(max_running=10_000)
        many = [target(number) for number in range(1000)]
        async with running(bench):
            bench.unknown(*many)
            await asyncio.sleep(CHECK.interval * 3)
            begun = min(times[0] for times in bench.servers.asked.values())
        # Half an interval is a tenth of the spread each; all at once would be a thousand.
        for number in (1, 2):
            slices = Counter(
                int((times[number] - begun) / 0.5) for times in bench.servers.asked.values()
            )
            assert max(slices.values()) < len(many) / 5

    run(main())


def test_only_changes_of_many_servers_are_reported() -> None:
    async def main() -> None:
        bench = Bench(max_running=10_000)
        many = [target(number) for number in range(100)]
        failing = set(many[::10])
        async with running(bench):
            bench.unknown(*many)
            await asyncio.sleep(60)
            assert len(bench.told) == len(many), "each has been seen up, once"
            bench.servers.answers |= dict.fromkeys(failing, Answer(up=False, detail="refused"))
            await asyncio.sleep(200)
            down = bench.told[len(many) :]
            assert {r.target for r in down} == failing
            assert len(down) == len(failing) * CHECK.fall
            bench.servers.answers.clear()
            await asyncio.sleep(60)
            back = bench.told[len(many) + len(down) :]
            assert Counter(r.target for r in back) == dict.fromkeys(failing, CHECK.rise)
        assert sum(map(len, bench.servers.asked.values())) > 40 * len(many)

    run(main())


def test_hanging_servers_leave_room_for_the_others() -> None:
    async def main() -> None:
        bench = Bench(max_running=10)
        dead = [target(number) for number in range(30)]
        bench.servers.hang.update(dead)
        alive = target(1000)
        async with running(bench):
            bench.unknown(*dead, alive)
            await asyncio.sleep(300)
            assert bench.servers.most == 10
            # 30 that take 3 s each, ten at a time: a round takes 9 s.
            assert max(gaps(bench.servers.asked[alive])) < 5.5 + 9.1

    run(main())


def test_unchanged_targets_are_not_hashed() -> None:
    async def main() -> None:
        bench = Bench()
        many = [target(number) for number in range(100)]
        bench.unknown(*many)
        copy = dict(bench.health)  # as the model makes it anew at each step
        calls = 0

        def count(frame: object, event: str, argument: object) -> None:
            nonlocal calls
            calls += event == "call"

        sys.setprofile(count)
        try:
            bench.runner.set_targets(copy)
        finally:
            sys.setprofile(None)
        assert calls == 1

    run(main())


@pytest.mark.parametrize("up", [True, False])
def test_expensive_answers_delay_the_next_probe(up: bool) -> None:
    """20 ms of the processor's time are a hundredth of 2 s, and 0.2 s of 20 s."""

    async def main() -> None:
        bench = Bench()
        doubtful = replace(CHECK, fall=1000)
        cheap, dear, dearer = (target(number, doubtful) for number in range(3))
        bench.servers.cost = {dear: 0.02, dearer: 0.2}
        bench.servers.answers = dict.fromkeys((cheap, dear, dearer), Answer(up=up, detail="x"))
        async with running(bench):
            bench.step({each: Health(valid_from=now(), up=True) for each in (cheap, dear, dearer)})
            await asyncio.sleep(100)
        assert min(gaps(bench.servers.asked[dear])) >= 2.0
        assert min(gaps(bench.servers.asked[dearer])) >= 20.0
        assert max(gaps(bench.servers.asked[cheap])) < 5.6
        if not up:
            assert max(gaps(bench.servers.asked[cheap])) < 0.6, "the others' pace is as it was"

    run(main())


def test_a_target_that_exceeds_its_budget_is_probed_ever_less_often() -> None:
    async def main() -> None:
        bench = Bench()
        bench.servers.cost = {target(): 0.01}
        bench.servers.spend.add(target())
        async with running(bench):
            bench.unknown(target())
            await asyncio.sleep(400)
            assert bench.told[-1].detail == (
                "expected an answer from 10.0.0.1 port 25, got more than 6000 pieces"
            )
            assert bench.told[-1].up is False
            pauses = gaps(bench.servers.asked[target()])
            assert pauses[:6] == pytest.approx([2, 4, 8, 16, 32, 60], rel=0.05)
            assert set(map(round, pauses[5:])) == {SLOWEST}
            bench.servers.spend.clear()
            asked = len(bench.servers.asked[target()])
            await asyncio.sleep(100)
        after = gaps(bench.servers.asked[target()][asked:])
        assert max(after) < 6, "one answer that is cheap, and it is as it was"
        assert bench.health[target()].up

    run(main())
