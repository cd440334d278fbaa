"""Runs the probes of all targets and reports the results that matter to the model.

Due times are in a heap, and only running probes have tasks: thousands of targets cost nothing while
they wait. The model's health rules decide which results change a verdict. A result is reported if
it contradicts the verdict, ends a series of such results, or has a new detail or share, or if the
verdict is overridden for some server. All others, nearly all, are dropped. So are passes of a
target that is damped because it fails again and again, as long as the damping lasts.
"""

import asyncio
import contextlib
import heapq
import itertools
import logging
import operator
import random
import resource
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf

from xenlb.health.pacing import StepScheduler, run_in_steps
from xenlb.health.registry import load_probe, run_probe
from xenlb.health.transport.result import Answer, Probe, answer_budget, over_budget, timed_out
from xenlb.model.events import ProbeFinished
from xenlb.model.health import Health, bounded
from xenlb.model.target import Target
from xenlb.untrusted.budget import Budget, BudgetSpent

log = logging.getLogger(__name__)

# First interval (s) of a target without a verdict, so that a guest serves clients soon after it
# can. It grows to a 50th of the waiting time: a delay of at most 2 %, and a guest that never comes
# costs little.
EAGER = 0.25
PATIENCE = 50
# Interval (s) while results contradict a verdict, until `rise` or `fall` of them have come, and its
# largest share of the check's interval. These probes run one after the other, each with its
# timeout: in parallel, one short pause of the server would fail them all.
DOUBTFUL = 0.5
DOUBTFUL_SHARE = 0.25
JITTER = 0.1
# A target's largest share of the processor: after an answer that took 20 ms to read the next probe
# waits 2 s. Each further answer that exceeds its budget doubles that, up to SLOWEST (s).
COST_SHARE = 0.01
SLOWEST = 60.0
# Probes started in a row before the loop runs other tasks: a connect takes some 0.1 ms, and the
# shutdown of a guest must not wait for hundreds of them.
BURST = 16
# Shortest sleep (s) before probes that come due: a thousand a second are started ten at a time, as
# each wake-up costs about as much as a probe. A probe that is due at once wakes the runner.
TICK = 0.01
# Longest sleep (s): during a suspend `clock` may go on while the loop's clock stops.
NAP = 60.0


@dataclass(slots=True, kw_only=True, eq=False)
class _Schedule:
    """A target's verdict and next probe; `due` inf: none in the heap."""

    target: Target
    health: Health
    due: float = inf
    started: float = -inf  # of the last probe
    pause: float = 0.0  # least time between two probes, because of the cost of the last
    spent: int = 0  # answers in a row that exceeded their budget
    spread: bool = False  # the first regular wait was shortened at random, to spread the probes
    warned: bool = False


class HealthRunner:
    """Runner of the probes of all targets, each when it is due.

    `emit` is called with the results; `clock` is the events' clock (s). `max_running`: probes at
    once, by default half of the files this process may open.
    """

    def __init__(
        self,
        emit: Callable[[ProbeFinished], None],
        clock: Callable[[], float],
        *,
        probe: Probe = run_probe,
        max_running: int | None = None,
    ) -> None:
        self._emit = emit
        self._clock = clock
        self._probe = probe
        self._max_running = max_running
        self._verdicts: Mapping[Target, Health] = {}
        self._schedules: dict[Target, _Schedule] = {}
        self._heap: list[tuple[float, int, _Schedule]] = []
        self._number = itertools.count()
        self._running: dict[Target, asyncio.Task[Answer]] = {}
        self._sleeps_until = -inf
        self._full = False  # no probe may start before another has ended
        self._wake = asyncio.Event()
        self._steps = StepScheduler()

    def set_targets(self, health: Mapping[Target, Health]) -> None:
        """Set the targets and their verdicts. Called after every event of the model.

        The running probe of a target that is missing, or whose Health.valid_from is newer, is
        cancelled.
        """
        before, self._verdicts = self._verdicts, health
        if len(before) == len(health) and all(map(operator.is_, before, health)):
            # The same targets, as nearly always: hashing them would be expensive.
            for target, old, new in zip(health, before.values(), health.values(), strict=True):
                if old is not new and old != new:
                    self._set_verdict(self._schedules[target], new)
            return
        for target in self._schedules.keys() - health.keys():
            self._schedules.pop(target).due = inf
            if target in self._running:
                self._running[target].cancel()
        for target, verdict in health.items():
            schedule = self._schedules.get(target)
            if schedule is None:
                schedule = self._schedules[target] = _Schedule(target=target, health=verdict)
                if target not in self._running:  # else when the old probe has ended
                    self._schedule(schedule, max(self._clock(), verdict.valid_from))
            elif schedule.health != verdict:
                self._set_verdict(schedule, verdict)
        if len(self._heap) > 2 * len(self._schedules) + 64:
            self._heap = [item for item in self._heap if item[2].due == item[0]]
            heapq.heapify(self._heap)

    async def run(self) -> None:
        """Run probes until cancelled; then end all running probes."""
        max_running = self._max_running or _half_of_the_files()
        try:
            while True:
                self._wake.clear()
                burst = 0
                while (
                    burst < BURST
                    and len(self._running) < max_running
                    and (schedule := self._next_due()) is not None
                ):
                    self._start(schedule)
                    burst += 1
                if burst == BURST:
                    await asyncio.sleep(0)
                    continue
                self._full = len(self._running) >= max_running
                await self._sleep()
                self._full = False
        finally:
            probes = [*self._running.values()]
            self._running.clear()
            for probe in probes:
                probe.cancel()
            await asyncio.gather(*probes, return_exceptions=True)

    def _set_verdict(self, schedule: _Schedule, verdict: Health) -> None:
        before, schedule.health = schedule.health, verdict
        running = self._running.get(schedule.target)
        if verdict.valid_from > before.valid_from:
            schedule.spread = False
            if running is None:
                self._schedule(schedule, max(self._clock(), verdict.valid_from))
            else:
                running.cancel()
        elif running is None and (verdict.up, verdict.streak) != (before.up, before.streak):
            due = schedule.started + self._interval(schedule)
            self._schedule(schedule, max(self._clock(), due))

    def _next_due(self) -> _Schedule | None:
        """Take the first schedule of the heap if it is due."""
        now = self._clock()
        while self._heap and self._heap[0][0] <= now:
            due, _, schedule = heapq.heappop(self._heap)
            if schedule.due == due:
                schedule.due = inf
                return schedule
        return None

    async def _sleep(self) -> None:
        """Sleep until a probe is due or the runner is woken; when full, until a probe ends."""
        delay = NAP
        if self._heap and not self._full:
            delay = min(delay, max(TICK, self._heap[0][0] - self._clock()))
        self._sleeps_until = self._clock() + delay
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay):
                await self._wake.wait()
        self._sleeps_until = -inf

    def _schedule(self, schedule: _Schedule, due: float) -> None:
        schedule.due = due
        heapq.heappush(self._heap, (due, next(self._number), schedule))
        if due < self._sleeps_until and not self._full:
            self._wake.set()

    def _interval(self, schedule: _Schedule) -> float:
        """Return the time (s) from the start of the last probe to the next."""
        return max(schedule.pause, self._wanted_interval(schedule))

    def _wanted_interval(self, schedule: _Schedule) -> float:
        """Return the interval without regard to cost."""
        check, health = schedule.target.check, schedule.health
        now = self._clock()
        if health.streak > 0 and _passes_while_damped(schedule, now):
            # Only the first result after the damping matters, so a probe starts when it ends.
            return min(check.interval, max(DOUBTFUL, health.held_until - schedule.started))
        if health.streak > 0:
            return _doubtful_interval(schedule)
        if health.up is None and not health.overridden:
            waited = now - health.valid_from
            return min(check.interval, max(EAGER, waited / PATIENCE))
        if not schedule.spread:
            schedule.spread = True
            return check.interval * random.uniform(JITTER, 1.0)
        return check.interval * random.uniform(1 - JITTER, 1 + JITTER)

    def _start(self, schedule: _Schedule) -> None:
        target = schedule.target
        started = schedule.started = self._clock()
        budget = answer_budget()
        task = asyncio.create_task(self._run_probe(target, budget), name=f"probe {target}")
        valid_from = schedule.health.valid_from
        self._running[target] = task
        task.add_done_callback(lambda done: self._ended(target, started, valid_from, budget, done))

    async def _run_probe(self, target: Target, budget: Budget) -> Answer:
        if self._probe is run_probe:
            await load_probe(target)
        try:
            async with asyncio.timeout(target.check.timeout):
                return await run_in_steps(self._probe(target, budget), budget, self._steps)
        except TimeoutError as timeout:
            return timed_out(target, timeout)
        except BudgetSpent as spent:
            budget.spent = True
            return over_budget(target, spent)

    def _ended(
        self,
        target: Target,
        started: float,
        valid_from: float,
        budget: Budget,
        task: asyncio.Task[Answer],
    ) -> None:
        """Handle the end of a probe; `valid_from`: of the verdict for which it was started."""
        stopping = self._running.pop(target, None) is None
        if self._full:
            self._wake.set()
        if stopping:
            return
        schedule = self._schedules.get(target)
        if schedule is None:
            return
        if task.cancelled() or schedule.health.valid_from > valid_from:
            self._schedule(schedule, max(self._clock(), schedule.health.valid_from))
            return
        # After an expensive answer the next probe waits.
        schedule.spent = schedule.spent + 1 if budget.spent else 0
        cost = budget.used_time / COST_SHARE * 2 ** min(schedule.spent, 16)
        schedule.pause = min(SLOWEST, cost)
        interval = self._interval(schedule)
        if (error := task.exception()) is not None:
            # A defect of a probe affects only this target.
            log.error("the probe of %s failed: %r", target, error, exc_info=error)
        elif self._report(schedule, started, task.result()):
            interval = max(schedule.pause, min(interval, _doubtful_interval(schedule)))
        self._schedule(schedule, max(self._clock(), started + interval))

    def _report(self, schedule: _Schedule, started: float, answer: Answer) -> bool:
        """Emit the result if it matters; return whether it contradicts the verdict.

        After a contradiction the next probe should come soon.
        """
        health = schedule.health
        if answer.up is None and (health.up or health.overridden):
            if not schedule.warned:
                log.warning("%s; it stays in service", answer.detail)
            schedule.warned = True
            return False
        schedule.warned = False
        up = bool(answer.up)
        now = self._clock()
        # An overridden verdict is up for some server, whatever the target's own is.
        contradicts = up is not bool(health.up) or (health.overridden and not up)
        held = up and contradicts and _passes_while_damped(schedule, now)
        check = schedule.target.check
        share = bounded(check, answer.share, declines=answer.declines) if up else health.share
        if (
            health.overridden
            or (contradicts and not held)
            or (health.streak > 0 and not contradicts)
            or answer.detail != health.detail
            or share != health.share
        ):
            self._emit(
                ProbeFinished(
                    at=now,
                    target=schedule.target,
                    started=started,
                    up=up,
                    detail=answer.detail,
                    share=answer.share,
                    declines=answer.declines,
                )
            )
        return contradicts and not held


def _passes_while_damped(schedule: _Schedule, now: float) -> bool:
    return schedule.health.damped(now) and schedule.health.has_risen(schedule.target.check)


def _doubtful_interval(schedule: _Schedule) -> float:
    return min(DOUBTFUL, schedule.target.check.interval * DOUBTFUL_SHARE)


def _half_of_the_files() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 4096 if soft == resource.RLIM_INFINITY else max(32, min(4096, soft // 2))
