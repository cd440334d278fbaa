"""What holds after every step, whatever was heard in whatever order."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import HealthCheck, given, settings

from tests.soak import often
from tests.unit.model.worlds import GUESTS, URIS, Move, a_story, opening, stories
from xenlb.ipvs.table import ServerKey, ServiceKey, Table
from xenlb.model.desired import ServerPhase, desired, next_deadline, server_status, shared
from xenlb.model.domain import DomainDescription, DomainState, GuestId, MetadataService, RequestKind
from xenlb.model.drain import Outcome, is_udp
from xenlb.model.events import (
    Configured,
    ConnectionsCounted,
    Crashed,
    Died,
    DrainAllRequested,
    Event,
    GuestsListed,
    MetadataChanged,
    Paused,
    ProbeFinished,
    Rebooted,
    RequestSent,
    Resumed,
    ShutdownCancelled,
    ShutdownRequested,
    Started,
    Stopped,
    Tick,
    UndrainRequested,
)
from xenlb.model.guest import Guest, Phase
from xenlb.model.membership import membership, sorry_target
from xenlb.model.readiness import lacking
from xenlb.model.recompute import recompute
from xenlb.model.reducer import reduce
from xenlb.model.settings import ServiceSettings
from xenlb.model.state import AlarmKind, Candidate, Change, Slot, State, Transition
from xenlb.model.target import Target
from xenlb.store import state_file
from xenlb.store.saved_state import SavedState

Life = Sequence["Seen"]
LIFE = (
    Started
    | ShutdownRequested
    | ShutdownCancelled
    | Died
    | Stopped
    | Crashed
    | Paused
    | Resumed
    | Rebooted
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One step, and the tables around it. `told`: as the agent has it, which draws anew only the
    services that a step names."""

    event: Event
    before: State
    before_table: Table
    result: Transition
    table: Table
    told: Table

    @property
    def state(self) -> State:
        return self.result.state

    @property
    def at(self) -> float:
        return self.event.at


@dataclass(slots=True)
class World:
    """Lives through a story, with the ticks that an agent would make."""

    state: State = field(default_factory=State)
    now: float = 1000.0
    told: Table = field(default_factory=Table)

    def live(self, story: Sequence[Move]) -> Iterator[Seen]:
        for move in story:
            then = self.now + move.wait + 0.001  # a clock of nanoseconds never stands still
            while (due := next_deadline(self.state, self.now)) is not None and due <= then:
                yield self._step(Tick(at=max(due, self.now)))
                later = next_deadline(self.state, self.now)
                assert later is None or later > self.now, "a tick that changes nothing"
            self.now = then
            yield self._step(move.make(self.state, self.now))

    def _step(self, event: Event) -> Seen:
        self.now = event.at
        before, had = self.state, self.told
        result = reduce(before, event)
        assert reduce(before, event) == result
        self.state = result.state
        services = self.state.settings.services
        table = desired(services, self.state, self.now)
        if result.services is None:
            self.told = table
        else:
            named = [service for service in services if service.name in result.services]
            part = desired(named, self.state, self.now)
            self.told = Table(entries={**self.told.entries, **part.entries})
        return Seen(
            event=event,
            before=before,
            before_table=had,
            result=result,
            table=table,
            told=self.told,
        )


def servers(state: State) -> Iterator[tuple[ServiceSettings, Candidate, Slot, Guest | None]]:
    """Every server that there could be, with its service and its guest."""
    for service in state.settings.services:
        for candidate in state.derived.candidates[service.name]:
            if candidate.slot is not None:
                guest = None if candidate.owner is None else state.guests[candidate.owner]
                yield service, candidate, candidate.slot, guest


def weights(table: Table) -> dict[tuple[ServiceKey, ServerKey], int]:
    return {
        (key, server.key): server.weight
        for key, entry in table.entries.items()
        for server in entry.servers.values()
    }


story = given(story=stories)
frequent = settings(
    max_examples=often(60, soak=600), deadline=None, suppress_health_check=list(HealthCheck)
)
seldom = settings(
    max_examples=often(20, soak=200), deadline=None, suppress_health_check=list(HealthCheck)
)


def the_table_has_who_may_be_there_and_nobody_else(life: Life) -> None:
    for seen in life:
        state = seen.state
        known = {slot: (service, guest) for service, _, slot, guest in servers(state)}
        assert set(state.remembered.admitted) <= set(known)
        places = {(slot.service, slot.server) for slot in known}
        assert len(places) == len(known), "two owners hold the same server"
        admitted = {(slot.service, slot.server) for slot in state.remembered.admitted}
        sorry = {
            (key, service.sorry_key(key))
            for service in state.settings.services
            for key in service.kernel_keys()
        }
        assert set(weights(seen.table)) <= admitted | sorry
        for service, _, slot, _ in servers(state):
            if slot in state.remembered.admitted and (slot.service, slot.server) not in weights(
                seen.table
            ):
                since = state.remembered.admitted[slot].quiet
                assert is_udp(slot.service)
                assert since is not None
                assert since + service.drain.udp <= seen.at
        for slot in state.remembered.admitted:
            guest = known[slot][1]
            assert guest is None or guest.phase is not Phase.ABSENT
            assert state.remembered.admitted[slot].at >= (0 if guest is None else guest.booted)
        for key, entry in seen.table.entries.items():
            assert entry.service.key == key
            assert all(server.key == at for at, server in entry.servers.items())
            assert all(0 <= server.weight <= 65535 for server in entry.servers.values())


def the_agent_is_told_of_every_service_whose_table_changed(life: Life) -> None:
    for seen in life:
        assert seen.told == seen.table, seen.event


def what_a_step_leaves_is_settled(life: Life) -> None:
    """Drawing everything anew changes nothing, though a step draws a part only."""
    for seen in life:
        again = recompute(State(), Change(state=seen.state), seen.at)
        assert again.services is None
        assert again.state == seen.state, seen.event
        asked: dict[Target, dict[str, tuple[Candidate, ...]]] = {}
        for service, candidate, _, guest in servers(seen.state):
            if guest is not None and guest.phase is Phase.ABSENT:
                continue
            verdict = seen.state.verdict(candidate, service)
            passes = verdict is None or verdict.up
            for each in (candidate, *(() if passes else candidate.alternatives)):
                for target in each.targets:
                    by = asked.setdefault(target, {})
                    by[service.name] = (*by.get(service.name, ()), each)
        for service in seen.state.settings.services:
            for key in service.kernel_keys():
                if (sorry := sorry_target(service, key)) is not None:
                    asked.setdefault(sorry, {}).setdefault(service.name, ())
        assert seen.state.derived.targets == asked
        assert set(seen.state.remembered.health) == set(asked)


def who_goes_pauses_or_is_drained_gets_no_new_connections(life: Life) -> None:
    for seen in life:
        table = weights(seen.table)
        for _, _, slot, guest in servers(seen.state):
            if slot not in seen.state.remembered.admitted or guest is None:
                continue
            if guest.phase is not Phase.UP or guest.drain is not None:
                assert not table.get((slot.service, slot.server))


def nobody_serves_before_a_check_has_passed_in_this_boot(life: Life) -> None:
    """Nor after a pause or an ignored request. Counted here from the probes themselves."""
    passed: dict[object, float] = {}  # by address, when the last probe that passed was begun
    unchecked: set[object] = set()  # who served without a check when one was configured
    for seen in life:
        if isinstance(seen.event, ProbeFinished) and seen.event.up:
            address = seen.event.target.address
            passed[address] = max(passed.get(address, 0.0), seen.event.started)
        if isinstance(seen.event, Configured):
            unchecked |= {
                slot.server.address
                for _, each, slot, _ in servers(seen.before)
                if not each.targets and slot in seen.before.remembered.admitted
            }
        table = weights(seen.table)
        for _, each, slot, guest in servers(seen.state):
            if slot not in seen.state.remembered.admitted or not table.get(
                (slot.service, slot.server)
            ):
                continue
            since = 0.0 if guest is None else max(guest.booted, guest.recheck)
            ok = passed.get(slot.server.address, -1.0) >= since
            assert ok or not each.targets or slot.server.address in unchecked, slot


def no_udp_flow_goes_on_to_a_server_without_weight(life: Life) -> None:
    """Once drain.udp is over, counted here from the tables themselves."""
    quiet: dict[tuple[ServiceKey, ServerKey], float] = {}
    for seen in life:
        limits = {key: s.drain.udp for s in seen.state.settings.services for key in s.kernel_keys()}
        table = weights(seen.told)
        sorry = {
            (key, service.sorry_key(key))
            for service in seen.state.settings.services
            for key in service.kernel_keys()
        }
        quiet = {
            place: quiet.get(place, seen.at)
            for place, weight in table.items()
            if weight == 0 and is_udp(place[0]) and place not in sorry
        }
        for (key, _), since in quiet.items():
            assert seen.at < since + limits[key]


def a_drained_guest_serves_again_for_a_reason_only(life: Life) -> None:
    drained: dict[GuestId, Guest] = {}
    for seen in life:
        for key, guest in seen.state.guests.items():
            was = seen.before.guests.get(key)
            if guest.drain is not None and key not in drained:
                drained[key] = guest
            elif key in drained and guest.drain is None:
                assert was is not None
                assert was.drain is not None
                undrained = isinstance(seen.event, UndrainRequested) and seen.event.guest == key
                anew = (
                    guest.phase is Phase.ABSENT
                    or guest.incarnation != was.incarnation
                    or guest.booted > was.booted
                    or isinstance(seen.event, Rebooted)
                )
                # What was begun by a request, or for one, ends when the guest does not follow it.
                ignored = (was.drain.requested or was.drain.then is not None) and (
                    isinstance(seen.event, Resumed | ShutdownCancelled)
                    or (was.request is not None and was.request.deadline <= seen.at)
                )
                # An order that libvirt could not be given in time is given up.
                expires = was.drain.expires
                unasked = expires is not None and expires <= seen.at
                assert undrained or anew or ignored or unasked, seen.event
                del drained[key]
        for key in drained.keys() - seen.state.guests.keys():
            assert isinstance(seen.event, GuestsListed | Configured)
            del drained[key]


def every_drain_ends_once_and_is_remembered_with_how(life: Life) -> None:
    quiet: dict[GuestId, float] = {}  # since when nothing was counted
    for seen in life:
        for key, guest in seen.state.guests.items():
            was = seen.before.guests.get(key)
            before, after = None if was is None else was.drain, guest.drain
            if before is not None and after is None and was is not None:
                assert guest.last_drain is not None
                assert guest.last_drain.outcome is not None
                assert guest.last_drain.since == before.since
                assert before.outcome in {None, guest.last_drain.outcome}
            if after is None or after.left != 0:
                quiet.pop(key, None)
            elif isinstance(seen.event, ConnectionsCounted):
                quiet.setdefault(key, seen.at)
            if before is None or after is None or before.since != after.since:
                continue
            if before.outcome is not None:
                assert after.outcome is before.outcome
            elif after.outcome is Outcome.EMPTY:
                assert seen.at - quiet[key] >= 1.0
            elif after.outcome is Outcome.DEADLINE:
                assert after.deadline is not None
                assert after.deadline <= seen.at
                assert not after.requested
            assert (after.asked and not before.asked) <= isinstance(seen.event, RequestSent)


def a_host_that_goes_down_leaves_the_share_where_it_can(life: Life) -> None:
    for seen in life:
        if not isinstance(seen.event, DrainAllRequested):
            continue
        for service in seen.state.settings.services:
            before, after = (
                serving_weight(seen.before, service),
                serving_weight(seen.state, service),
            )
            for key, (able, serving) in before.items():
                if not seen.event.rest:
                    keep = service.keep_in_service * able
                    assert after[key][1] >= min(serving, keep) - 1e-6
            if seen.event.rest:
                assert not any(guest.drain is None for guest in local_guests(seen.state, service))


def local_guests(state: State, service: ServiceSettings) -> Iterator[Guest]:
    for guest in state.guests.values():
        if guest.phase is not Phase.ABSENT and membership(service, guest) is not None:
            yield guest


def serving_weight(state: State, service: ServiceSettings) -> dict[ServiceKey, tuple[int, int]]:
    """The weight of the servers whose guest runs, and of those of them that serve."""
    found = dict.fromkeys(service.kernel_keys(), (0, 0))
    for each in state.derived.candidates[service.name]:
        stands = server_status(each, service, state, 0.0)
        if stands.phase is not ServerPhase.ABSENT and (each.owner or each.slot):
            able, serving = found[each.service]
            serves = stands.phase is ServerPhase.SERVING and stands.weight != 0
            found[each.service] = able + each.weight, serving + each.weight * serves
    return found


def news_of_former_incarnations_changes_nothing(life: Life) -> None:
    for seen in life:
        event = seen.event
        if not isinstance(event, LIFE) or event.incarnation is None:
            continue
        was = seen.before.guests.get(event.guest)
        if was is None or event.incarnation == was.incarnation:
            continue
        if was.is_dead(event.incarnation, event.at):
            now = seen.state.guests[event.guest]
            # A started domain's name and metadata are the guest's, whichever domain it was.
            assert now == replace(
                was,
                name=now.name,
                metadata=now.metadata,
                metadata_problems=now.metadata_problems,
                metadata_at=now.metadata_at,
            )


@dataclass(slots=True)
class Weighed:
    """Of one kernel service: the weight of the servers with a verdict whose guest is up, of those
    of them that are in the table for new connections, and these themselves; and who of them wants
    no share of its weight."""

    service: ServiceSettings
    able: int = 0
    serving: int = 0
    there: set[Slot] = field(default_factory=set)
    unwilling: set[Slot] = field(default_factory=set)


def in_service(state: State) -> dict[ServiceKey, Weighed]:
    found: dict[ServiceKey, Weighed] = {}
    for service, candidate, slot, guest in servers(state):
        it = found.setdefault(slot.service, Weighed(service=service))
        health = state.verdict(candidate, service)
        if guest is not None and (guest.phase is not Phase.UP or guest.drain is not None):
            continue
        admission = state.remembered.admitted.get(slot)
        new = health is not None and health.assumed and (admission is None or admission.quiesced)
        if new or (health is not None and health.up is None):
            continue
        it.able += candidate.weight
        wants = health is None or health.share != 0
        if not wants:
            it.unwilling.add(slot)
        elif admission is not None and not admission.quiesced:
            it.serving += candidate.weight
            it.there.add(slot)
    return found


def checks_never_take_out_more_than_leaves_the_share(life: Life) -> None:
    """Of the weight. Not counted is who says itself that it wants none."""
    for seen in life:
        if not isinstance(seen.event, ProbeFinished):
            continue
        before = in_service(seen.before)
        for key, now in in_service(seen.state).items():
            gone = {
                slot
                for slot in before[key].there - now.there
                if (
                    slot not in seen.state.remembered.admitted
                    or seen.state.remembered.admitted[slot].quiesced
                )
                and slot not in now.unwilling
            }
            if gone and now.serving < before[key].serving:
                assert now.serving >= round(now.able * now.service.keep_in_service, 6)


def nobody_is_let_in_whose_check_fails(life: Life) -> None:
    """Nor by what another check said. Who was in and comes by migration waits with weight 0."""
    for seen in life:
        table = weights(seen.table)
        for service, candidate, slot, _ in servers(seen.state):
            before, after = (
                seen.before.remembered.admitted.get(slot),
                seen.state.remembered.admitted.get(slot),
            )
            if after is None or after.quiesced or (before is not None and not before.quiesced):
                continue
            verdict = seen.state.verdict(candidate, service)
            if table[slot.service, slot.server] > 0:
                assert verdict is None or (verdict.up and not verdict.assumed), seen.event


def a_new_configuration_takes_nobody_out_by_a_check_that_was_not_tried(life: Life) -> None:
    for seen in life:
        if not isinstance(seen.event, Configured):
            continue
        before, after = weights(seen.before_table), weights(seen.table)
        for service, candidate, slot, _ in servers(seen.state):
            place = slot.service, slot.server
            if slot not in seen.before.remembered.admitted or before.get(place, 0) == 0:
                continue
            # Of what another service has asked counts what passes only, with its share.
            known = [
                seen.before.seen(target, candidate)
                for target in candidate.targets
                if target in asked_before(seen.before, slot)
            ]
            others = [seen.before.remembered.health.get(target) for target in candidate.targets]
            if all(health.up for health in known):
                shares = [health.share for health in (*known, *others) if health and health.up]
                assert slot in seen.state.remembered.admitted
                assert after[place] > 0 or candidate.weight == 0 or 0 in shares, service


def asked_before(state: State, slot: Slot) -> tuple[Target, ...]:
    """The checks that a server has."""
    for _, candidate, other, _ in servers(state):
        if other == slot:
            return candidate.targets
    return ()


def a_check_takes_out_who_has_failed_it_often_enough_since_it_has_it(life: Life) -> None:
    """Counted here from the results themselves, for each server and check; a restart of the agent
    or of the server's guest begins anew."""
    bad: dict[tuple[Slot, Target], int] = {}
    for seen in life:
        has = {
            (slot, target)
            for _, candidate, slot, _ in servers(seen.state)
            for target in candidate.targets
        }
        bad = {each: bad.get(each, 0) for each in has}
        if not isinstance(seen.event, ProbeFinished):
            continue
        target = seen.event.target
        for each in has:
            if each[1] == target:
                bad[each] = 0 if seen.event.up else bad[each] + 1
        before, after = weights(seen.before_table), weights(seen.table)
        for slot in seen.before.remembered.admitted:
            place = slot.service, slot.server
            if (slot, target) in has and before.get(place, 0) > 0 and after.get(place, 0) == 0:
                assert seen.event.up or bad[slot, target] >= target.check.fall, (slot, target)


def nobody_who_passes_is_held_back_where_nobody_else_serves(life: Life) -> None:
    """An outage is worse than a server that comes and goes. That the last results were good is
    counted here; a sorry server is nobody."""
    good: Counter[Target] = Counter()
    for seen in life:
        if (
            isinstance(seen.event, ProbeFinished)
            and seen.event.target in seen.before.remembered.health
        ):
            known = seen.before.remembered.health[seen.event.target]
            if not seen.event.up:
                good[seen.event.target] = 0
            elif seen.event.started >= known.valid_from:
                good[seen.event.target] += 1
        state, table = seen.state, weights(seen.table)
        good = Counter(
            {
                target: good[target]
                for target, known in state.remembered.health.items()
                if known.valid_from < seen.at and known.up is not None
            }
        )
        served = {
            slot.service
            for slot in state.remembered.admitted
            if table.get((slot.service, slot.server))
        }
        for service, candidate, slot, guest in servers(state):
            if slot.service in served or candidate.weight == 0 or not candidate.targets:
                continue
            if guest is not None and (guest.phase is not Phase.UP or guest.drain is not None):
                continue
            if (
                guest is not None
                and slot not in state.remembered.admitted
                and lacking(service, guest)
            ):
                continue
            healths = {target: state.remembered.health[target] for target in candidate.targets}
            ups = [h.up or good[target] >= target.check.rise for target, h in healths.items()]
            if all(ups) or (service.any_check and any(ups)):
                own = (
                    state.remembered.admitted[slot].overrides
                    if slot in state.remembered.admitted
                    else {}
                )
                shares = [own.get(target, health).share for target, health in healths.items()]
                assert 0 in shares, (slot, seen.event)


def shares_are_within_their_bounds(life: Life) -> None:
    for seen in life:
        for target, health in seen.state.remembered.health.items():
            assert health.share is None or 0.0 <= health.share <= 1.0, target
        for service, candidate, _, _ in servers(seen.state):
            stands = server_status(candidate, service, seen.state, seen.at)
            assert stands.weight is None or stands.weight <= candidate.weight


def an_alarm_is_told_once_when_it_begins_and_when_it_ends(life: Life) -> None:
    """Whatever the cause: no server that serves is an alarm, and so is one that fails and stays."""
    for seen in life:
        kept, serving = set(), set()
        for service, candidate, slot, _ in servers(seen.state):
            stands = server_status(candidate, service, seen.state, seen.at)
            if stands.reason.endswith("still in service only because of keep-in-service"):
                kept.add(slot.service)
            if stands.phase is ServerPhase.SERVING and stands.weight:
                serving.add(slot.service)
        there = {key for s in seen.state.settings.services for key in s.kernel_keys()}
        kinds = {key: it.kind for key, it in seen.state.remembered.alarms.items()}
        assert kinds.keys() <= there
        assert {key for key, kind in kinds.items() if kind is AlarmKind.KEPT} == kept & serving
        down = {key for key, kind in kinds.items() if kind is AlarmKind.DOWN}
        assert down <= there - serving
        assert seen.before.remembered.alarms.keys() & (there - serving) <= down, "what lasts, lasts"
        if seen.state.synced and not any(
            v.up is None for v in seen.state.remembered.health.values()
        ):
            assert down == there - serving
        told = Counter(
            note.warning
            for note in seen.result.notes
            if re.match(r"service \w+ \([^)]*\): ", note.text)
        )
        was = {key: it.kind for key, it in seen.before.remembered.alarms.items()}
        assert told[True] == len(kinds.items() - was.items())
        assert told[False] == len((was.keys() - kinds.keys()) & there)
        for key, it in seen.state.remembered.alarms.items():
            assert it.since == (seen.before.remembered.alarms[key].since if key in was else seen.at)


def a_ramp_only_rises_and_ends(life: Life) -> None:
    """Also between events, and each step is taken when it was announced."""
    for seen in life:
        for service, candidate, slot, _ in servers(seen.state):
            entry = seen.state.remembered.admitted.get(slot)
            if entry is None or not entry.ramp or service.slow_start <= 0:
                continue
            last = 0
            now: float | None = seen.at
            while now is not None and now <= entry.at + 2 * service.slow_start:
                stands = server_status(candidate, service, seen.state, now)
                weight = stands.weight or 0
                assert weight >= last
                assert weight in {0, 1} or weight <= candidate.weight
                last, due = weight, stands.deadline if stands.reason == "slow start" else None
                if due is not None:
                    assert due > now
                    awake = next_deadline(seen.state, now)
                    assert awake is not None
                    assert awake <= due, "nobody would take the step"
                now = due
            free = server_status(candidate, service, seen.state, entry.at + service.slow_start)
            whole = shared(candidate.weight, seen.state.verdict(candidate, service))
            assert free.weight in {0, whole}


def nobody_is_let_in_before_its_inside_is_in_place(life: Life) -> None:
    """Who was in stays, and a guest that migrates brings its place along."""
    for seen in life:
        for service, _, slot, guest in servers(seen.state):
            if (
                guest is None
                or slot not in seen.state.remembered.admitted
                or slot in seen.before.remembered.admitted
            ):
                continue
            elsewhere = any(
                other.owner is not None and other.owner.uuid == guest.id.uuid
                for other in seen.before.remembered.admitted
            )
            assert elsewhere or not lacking(service, guest), slot


RULES = (
    the_table_has_who_may_be_there_and_nobody_else,
    the_agent_is_told_of_every_service_whose_table_changed,
    what_a_step_leaves_is_settled,
    who_goes_pauses_or_is_drained_gets_no_new_connections,
    nobody_serves_before_a_check_has_passed_in_this_boot,
    nobody_is_let_in_before_its_inside_is_in_place,
    no_udp_flow_goes_on_to_a_server_without_weight,
    a_drained_guest_serves_again_for_a_reason_only,
    every_drain_ends_once_and_is_remembered_with_how,
    a_host_that_goes_down_leaves_the_share_where_it_can,
    news_of_former_incarnations_changes_nothing,
    checks_never_take_out_more_than_leaves_the_share,
    nobody_is_let_in_whose_check_fails,
    a_new_configuration_takes_nobody_out_by_a_check_that_was_not_tried,
    a_check_takes_out_who_has_failed_it_often_enough_since_it_has_it,
    nobody_who_passes_is_held_back_where_nobody_else_serves,
    shares_are_within_their_bounds,
    an_alarm_is_told_once_when_it_begins_and_when_it_ends,
    a_ramp_only_rises_and_ends,
)


@story
@frequent
def test_what_holds_after_every_step(story: list[Move]) -> None:
    life = tuple(World().live(story))
    for rule in RULES:
        rule(life)


@story
@seldom
def test_a_request_takes_the_weight_at_once(story: list[Move]) -> None:
    """For every guest that serves, at the end of any story."""
    world = World()
    for _ in world.live(story):
        pass
    for key, guest in world.state.guests.items():
        if guest.phase is not Phase.UP or guest.incarnation is None:
            continue
        for ask in RequestKind:
            event = ShutdownRequested(
                at=world.now, guest=key, incarnation=guest.incarnation, kind=ask
            )
            result = reduce(world.state, event)
            table = weights(desired(result.state.settings.services, result.state, world.now))
            mine = [slot for slot in world.state.remembered.admitted if slot.owner == key]
            assert all(slot in result.state.remembered.admitted for slot in mine)
            assert not any(table.get((slot.service, slot.server)) for slot in mine)
            services = {
                service.name for service, _, slot, _ in servers(world.state) if slot in mine
            }
            assert result.services is not None
            assert services <= result.services


@story
@seldom
def test_a_death_takes_the_servers_at_once(story: list[Move]) -> None:
    world = World()
    for _ in world.live(story):
        pass
    for key, guest in world.state.guests.items():
        if guest.phase is Phase.ABSENT:
            continue
        result = reduce(world.state, Died(at=world.now, guest=key, incarnation=guest.incarnation))
        assert all(slot.owner != key for slot in result.state.remembered.admitted)
        assert result.state.guests[key].phase is Phase.ABSENT


def test_the_stories_reach_what_they_are_about() -> None:
    """The properties above would hold for a model that lets nobody in, too."""
    reached: Counter[str] = Counter()
    for seed in range(60):
        for seen in World().live(a_story(seed)):
            for service, candidate, _, _ in servers(seen.state):
                stands = server_status(candidate, service, seen.state, seen.at)
                weight = {None: "none", 0: "0"}.get(stands.weight, "some")
                reached[f"{stands.phase} {weight}"] += 1
                reached[stands.reason.split(";")[-1].strip()] += 1
                reached["not answered yet"] += stands.reason.endswith("has not answered yet")
    for word in (
        "serving some",
        "draining 0",
        "paused 0",
        "failed none",
        "failed 0",
        "failed some",
        "starting none",
        "starting 0",
        "absent none",
        "slow start",
        "still in service only because of keep-in-service",
        "waits for a check to pass again",
        "drained by root",
        "no check",
        "its checks leave it 50% of its weight",
        "its checks leave it 0% of its weight",
        "held back",
        "not held back, as no other server was up",
        "not answered yet",
    ):
        assert reached[word] > 0, (word, reached)


def test_metadata_that_was_listed_earlier_is_older_news() -> None:
    world = World()
    for _ in world.live(opening(0)):
        pass
    told = MetadataService(name="web", weight=9)
    changed = MetadataChanged(at=world.now + 2, guest=GUESTS[0], services=(told,))
    listed = GuestsListed(
        at=world.now + 3,
        uri=URIS[0],
        requested_at=world.now + 1,
        guests=(
            DomainDescription(
                guest=GUESTS[0], name="mail1", domain_state=DomainState.RUNNING, incarnation=3
            ),
            DomainDescription(guest=GUESTS[1], name="mail2", domain_state=DomainState.OFF),
        ),
    )
    after = reduce(reduce(world.state, changed).state, listed).state
    assert after.guests[GUESTS[0]].metadata == (told,)
    # What the listing says of their lives is news all the same.
    assert after.guests[GUESTS[1]].phase is Phase.ABSENT
    later = reduce(after, replace(listed, at=world.now + 5, requested_at=world.now + 4)).state
    assert later.guests[GUESTS[0]].metadata == ()


@story
@seldom
def test_a_restart_at_any_point_leaves_the_table_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, story: list[Move]
) -> None:
    """kill -9, and a start with the same configuration, before any source has been heard."""
    path = tmp_path_factory.mktemp("restart") / "state.json"
    world = World()
    file = state_file.StateFile(path)
    for _ in world.live(story):
        file.save(SavedState(remembered=world.state.remembered))
    again = Configured(at=world.now, settings=replace(world.state.settings))
    restarted = reduce(State(remembered=state_file.load(path).remembered), again).state
    assert desired(again.settings.services, restarted, world.now) == world.told
    # But for results in a row, which do not reach across a time without any; where no more than
    # these were apart, nothing is.
    counted = {
        slot: replace(
            entry,
            overrides={
                target: replace(own, streak=0)
                for target, own in entry.overrides.items()
                if not world.state.remembered.health[target].up
            },
        )
        for slot, entry in world.state.remembered.admitted.items()
    }
    assert restarted.remembered.admitted == counted


def test_a_share_that_changes_no_weight_is_taken_down_and_nothing_else() -> None:
    world = World()
    for _ in world.live(opening(3)):
        pass
    target = next(t for t in world.state.remembered.health if t.check.type == "agent")
    for share, told in ((0.5, True), (0.501, False), (0.1, True)):
        event = ProbeFinished(
            at=world.now, target=target, started=world.now, up=True, detail="", share=share
        )
        result = reduce(world.state, event)
        world.state = result.state
        assert world.state.remembered.health[target].share == share
        assert bool(result.services) is told
