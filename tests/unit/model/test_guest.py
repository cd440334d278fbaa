"""The life cycle of guests: a complete table, total, and separate for each incarnation."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.model import worlds
from xenlb.model.drain import Drain
from xenlb.model.guest import (
    DEATH_REMEMBERED,
    START,
    TABLE,
    Guest,
    LifecycleEvent,
    Phase,
    transition,
)

NEW = Guest(id=worlds.GUESTS[0], name="mail1")


def running(phase: Phase = Phase.UP, *, incarnation: int = 4, at: float = 10.0) -> Guest:
    """A guest whose domain `incarnation` began at `at`."""
    guest = transition(NEW, LifecycleEvent.RUNNING, at=at, incarnation=incarnation)
    match phase:
        case Phase.ABSENT:
            return transition(guest, LifecycleEvent.GONE, at=at, incarnation=incarnation)
        case Phase.UP:
            return guest
        case Phase.LEAVING:
            return transition(
                guest, LifecycleEvent.SHUTDOWN_REQUESTED, at=at, incarnation=incarnation
            )
        case Phase.SUSPENDING:
            return transition(
                guest, LifecycleEvent.SUSPEND_REQUESTED, at=at, incarnation=incarnation
            )
        case Phase.PAUSED:
            return transition(guest, LifecycleEvent.PAUSED, at=at, incarnation=incarnation)


@pytest.mark.parametrize("event", LifecycleEvent)
def test_the_table_has_an_entry_for_every_event_and_phase(event: LifecycleEvent) -> None:
    assert set(TABLE[event]) == set(Phase)


def test_only_events_of_a_running_domain_begin_an_incarnation() -> None:
    assert set(START) == set(LifecycleEvent) - {LifecycleEvent.GONE, LifecycleEvent.STAYS}
    assert Phase.ABSENT not in START.values()


def test_an_absent_guest_returns_by_a_reboot_of_the_same_incarnation_only() -> None:
    back = {event for event, row in TABLE.items() if row[Phase.ABSENT] is not Phase.ABSENT}
    assert back == {LifecycleEvent.REBOOTED}


def test_gone_and_rebooted_are_final_whatever_was_before() -> None:
    assert set(TABLE[LifecycleEvent.GONE].values()) == {Phase.ABSENT}
    assert set(TABLE[LifecycleEvent.REBOOTED].values()) == {Phase.UP}


def test_only_a_reboot_or_the_end_of_the_grace_ends_a_shutdown_request() -> None:
    up = {event for event, row in TABLE.items() if row[Phase.LEAVING] is Phase.UP}
    assert up == {LifecycleEvent.REBOOTED, LifecycleEvent.STAYS}


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("event", LifecycleEvent)
def test_transition_follows_the_table(event: LifecycleEvent, phase: Phase) -> None:
    before = running(phase)
    assert before.phase is phase
    after = transition(before, event, at=20.0, incarnation=4)
    assert after.phase is TABLE[event][phase]
    assert after.incarnation == 4


@pytest.mark.parametrize("phase", sorted(set(Phase) - {Phase.ABSENT}))
@pytest.mark.parametrize("event", sorted(set(LifecycleEvent) - {LifecycleEvent.STAYS}))
def test_an_unknown_incarnation_is_the_present_one(event: LifecycleEvent, phase: Phase) -> None:
    before = running(phase)
    assert transition(before, event, at=20.0, incarnation=None) == transition(
        before, event, at=20.0, incarnation=4
    )


@pytest.mark.parametrize("event", sorted(set(LifecycleEvent) - {LifecycleEvent.REBOOTED}))
@pytest.mark.parametrize("guest", [NEW, running(Phase.ABSENT)], ids=["new", "gone"])
def test_no_boot_begins_with_an_unknown_incarnation(event: LifecycleEvent, guest: Guest) -> None:
    later = 20.0 + DEATH_REMEMBERED
    assert transition(guest, event, at=later, incarnation=None) == guest


@pytest.mark.parametrize("guest", [NEW, running(Phase.ABSENT)], ids=["new", "gone"])
@pytest.mark.parametrize("event", LifecycleEvent)
def test_a_new_incarnation_begins_in_the_phase_of_its_event(
    event: LifecycleEvent, guest: Guest
) -> None:
    after = transition(guest, event, at=20.0, incarnation=5)
    assert after.phase is START.get(event, Phase.ABSENT)
    if event in START:
        assert (after.incarnation, after.since, after.booted, after.recheck) == (5, 20, 20, 20)


@pytest.mark.parametrize("phase", sorted(set(Phase) - {Phase.ABSENT}))
@pytest.mark.parametrize("event", LifecycleEvent)
def test_only_a_start_replaces_a_domain_that_runs(event: LifecycleEvent, phase: Phase) -> None:
    before = running(phase)
    after = transition(before, event, at=20.0, incarnation=5)
    if START.get(event) in {Phase.UP, Phase.PAUSED}:
        assert (after.phase, after.incarnation) == (START[event], 5)
        assert after.request is None
        assert after.drain is None
        assert after.is_dead(4, 20.0)
    else:
        assert (after.phase, after.incarnation, after.since) == (phase, 4, before.since)


@given(
    events=st.lists(st.sampled_from(LifecycleEvent), max_size=6),
    number=st.sampled_from([3, 4]),
    phase=st.sampled_from(sorted(set(Phase) - {Phase.ABSENT})),
)
def test_events_of_former_incarnations_change_nothing(
    events: list[LifecycleEvent], number: int, phase: Phase
) -> None:
    """3 was followed by 4, 4 died, and 5 runs."""
    guest = running(incarnation=3)
    guest = transition(guest, LifecycleEvent.RUNNING, at=11.0, incarnation=4)
    guest = transition(guest, LifecycleEvent.GONE, at=12.0, incarnation=4)
    guest = transition(guest, LifecycleEvent.RUNNING, at=13.0, incarnation=5)
    if phase is Phase.LEAVING:
        guest = transition(guest, LifecycleEvent.SHUTDOWN_REQUESTED, at=13.0, incarnation=5)
    after = guest
    for event in events:
        after = transition(after, event, at=14.0, incarnation=number)
    assert after == guest


def test_a_death_before_a_late_start_is_remembered_for_its_incarnation() -> None:
    guest = transition(NEW, LifecycleEvent.GONE, at=10.0, incarnation=5)
    # A late event of the former incarnation.
    guest = transition(guest, LifecycleEvent.GONE, at=11.0, incarnation=4)
    for event in START.keys() - {LifecycleEvent.REBOOTED}:
        assert transition(guest, event, at=12.0, incarnation=5).phase is Phase.ABSENT
    assert transition(guest, LifecycleEvent.RUNNING, at=12.0, incarnation=6).phase is Phase.UP


def test_a_death_is_forgotten_after_a_minute() -> None:
    """LXC's domain ids are process ids."""
    guest = running(Phase.ABSENT)
    at = 10.0 + DEATH_REMEMBERED
    assert transition(guest, LifecycleEvent.RUNNING, at=at - 0.1, incarnation=4) == guest
    again = transition(guest, LifecycleEvent.RUNNING, at=at, incarnation=4)
    assert again.phase is Phase.UP
    assert again.deaths == ()


def test_old_deaths_are_dropped() -> None:
    guest = NEW
    for number in range(1, 100):
        at = number * DEATH_REMEMBERED / 4
        guest = transition(guest, LifecycleEvent.RUNNING, at=at, incarnation=number)
        guest = transition(guest, LifecycleEvent.GONE, at=at, incarnation=number)
    assert len(guest.deaths) <= 5


def test_a_boot_ends_requests_and_drains_and_keeps_addresses_of_the_same_domain() -> None:
    guest = worlds.with_addresses(running(Phase.LEAVING), "10.0.0.11")
    guest = worlds.drained(guest, Drain(reason="drained", by="root", since=11.0))
    inside = transition(guest, LifecycleEvent.REBOOTED, at=20.0, incarnation=4)
    assert (inside.request, inside.drain, inside.candidates) == (None, None, guest.candidates)
    anew = transition(guest, LifecycleEvent.RUNNING, at=20.0, incarnation=5)
    assert (anew.request, anew.drain, anew.candidates) == (None, None, ())
    back = transition(
        transition(guest, LifecycleEvent.GONE, at=20.0, incarnation=4),
        LifecycleEvent.REBOOTED,
        at=21.0,
        incarnation=4,
    )
    assert (back.phase, back.candidates, back.deaths) == (Phase.UP, guest.candidates, ())


@pytest.mark.parametrize("phase", [Phase.PAUSED, Phase.SUSPENDING])
def test_a_resumed_guest_is_checked_again(phase: Phase) -> None:
    before = running(phase)
    after = transition(before, LifecycleEvent.RESUMED, at=20.0, incarnation=4)
    assert (after.phase, after.recheck, after.booted) == (Phase.UP, 20.0, before.booted)
