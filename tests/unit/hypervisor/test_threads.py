"""Calls in threads: results, errors, late results."""

import asyncio
import threading

import pytest

from tests.unit.hypervisor.running import run, until
from xenlb.hypervisor.threads import CallTimeout, in_thread


def test_result_and_error_reach_the_caller() -> None:
    async def main() -> None:
        assert await in_thread(lambda: 7, limit=5) == 7
        with pytest.raises(ZeroDivisionError):
            await in_thread(lambda: 1 // 0, limit=5)

        def slow() -> None:
            raise TimeoutError("its own")

        with pytest.raises(TimeoutError, match="its own"):
            await in_thread(slow, limit=5)

    run(main)


@pytest.mark.parametrize("how", ["limit", "cancel"])
def test_late_result_is_handed_over_once(how: str) -> None:
    go, late = threading.Event(), list[str]()

    def call() -> str:
        go.wait(10)
        return "connection"

    async def main() -> None:
        limit = 0.05 if how == "limit" else None
        task = asyncio.create_task(in_thread(call, limit=limit, late=late.append))
        if how == "limit":
            with pytest.raises(CallTimeout, match=r"0\.05 s"):
                await task
        else:
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert late == []
        go.set()
        await until(lambda: late, "the late result")
        assert late == ["connection"]

    run(main)


def test_result_whose_caller_is_cancelled_in_the_same_turn_is_not_lost() -> None:
    late = list[int]()

    async def main() -> None:
        task = asyncio.create_task(in_thread(lambda: 7, limit=None, late=late.append))
        await asyncio.sleep(0)
        while not task.done():  # the thread has delivered; the task has not run yet
            task.cancel()
            await asyncio.sleep(0)
        if task.cancelled():
            await until(lambda: late, "the late result")

    run(main)


def test_thread_may_outlive_its_loop() -> None:
    go, late = threading.Event(), list[int]()

    def call() -> int:
        go.wait(10)
        return 7

    async def main() -> None:
        with pytest.raises(CallTimeout):
            await in_thread(call, limit=0.05, late=late.append)

    run(main)
    go.set()
    for thread in threading.enumerate():
        if thread.name == "xenlb-call":
            thread.join(5)
    assert late == [7]
