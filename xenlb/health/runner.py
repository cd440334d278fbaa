"""Probes every target of the model, at its pace, and tells what the model has to know.

A heap of due times, and a task for each probe under way only: thousands of targets cost nothing
while they wait. Which result changes a verdict is decided in `model.health`; how a server is asked,
in the probes (registry.py). A result is told if it contradicts the verdict, ends a series of such,
or says something new, or if some server has a verdict of its own; the others, nearly all of them,
are swallowed here. So are the good results of a target that is held back because it fails again and
again: nothing follows from them until then.
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

from xenlb.health.pacing import Pacer, metered
from xenlb.health.registry import load_probe, run_probe
from xenlb.health.transport.result import Answer, Probe, answer_budget, too_late, too_much
from xenlb.model.events import ProbeFinished
from xenlb.model.health import Health, bounded
from xenlb.model.target import Target
from xenlb.untrusted.budget import Budget, BudgetSpent

log = logging.getLogger(__name__)

# A target with no verdict yet is probed at this pace at first (s), so that a guest serves clients
# soon after it can; then ever less often, at a 50th of the time it has been waited for: nobody
# waits more than 2 % longer than needed, and a guest that never comes costs little.
EAGER = 0.25
PATIENCE = 50
# The pace (s) while results contradict a verdict, until `rise` or `fall` of them have come; and at
# most this share of the interval, as who asks every second does not want to lose another one. One
# after the other all the same: each has its timeout, so a server that hangs stays for `fall` of
# these. If they ran side by side, one pause of it would fail them all.
DOUBTFUL = 0.5
DOUBTFUL_SHARE = 0.25
JITTER = 0.1
# Of the processor's time: what a target may have over time. After an answer that took 20 ms to read
# it is left alone for 2 s. With each answer in a row that spent its budget that is twice as long,
# up to SLOWEST (s).
COST_SHARE = 0.01
SLOWEST = 60.0
# Probes begun in a row before everything else in the loop gets its turn: a connect takes some
# 0.1 ms, and a guest that is asked to shut down must not wait for hundreds of them.
BURST = 16
# Shortest sleep (s) before probes that come due: a thousand a second are begun ten at a time, as
# each wake-up costs about what a probe does. What is due at once wakes the runner at once.
TICK = 0.01
# Longest sleep (s): the clock that is handed in may go on while the loop's stands (suspend).
NAP = 60.0


@dataclass(slots=True, kw_only=True, eq=False)
class _Entry:
    """A target now: the model's verdict, and when its next probe is due (inf: not by the heap)."""

    target: Target
    health: Health
    due: float = inf
    asked: float = -inf  # when the last probe began
    pause: float = 0.0  # from the last probe to the next at least, for what it cost
    spent: int = 0  # answers in a row that spent their budget
    spread: bool = False  # the first regular wait was cut short at random, to spread the herd
    warned: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _UnderWay:
    """A probe under way, and for which verdict's sake it was begun."""

    task: asyncio.Task[Answer]
    valid_from: float
    budget: Budget


class HealthRunner:
    """`emit` takes the results; `clock` is the events' clock (s). `at_once`: probes under way at
    most, by default half of the files this process may have open."""

    def __init__(
        self,
        emit: Callable[[ProbeFinished], None],
        clock: Callable[[], float],
        *,
        probe: Probe = run_probe,
        at_once: int | None = None,
    ) -> None:
        self._emit = emit
        self._clock = clock
        self._probe = probe
        self._at_once = at_once
        self._seen: Mapping[Target, Health] = {}
        self._entries: dict[Target, _Entry] = {}
        self._heap: list[tuple[float, int, _Entry]] = []
        self._number = itertools.count()
        self._under_way: dict[Target, _UnderWay] = {}
        self._sleeps_until = -inf
        self._full = False  # no more probes may begin until one has ended
        self._wake = asyncio.Event()
        self._turns = Pacer()

    def targets(self, health: Mapping[Target, Health]) -> None:
        """What is to be probed from now on, with the verdicts so far. Called after every step.

        A target that is left out, or whose Health.valid_from is newer, ends its probe under way.
        """
        seen, self._seen = self._seen, health
        if len(seen) == len(health) and all(map(operator.is_, seen, health)):
            # Same targets, as nearly always: no hashing of them, which is what costs here.
            for target, old, new in zip(health, seen.values(), health.values(), strict=True):
                if old is not new and old != new:
                    self._judged(self._entries[target], new)
            return
        for target in self._entries.keys() - health.keys():
            self._entries.pop(target).due = inf
            if target in self._under_way:
                self._under_way[target].task.cancel()
        for target, verdict in health.items():
            entry = self._entries.get(target)
            if entry is None:
                entry = self._entries[target] = _Entry(target=target, health=verdict)
                if target not in self._under_way:  # else when the old probe has ended
                    self._schedule(entry, max(self._clock(), verdict.valid_from))
            elif entry.health != verdict:
                self._judged(entry, verdict)
        if len(self._heap) > 2 * len(self._entries) + 64:
            self._heap = [item for item in self._heap if item[2].due == item[0]]
            heapq.heapify(self._heap)

    async def run(self) -> None:
        """Probes until it is cancelled; then no probe is under way any more."""
        at_once = self._at_once or _half_of_the_files()
        try:
            while True:
                self._wake.clear()
                burst = 0
                while (
                    burst < BURST
                    and len(self._under_way) < at_once
                    and (entry := self._next_due()) is not None
                ):
                    self._begin(entry)
                    burst += 1
                if burst == BURST:
                    await asyncio.sleep(0)
                    continue
                self._full = len(self._under_way) >= at_once
                await self._sleep()
                self._full = False
        finally:
            probes = [probe.task for probe in self._under_way.values()]
            self._under_way.clear()
            for task in probes:
                task.cancel()
            await asyncio.gather(*probes, return_exceptions=True)

    def _judged(self, entry: _Entry, verdict: Health) -> None:
        """The model's verdict on a known target has changed, or results begun so far are void."""
        before, entry.health = entry.health, verdict
        under_way = self._under_way.get(entry.target)
        if verdict.valid_from > before.valid_from:
            entry.spread = False
            if under_way is None:
                self._schedule(entry, max(self._clock(), verdict.valid_from))
            else:
                under_way.task.cancel()
        elif under_way is None and (verdict.up, verdict.streak) != (before.up, before.streak):
            self._schedule(entry, max(self._clock(), entry.asked + self._wait(entry)))

    def _next_due(self) -> _Entry | None:
        """Takes the first of the heap if it is due."""
        now = self._clock()
        while self._heap and self._heap[0][0] <= now:
            due, _, entry = heapq.heappop(self._heap)
            if entry.due == due:
                entry.due = inf
                return entry
        return None

    async def _sleep(self) -> None:
        """Until something is due or has happened; if no more probes may begin, until one ends."""
        delay = NAP
        if self._heap and not self._full:
            delay = min(delay, max(TICK, self._heap[0][0] - self._clock()))
        self._sleeps_until = self._clock() + delay
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay):
                await self._wake.wait()
        self._sleeps_until = -inf

    def _schedule(self, entry: _Entry, due: float) -> None:
        entry.due = due
        heapq.heappush(self._heap, (due, next(self._number), entry))
        if due < self._sleeps_until and not self._full:
            self._wake.set()

    def _wait(self, entry: _Entry) -> float:
        """How long (s) after one probe the next begins."""
        return max(entry.pause, self._pace(entry))

    def _pace(self, entry: _Entry) -> float:
        """The same, were its answers free."""
        check, health = entry.target.check, entry.health
        now = self._clock()
        if health.streak > 0 and self._held(entry, now):
            # It would be let in, were it not held back: nothing depends on the next result but the
            # first one after that. The one that is asked when the hold is over ends it.
            return min(check.interval, max(DOUBTFUL, health.held_until - entry.asked))
        if health.streak > 0:
            return _doubtful(entry)
        if health.up is None and not health.overridden:
            waited = now - health.valid_from
            return min(check.interval, max(EAGER, waited / PATIENCE))
        if not entry.spread:
            entry.spread = True
            return check.interval * random.uniform(JITTER, 1.0)
        return check.interval * random.uniform(1 - JITTER, 1 + JITTER)

    @staticmethod
    def _held(entry: _Entry, now: float) -> bool:
        """Is it held back, with as many good results as it needs?"""
        return entry.health.damped(now) and entry.health.passes(entry.target.check)

    def _begin(self, entry: _Entry) -> None:
        target = entry.target
        asked = entry.asked = self._clock()
        budget = answer_budget()
        task = asyncio.create_task(self._ask(target, budget), name=f"probe {target}")
        self._under_way[target] = _UnderWay(
            task=task, valid_from=entry.health.valid_from, budget=budget
        )
        task.add_done_callback(lambda done: self._ended(target, asked, done))

    async def _ask(self, target: Target, budget: Budget) -> Answer:
        if self._probe is run_probe:
            await load_probe(target)
        try:
            async with asyncio.timeout(target.check.timeout):
                return await metered(self._probe(target, budget), budget, self._turns)
        except TimeoutError as late:
            return too_late(target, late)
        except BudgetSpent as spent:
            budget.spent = True
            return too_much(target, spent)

    def _ended(self, target: Target, asked: float, task: asyncio.Task[Answer]) -> None:
        under_way = self._under_way.pop(target, None)
        if self._full:
            self._wake.set()
        if under_way is None:  # the runner itself is ending
            return
        entry = self._entries.get(target)
        if task.cancelled() or entry is None or entry.health.valid_from > under_way.valid_from:
            if entry is not None:
                self._schedule(entry, max(self._clock(), entry.health.valid_from))
            return
        _charge(entry, under_way.budget)
        wait = self._wait(entry)
        if (error := task.exception()) is not None:
            # A mistake in a probe: it costs this target its check, and nobody else anything.
            log.error("the probe of %s failed: %r", target, error, exc_info=error)
        elif self._tell(entry, asked, task.result()):
            wait = max(entry.pause, min(wait, _doubtful(entry)))
        self._schedule(entry, max(self._clock(), asked + wait))

    def _tell(self, entry: _Entry, asked: float, answer: Answer) -> bool:
        """Emits the result if it matters; says whether the next is wanted soon, because it
        contradicts the verdict."""
        health = entry.health
        if answer.up is None and (health.up or health.overridden):
            if not entry.warned:
                log.warning("%s; it stays in service", answer.detail)
            entry.warned = True
            return False
        entry.warned = False
        up = bool(answer.up)
        now = self._clock()
        # For a server with a verdict of its own it is up, whatever is known of the target.
        contradicts = up is not bool(health.up) or (health.overridden and not up)
        held = up and contradicts and self._held(entry, now)
        check = entry.target.check
        share = bounded(check, answer.share, away=answer.away) if up else health.share
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
                    target=entry.target,
                    started=asked,
                    up=up,
                    detail=answer.detail,
                    share=answer.share,
                    declines=answer.away,
                )
            )
        return contradicts and not held


def _charge(entry: _Entry, budget: Budget) -> None:
    """Has the target left alone for what its answer cost."""
    entry.spent = entry.spent + 1 if budget.spent else 0
    doubled = min(entry.spent, 16)
    entry.pause = min(SLOWEST, budget.used_time / COST_SHARE * 2**doubled)


def _doubtful(entry: _Entry) -> float:
    return min(DOUBTFUL, entry.target.check.interval * DOUBTFUL_SHARE)


def _half_of_the_files() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 4096 if soft == resource.RLIM_INFINITY else max(32, min(4096, soft // 2))
