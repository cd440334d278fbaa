"""Steps of probes in one loop: their number in a round, their order, their measured time."""

import asyncio
import time

import pytest

from xenlb.health.pacing import ADMITTED, SHARE, StepScheduler, run_in_steps
from xenlb.untrusted.budget import Budget


class Clock:
    """A clock that is advanced by the steps."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


async def hostile(clock: Clock, order: list[int], who: int, *, steps: int, each: float) -> None:
    for _ in range(steps):
        order.append(who)
        clock.now += each
        await asyncio.sleep(0)


def steps_between_rounds(number: int, *, steps: int, each: float) -> tuple[int, int]:
    """Return the largest number of steps in one round of the loop, and their number in all."""

    async def main() -> tuple[int, int]:
        clock = Clock()
        turns, order = StepScheduler(clock), list[int]()
        work = asyncio.gather(
            *(
                run_in_steps(
                    hostile(clock, order, who, steps=steps, each=each), Budget(pieces=1), turns
                )
                for who in range(number)
            )
        )
        most = 0
        while not work.done():
            before = len(order)
            await asyncio.sleep(0)
            most = max(most, len(order) - before)
        await work
        return most, len(order)

    return asyncio.run(main())


def test_a_round_runs_few_long_steps() -> None:
    # Two rounds in one look: the counter may come before or behind the steps.
    most, all_of_them = steps_between_rounds(100, steps=5, each=SHARE)
    assert (most <= 2, all_of_them) == (True, 500)


def test_a_round_runs_many_short_steps() -> None:
    most, all_of_them = steps_between_rounds(100, steps=5, each=0.0)
    assert (most >= 100, all_of_them) == (True, 500)


def test_the_cheapest_probe_runs_first() -> None:
    async def main() -> list[int]:
        clock = Clock()
        turns, order = StepScheduler(clock), list[int]()
        budgets = [Budget(pieces=1) for _ in range(50)]
        for who, budget in enumerate(budgets):
            budget.add_time(float(len(budgets) - who))
        works = [
            asyncio.ensure_future(
                run_in_steps(hostile(clock, order, who, steps=1, each=SHARE), budget, turns)
            )
            for who, budget in enumerate(budgets)
        ]
        await asyncio.gather(*works)
        return order

    first, *others = asyncio.run(main())
    assert first == 0, "nothing had been taken of that round yet"
    assert others == sorted(others, reverse=True), "the last has cost least"


def test_a_cancelled_waiting_probe_delays_no_other() -> None:
    async def main() -> list[int]:
        clock = Clock()
        turns, order = StepScheduler(clock), list[int]()

        def begun(who: int) -> asyncio.Task[None]:
            work = run_in_steps(
                hostile(clock, order, who, steps=2, each=SHARE), Budget(pieces=1), turns
            )
            return asyncio.ensure_future(work)

        tasks = [begun(who) for who in range(4 * ADMITTED)]
        for _ in range(3):  # some are let on, and not awake yet
            await asyncio.sleep(0)
        for task in tasks[:-1]:
            task.cancel()
        await asyncio.wait(tasks)
        assert tasks[-1].exception() is None
        await begun(1000)
        return order

    order = asyncio.run(main())
    assert order.count(4 * ADMITTED - 1) == order.count(1000) == 2


def test_processor_time_is_counted_and_the_result_returned() -> None:
    async def work() -> str:
        until = time.thread_time() + 0.01
        while time.thread_time() < until:
            pass
        await asyncio.sleep(0.05)
        return "done"

    async def main() -> tuple[str, float]:
        budget = Budget(pieces=1)
        return await run_in_steps(work(), budget, StepScheduler()), budget.used_time

    result, seconds = asyncio.run(main())
    assert result == "done"
    assert 0.01 <= seconds < 0.05, "to wait costs nothing"


def test_errors_and_timeouts_are_passed_on() -> None:
    ended = []

    async def fails() -> None:
        await asyncio.sleep(0)
        raise ZeroDivisionError

    async def hangs() -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            await asyncio.sleep(0)
            ended.append(True)

    async def main() -> None:
        with pytest.raises(ZeroDivisionError):
            await run_in_steps(fails(), Budget(pieces=1), StepScheduler())
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await run_in_steps(hangs(), Budget(pieces=1), StepScheduler())

    asyncio.run(main())
    assert ended == [True]
