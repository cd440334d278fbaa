"""A moment is shown as the same text each time, and in the host's time of day."""

import time
from datetime import UTC, datetime, timedelta

import pytest

from xenlb import clock


def test_a_moment_has_one_text() -> None:
    moment = clock.now()
    assert len({clock.wall(moment) for _ in range(5_000)}) == 1


def test_it_is_the_time_of_day() -> None:
    shown = datetime.fromisoformat(clock.wall(clock.now()))
    assert abs(shown - datetime.now(UTC)) < timedelta(seconds=1)


def test_a_clock_that_is_set_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    moment = clock.now()
    before = datetime.fromisoformat(clock.wall(moment))
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 3600)
    after = datetime.fromisoformat(clock.wall(moment))
    assert abs(after - before - timedelta(hours=1)) < timedelta(milliseconds=100)
