"""Probes share the loop: each of their steps waits for its turn, and is measured.

A step is what a probe does between two waits. Steps are short by themselves (stream.py, pattern.py
and datagram.py give way after a few pieces of an answer). But each round of the loop runs all that
are ready, and the servers decide how many these are. So once the steps of a round have taken SHARE,
the others wait for the next round, and everything else in the loop has its turn in between.

Who waits is let on in the order of what their answers have cost so far: servers whose answers are
expensive wait for each other, and not servers whose answers are cheap for them.
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
# Waiting steps that are let on in a round. Each looks whether there is still time.
LET_ON = 16

T = TypeVar("T")


class Pacer:
    """Of the steps of all probes in one loop. `clock`: s; of the time that the loop stands."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._began: float | None = None  # the first step of this round
        self._next_comes = False  # _next_round is on its way
        self._waiting: list[tuple[float, int, asyncio.Future[None]]] = []
        self._let_on = 0  # that have not looked yet whether there is still time
        self._numbers = itertools.count()

    async def turn(self, budget: Budget) -> None:
        """Returns when a step may begin: at once, or in a later round of the loop."""
        number = next(self._numbers)
        loop = asyncio.get_running_loop()
        wait = bool(self._waiting or self._let_on)
        while wait or self._over(loop):
            future = loop.create_future()
            heapq.heappush(self._waiting, (budget.used_time, number, future))
            self._look_again(loop)
            try:
                await future
            finally:
                if future.done() and not future.cancelled():
                    self._let_on -= 1
            wait = False

    def _over(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Have the steps of this round taken their share?"""
        now = self._clock()
        if self._began is None:
            self._began = now
            self._look_again(loop)
        return now - self._began >= SHARE

    def _look_again(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._next_comes:
            self._next_comes = True
            loop.call_soon(self._next_round, loop)

    def _next_round(self, loop: asyncio.AbstractEventLoop) -> None:
        self._next_comes = False
        self._began = None
        while self._waiting and self._let_on < LET_ON:
            _, _, future = heapq.heappop(self._waiting)
            if not future.done():  # else its probe was cancelled
                future.set_result(None)
                self._let_on += 1
        if self._waiting:
            self._look_again(loop)


@types.coroutine
def metered(work: Awaitable[T], budget: Budget, turns: Pacer) -> Generator[Any, Any, T]:
    """What `work` returns. Each of its steps waits for its turn and is taken out of the budget."""
    steps: Any = work.__await__()
    try:
        error: BaseException | None = None
        while True:
            try:
                yield from turns.turn(budget).__await__()
            except asyncio.CancelledError as cancelled:
                error = cancelled
            began = time.thread_time()
            try:
                # What an await returns is its future's business: asyncio sends nothing.
                waits = steps.send(None) if error is None else steps.throw(error)
            except StopIteration as end:
                result: T = end.value
                return result
            finally:
                budget.took(time.thread_time() - began)
            error = None
            try:
                yield waits
            except BaseException as raised:
                error = raised
    finally:
        steps.close()
