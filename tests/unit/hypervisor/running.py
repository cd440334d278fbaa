"""Running a source inside a test, and waiting for its events."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


def run(main: Callable[[], Awaitable[T]], *, limit: float = 30) -> T:
    """Run `main` in a loop in debug mode, where calls from a wrong thread raise."""

    async def limited() -> T:
        async with asyncio.timeout(limit):
            return await main()

    return asyncio.run(limited(), debug=True)


async def until(true: Callable[[], object], what: str, limit: float = 10) -> None:
    deadline = time.monotonic() + limit
    while not true():
        assert time.monotonic() < deadline, f"not seen within {limit} s: {what}"
        await asyncio.sleep(0.005)


async def ended(task: "asyncio.Task[None]") -> None:
    """Cancel a source and wait for its end."""
    task.cancel()
    await asyncio.wait({task}, timeout=5)
    assert task.cancelled(), task


def clock() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)
