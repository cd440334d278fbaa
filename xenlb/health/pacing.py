"""Scheduling of probes' steps, so that they share the loop with the rest of the agent.

A step is the code of a probe between two waits. Steps are short, as the transports yield after a
few pieces of an answer. But each round of the loop runs all that are ready, and the servers
determine their number. So once the steps of a round have taken SHARE, the others wait for the next
round, and other tasks run in between.

Waiting steps run in the order of the time that their answers have cost so far: servers with
expensive answers delay each other, not servers with cheap ones.
"""

import asyncio
import heapq
import itertools
import time
import types
from collections.abc import Awaitable, Callable, Generator
from typing import Any, TypeVar

from xenlb.untrusted.budget import Budget

SHARE = 0.005  # s of a round of the loop
ADMITTED = 16  # waiting steps that are admitted in a round; each checks SHARE again

T = TypeVar("T")


class StepScheduler:
    """Schedules the steps of all probes in one loop. `clock`: seconds, of elapsed time."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._round_started: float | None = None  # with the first step of the round
        self._round_scheduled = False
        self._waiting: list[tuple[float, int, asyncio.Future[None]]] = []
        self._admitted = 0  # steps that have not checked SHARE yet
        self._numbers = itertools.count()

    async def wait_turn(self, budget: Budget) -> None:
        """Return when a step may run: at once, or in a later round of the loop."""
        number = next(self._numbers)
        loop = asyncio.get_running_loop()
        wait = bool(self._waiting or self._admitted)
        while wait or self._is_exhausted(loop):
            future = loop.create_future()
            heapq.heappush(self._waiting, (budget.used_time, number, future))
            self._schedule_round(loop)
            try:
                await future
            finally:
                if future.done() and not future.cancelled():
                    self._admitted -= 1
            wait = False

    def _is_exhausted(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Whether the steps of this round have taken their share."""
        now = self._clock()
        if self._round_started is None:
            self._round_started = now
            self._schedule_round(loop)
        return now - self._round_started >= SHARE

    def _schedule_round(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._round_scheduled:
            self._round_scheduled = True
            loop.call_soon(self._start_round, loop)

    def _start_round(self, loop: asyncio.AbstractEventLoop) -> None:
        self._round_scheduled = False
        self._round_started = None
        while self._waiting and self._admitted < ADMITTED:
            _, _, future = heapq.heappop(self._waiting)
            if not future.done():  # else its probe was cancelled
                future.set_result(None)
                self._admitted += 1
        if self._waiting:
            self._schedule_round(loop)


@types.coroutine
def run_in_steps(
    work: Awaitable[T], budget: Budget, scheduler: StepScheduler
) -> Generator[Any, Any, T]:
    """Await `work`. Each of its steps waits for its turn, and its time is added to the budget."""
    steps: Any = work.__await__()
    try:
        error: BaseException | None = None
        while True:
            try:
                yield from scheduler.wait_turn(budget).__await__()
            except asyncio.CancelledError as cancelled:
                error = cancelled
            started = time.thread_time()
            try:
                # asyncio sends no values: a future keeps its result itself.
                awaited = steps.send(None) if error is None else steps.throw(error)
            except StopIteration as end:
                result: T = end.value
                return result
            finally:
                budget.add_time(time.thread_time() - started)
            error = None
            try:
                yield awaited
            except BaseException as raised:
                error = raised
    finally:
        steps.close()
