"""Rules that hold after every step, whatever the events and their order."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import HealthCheck, given, settings

from tests.soak import often
from tests.unit.model.worlds import GUESTS, URIS, Move, a_story, opening, stories
from xenlb.ipvs.table import ServerKey, ServiceKey, Table
from xenlb.model.desired import ServerPhase, desired, next_deadline, server_status, weight_for_share
from xenlb.model.domain import DomainDescription, DomainState, GuestId, MetadataService, RequestKind
from xenlb.model.drain import Outcome, is_udp
from xenlb.model.events import (
    Configured,
    ConnectionsCounted,
    Died,
    DrainAllRequested,
    Event,
    GuestsListed,
    LifeEvent,
    MetadataChanged,
    ProbeFinished,
    Rebooted,
    RequestSent,
    Resumed,
    ShutdownCancelled,
    ShutdownRequested,
    Tick,
    UndrainRequested,
)
from xenlb.model.guest import Guest, Phase
from xenlb.model.membership import membership, sorry_target
from xenlb.model.note import NoteKind
from xenlb.model.readiness import not_ready_reason
from xenlb.model.recompute import recompute
from xenlb.model.reducer import reduce
from xenlb.model.settings import ServiceSettings
from xenlb.model.state import AlarmKind, Candidate, Change, RealServer, State, Transition
from xenlb.model.target import Target
from xenlb.store import state_file
from xenlb.store.saved_state import SavedState

Steps = Sequence["Step"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step, and the tables around it.

    `agent_table`: as the agent has it, which plans only the services that a transition names.
    """

    event: Event
    before: State
    before_table: Table
    result: Transition
    table: Table
    agent_table: Table

    @property
    def state(self) -> State:
        return self.result.state

    @property
    def at(self) -> float:
        return self.event.at


@dataclass(slots=True)
class World:
    """Plays a story, with the ticks that an agent would make."""

    state: State = field(default_factory=State)
    now: float = 1000.0
    agent_table: Table = field(default_factory=Table)

    def play(self, story: Sequence[Move]) -> Iterator[Step]:
        for move in story:
            then = self.now + move.wait + 0.001  # a clock of nanoseconds never status still
            while (due := next_deadline(self.state, self.now)) is not None and due <= then:
                yield self._step(Tick(at=max(due, self.now)))
                later = next_deadline(self.state, self.now)
                assert later is None or later > self.now, "a tick that changes nothing"
            self.now = then
            yield self._step(move.make(self.state, self.now))

    def _step(self, event: Event) -> Step:
        self.now = event.at
        before, before_table = self.state, self.agent_table
        result = reduce(before, event)
        assert reduce(before, event) == result
        self.state = result.state
        services = self.state.settings.services
        table = desired(services, self.state, self.now)
        if result.services is None:
            self.agent_table = table
        else:
            named = [service for service in services if service.name in result.services]
            part = desired(named, self.state, self.now)
            self.agent_table = Table(entries={**self.agent_table.entries, **part.entries})
        return Step(
            event=event,
            before=before,
            before_table=before_table,
            result=result,
            table=table,
            agent_table=self.agent_table,
        )


def servers(state: State) -> Iterator[tuple[ServiceSettings, Candidate, RealServer, Guest | None]]:
    """Yield every possible server, with its service and its guest."""
    for service in state.settings.services:
        for candidate in state.derived.candidates[service.name]:
            if candidate.server is not None:
                guest = None if candidate.owner is None else state.guests[candidate.owner]
                yield service, candidate, candidate.server, guest


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


def the_table_has_admitted_and_sorry_servers_only(steps: Steps) -> None:
    for step in steps:
        state = step.state
        known = {server: (service, guest) for service, _, server, guest in servers(state)}
        assert set(state.remembered.admitted) <= set(known)
        places = {(server.service, server.key) for server in known}
        assert len(places) == len(known), "two owners have the same server"
        admitted = {(server.service, server.key) for server in state.remembered.admitted}
        sorry = {
            (key, service.sorry_key(key))
            for service in state.settings.services
            for key in service.kernel_keys()
        }
        assert set(weights(step.table)) <= admitted | sorry
        for service, _, server, _ in servers(state):
            if server in state.remembered.admitted and (server.service, server.key) not in weights(
                step.table
            ):
                since = state.remembered.admitted[server].zero_since
                assert is_udp(server.service)
                assert since is not None
                assert since + service.drain.udp <= step.at
        for server in state.remembered.admitted:
            guest = known[server][1]
            assert guest is None or guest.phase is not Phase.ABSENT
            assert state.remembered.admitted[server].at >= (0 if guest is None else guest.booted)
        for key, entry in step.table.entries.items():
            assert entry.service.key == key
            assert all(server.key == at for at, server in entry.servers.items())
            assert all(0 <= server.weight <= 65535 for server in entry.servers.values())


def a_transition_names_every_service_whose_table_changed(steps: Steps) -> None:
    for step in steps:
        assert step.agent_table == step.table, step.event


def a_transition_leaves_a_complete_state(steps: Steps) -> None:
    """Computing everything anew changes nothing, though a transition computes only a part."""
    for step in steps:
        again = recompute(State(), Change(state=step.state), step.at)
        assert again.services is None
        assert again.state == step.state, step.event
        probed: dict[Target, dict[str, tuple[Candidate, ...]]] = {}
        for service, candidate, _, guest in servers(step.state):
            if guest is not None and guest.phase is Phase.ABSENT:
                continue
            verdict = step.state.verdict(candidate, service)
            passes = verdict is None or verdict.up
            for variant in (candidate, *(() if passes else candidate.alternatives)):
                for target in variant.targets:
                    by = probed.setdefault(target, {})
                    by[service.name] = (*by.get(service.name, ()), variant)
        for service in step.state.settings.services:
            for key in service.kernel_keys():
                if (sorry := sorry_target(service, key)) is not None:
                    probed.setdefault(sorry, {}).setdefault(service.name, ())
        assert step.state.derived.targets == probed
        assert set(step.state.remembered.health) == set(probed)


def leaving_paused_and_drained_guests_get_no_new_connections(steps: Steps) -> None:
    for step in steps:
        table = weights(step.table)
        for _, _, server, guest in servers(step.state):
            if server not in step.state.remembered.admitted or guest is None:
                continue
            if guest.phase is not Phase.UP or guest.drain is not None:
                assert not table.get((server.service, server.key))


def no_server_serves_before_its_check_passed_in_this_boot(steps: Steps) -> None:
    """Nor after a pause or an ignored request. Counted here from the probes."""
    passed: dict[object, float] = {}  # by address: the start of the last probe that passed
    unchecked: set[object] = set()  # servers without a check when one was configured
    for step in steps:
        if isinstance(step.event, ProbeFinished) and step.event.up:
            address = step.event.target.address
            passed[address] = max(passed.get(address, 0.0), step.event.started)
        if isinstance(step.event, Configured):
            unchecked |= {
                server.key.address
                for _, candidate, server, _ in servers(step.before)
                if not candidate.targets and server in step.before.remembered.admitted
            }
        table = weights(step.table)
        for _, candidate, server, guest in servers(step.state):
            if server not in step.state.remembered.admitted or not table.get(
                (server.service, server.key)
            ):
                continue
            since = 0.0 if guest is None else max(guest.booted, guest.recheck)
            ok = passed.get(server.key.address, -1.0) >= since
            assert ok or not candidate.targets or server.key.address in unchecked, server


def udp_servers_leave_the_table_after_drain_udp(steps: Steps) -> None:
    """Counted here from the tables."""
    quiet: dict[tuple[ServiceKey, ServerKey], float] = {}
    for step in steps:
        limits = {key: s.drain.udp for s in step.state.settings.services for key in s.kernel_keys()}
        table = weights(step.agent_table)
        sorry = {
            (key, service.sorry_key(key))
            for service in step.state.settings.services
            for key in service.kernel_keys()
        }
        quiet = {
            place: quiet.get(place, step.at)
            for place, weight in table.items()
            if weight == 0 and is_udp(place[0]) and place not in sorry
        }
        for (key, _), since in quiet.items():
            assert step.at < since + limits[key]


def a_drained_guest_returns_for_a_reason_only(steps: Steps) -> None:
    drained: dict[GuestId, Guest] = {}
    for step in steps:
        for key, guest in step.state.guests.items():
            was = step.before.guests.get(key)
            if guest.drain is not None and key not in drained:
                drained[key] = guest
            elif key in drained and guest.drain is None:
                assert was is not None
                assert was.drain is not None
                undrained = isinstance(step.event, UndrainRequested) and step.event.guest == key
                anew = (
                    guest.phase is Phase.ABSENT
                    or guest.incarnation != was.incarnation
                    or guest.booted > was.booted
                    or isinstance(step.event, Rebooted)
                )
                # A drain by a request, or for one, ends when the guest ignores the request.
                ignored = (was.drain.requested or was.drain.then is not None) and (
                    isinstance(step.event, Resumed | ShutdownCancelled)
                    or (was.request is not None and was.request.deadline <= step.at)
                )
                # A request that libvirt did not get in time is dropped.
                expires = was.drain.request_expires
                unasked = expires is not None and expires <= step.at
                assert undrained or anew or ignored or unasked, step.event
                del drained[key]
        for key in drained.keys() - step.state.guests.keys():
            assert isinstance(step.event, GuestsListed | Configured)
            del drained[key]


def every_drain_ends_once_and_its_outcome_is_remembered(steps: Steps) -> None:
    quiet: dict[GuestId, float] = {}  # since when no connection was counted
    for step in steps:
        for key, guest in step.state.guests.items():
            was = step.before.guests.get(key)
            before, after = None if was is None else was.drain, guest.drain
            if before is not None and after is None and was is not None:
                assert guest.last_drain is not None
                assert guest.last_drain.outcome is not None
                assert guest.last_drain.since == before.since
                assert before.outcome in {None, guest.last_drain.outcome}
            if after is None or after.left != 0:
                quiet.pop(key, None)
            elif isinstance(step.event, ConnectionsCounted):
                quiet.setdefault(key, step.at)
            if before is None or after is None or before.since != after.since:
                continue
            if before.outcome is not None:
                assert after.outcome is before.outcome
            elif after.outcome is Outcome.EMPTY:
                assert step.at - quiet[key] >= 1.0
            elif after.outcome is Outcome.DEADLINE:
                assert after.deadline is not None
                assert after.deadline <= step.at
                assert not after.requested
            assert (after.asked and not before.asked) <= isinstance(step.event, RequestSent)


def a_host_drain_leaves_the_share(steps: Steps) -> None:
    for step in steps:
        if not isinstance(step.event, DrainAllRequested):
            continue
        for service in step.state.settings.services:
            before, after = (
                serving_weight(step.before, service),
                serving_weight(step.state, service),
            )
            for key, (total, serving) in before.items():
                if not step.event.rest:
                    keep = service.keep_in_service * total
                    assert after[key][1] >= min(serving, keep) - 1e-6
            if step.event.rest:
                assert not any(guest.drain is None for guest in local_guests(step.state, service))


def local_guests(state: State, service: ServiceSettings) -> Iterator[Guest]:
    for guest in state.guests.values():
        if guest.phase is not Phase.ABSENT and membership(service, guest) is not None:
            yield guest


def serving_weight(state: State, service: ServiceSettings) -> dict[ServiceKey, tuple[int, int]]:
    """Return the weight of the servers whose guest runs, and of the serving ones among them."""
    weights_of = dict.fromkeys(service.kernel_keys(), (0, 0))
    for candidate in state.derived.candidates[service.name]:
        status = server_status(candidate, service, state, 0.0)
        if status.phase is not ServerPhase.ABSENT and (candidate.owner or candidate.server):
            total, serving = weights_of[candidate.service]
            serves = status.phase is ServerPhase.SERVING and status.weight != 0
            weight = candidate.weight
            weights_of[candidate.service] = total + weight, serving + weight * serves
    return weights_of


def events_of_former_incarnations_change_nothing(steps: Steps) -> None:
    for step in steps:
        event = step.event
        if not isinstance(event, LifeEvent) or event.incarnation is None:
            continue
        was = step.before.guests.get(event.guest)
        if was is None or event.incarnation == was.incarnation:
            continue
        if was.is_dead(event.incarnation, event.at):
            now = step.state.guests[event.guest]
            # The name and metadata of any started domain are the guest's.
            assert now == replace(
                was,
                name=now.name,
                metadata=now.metadata,
                metadata_problems=now.metadata_problems,
                metadata_at=now.metadata_at,
            )


@dataclass(slots=True)
class Weights:
    """The servers of one kernel service that have a verdict and whose guest is up.

    `total`: their weight; `serving`: of `active`, those in the table for new connections.
    `declining`: those that ask for no share of their weight.
    """

    service: ServiceSettings
    total: int = 0
    serving: int = 0
    active: set[RealServer] = field(default_factory=set)
    declining: set[RealServer] = field(default_factory=set)


def in_service(state: State) -> dict[ServiceKey, Weights]:
    by_key: dict[ServiceKey, Weights] = {}
    for service, candidate, server, guest in servers(state):
        entry = by_key.setdefault(server.service, Weights(service=service))
        health = state.verdict(candidate, service)
        if guest is not None and (guest.phase is not Phase.UP or guest.drain is not None):
            continue
        admission = state.remembered.admitted.get(server)
        new = health is not None and health.assumed and (admission is None or admission.quiesced)
        if new or (health is not None and health.up is None):
            continue
        entry.total += candidate.weight
        wants = health is None or health.share != 0
        if not wants:
            entry.declining.add(server)
        elif admission is not None and not admission.quiesced:
            entry.serving += candidate.weight
            entry.active.add(server)
    return by_key


def failing_checks_leave_the_share(steps: Steps) -> None:
    """Of the weight. Servers that ask for no weight do not count."""
    for step in steps:
        if not isinstance(step.event, ProbeFinished):
            continue
        before = in_service(step.before)
        for key, now in in_service(step.state).items():
            gone = {
                server
                for server in before[key].active - now.active
                if (
                    server not in step.state.remembered.admitted
                    or step.state.remembered.admitted[server].quiesced
                )
                and server not in now.declining
            }
            if gone and now.serving < before[key].serving:
                assert now.serving >= round(now.total * now.service.keep_in_service, 6)


def no_server_is_added_whose_check_fails(steps: Steps) -> None:
    """Nor by an assumption. A server that migrates here waits with weight 0."""
    for step in steps:
        table = weights(step.table)
        for service, candidate, server, _ in servers(step.state):
            before, after = (
                step.before.remembered.admitted.get(server),
                step.state.remembered.admitted.get(server),
            )
            if after is None or after.quiesced or (before is not None and not before.quiesced):
                continue
            verdict = step.state.verdict(candidate, service)
            # A UDP server whose weight is 0 from the start is admitted, but not in the table.
            if table.get((server.service, server.key), 0) > 0:
                assert verdict is None or (verdict.up and not verdict.assumed), step.event


def a_reload_removes_no_server_by_an_unprobed_check(steps: Steps) -> None:
    for step in steps:
        if not isinstance(step.event, Configured):
            continue
        before, after = weights(step.before_table), weights(step.table)
        for service, candidate, server, _ in servers(step.state):
            place = server.service, server.key
            if server not in step.before.remembered.admitted or before.get(place, 0) == 0:
                continue
            # Of the checks of another service only passes count, with their share.
            known = [
                step.before.check_verdict(target, candidate)
                for target in candidate.targets
                if target in checks_of(step.before, server)
            ]
            others = [step.before.remembered.health.get(target) for target in candidate.targets]
            if all(health.up for health in known):
                shares = [health.share for health in (*known, *others) if health and health.up]
                assert server in step.state.remembered.admitted
                assert after[place] > 0 or candidate.weight == 0 or 0 in shares, service


def checks_of(state: State, server: RealServer) -> tuple[Target, ...]:
    """Return the targets of a server's checks."""
    for _, candidate, other, _ in servers(state):
        if other == server:
            return candidate.targets
    return ()


def a_check_removes_a_server_after_fall_failures_of_its_own(steps: Steps) -> None:
    """Counted here from the results, for each server and check; a restart resets the count."""
    bad: dict[tuple[RealServer, Target], int] = {}
    for step in steps:
        has = {
            (server, target)
            for _, candidate, server, _ in servers(step.state)
            for target in candidate.targets
        }
        bad = {pair: bad.get(pair, 0) for pair in has}
        if not isinstance(step.event, ProbeFinished):
            continue
        target = step.event.target
        for pair in has:
            if pair[1] == target:
                bad[pair] = 0 if step.event.up else bad[pair] + 1
        before, after = weights(step.before_table), weights(step.table)
        for server in step.before.remembered.admitted:
            place = server.service, server.key
            if (server, target) in has and before.get(place, 0) > 0 and after.get(place, 0) == 0:
                assert step.event.up or bad[server, target] >= target.check.fall, (server, target)


def no_passing_server_is_held_back_if_no_other_serves(steps: Steps) -> None:
    """An outage is worse than a server that flaps. Sorry servers do not count as serving."""
    good: Counter[Target] = Counter()
    for step in steps:
        if (
            isinstance(step.event, ProbeFinished)
            and step.event.target in step.before.remembered.health
        ):
            known = step.before.remembered.health[step.event.target]
            if not step.event.up:
                good[step.event.target] = 0
            elif step.event.started >= known.valid_from:
                good[step.event.target] += 1
        state, table = step.state, weights(step.table)
        good = Counter(
            {
                target: good[target]
                for target, known in state.remembered.health.items()
                if known.valid_from < step.at and known.up is not None
            }
        )
        served = {
            server.service
            for server in state.remembered.admitted
            if table.get((server.service, server.key))
        }
        for service, candidate, server, guest in servers(state):
            if server.service in served or candidate.weight == 0 or not candidate.targets:
                continue
            if guest is not None and (guest.phase is not Phase.UP or guest.drain is not None):
                continue
            if (
                guest is not None
                and server not in state.remembered.admitted
                and not_ready_reason(service, guest)
            ):
                continue
            healths = {target: state.remembered.health[target] for target in candidate.targets}
            ups = [h.up or good[target] >= target.check.rise for target, h in healths.items()]
            if all(ups) or (service.any_check and any(ups)):
                own = (
                    state.remembered.admitted[server].overrides
                    if server in state.remembered.admitted
                    else {}
                )
                shares = [own.get(target, health).share for target, health in healths.items()]
                assert 0 in shares, (server, step.event)


def shares_are_within_their_bounds(steps: Steps) -> None:
    for step in steps:
        for target, health in step.state.remembered.health.items():
            assert health.share is None or 0.0 <= health.share <= 1.0, target
        for service, candidate, _, _ in servers(step.state):
            status = server_status(candidate, service, step.state, step.at)
            assert status.weight is None or status.weight <= candidate.weight


def an_alarm_is_noted_when_it_begins_and_when_it_ends(steps: Steps) -> None:
    """Whatever the cause: no serving server, or a failing one that is kept."""
    for step in steps:
        kept, serving = set(), set()
        for service, candidate, server, _ in servers(step.state):
            status = server_status(candidate, service, step.state, step.at)
            if status.reason.endswith("still in service only because of keep-in-service"):
                kept.add(server.service)
            if status.phase is ServerPhase.SERVING and status.weight:
                serving.add(server.service)
        there = {key for s in step.state.settings.services for key in s.kernel_keys()}
        kinds = {key: alarm.kind for key, alarm in step.state.remembered.alarms.items()}
        assert kinds.keys() <= there
        assert {key for key, kind in kinds.items() if kind is AlarmKind.KEPT} == kept & serving
        down = {key for key, kind in kinds.items() if kind is AlarmKind.DOWN}
        assert down <= there - serving
        assert step.before.remembered.alarms.keys() & (there - serving) <= down, (
            "an alarm ended while no server serves"
        )
        if step.state.synced and not any(
            v.up is None for v in step.state.remembered.health.values()
        ):
            assert down == there - serving
        notes = Counter(note.kind for note in step.result.notes)
        was = {key: alarm.kind for key, alarm in step.before.remembered.alarms.items()}
        assert notes[NoteKind.ALARM_BEGUN] == len(kinds.items() - was.items())
        assert notes[NoteKind.ALARM_ENDED] == len((was.keys() - kinds.keys()) & there)
        for key, alarm in step.state.remembered.alarms.items():
            assert alarm.since == (
                step.before.remembered.alarms[key].since if key in was else step.at
            )


def a_slow_start_only_rises_and_ends(steps: Steps) -> None:
    """Also between events, and each step is taken at its deadline."""
    for step in steps:
        for service, candidate, server, _ in servers(step.state):
            entry = step.state.remembered.admitted.get(server)
            if entry is None or not entry.ramp or service.slow_start <= 0:
                continue
            last = 0
            now: float | None = step.at
            while now is not None and now <= entry.at + 2 * service.slow_start:
                status = server_status(candidate, service, step.state, now)
                weight = status.weight or 0
                assert weight >= last
                assert weight in {0, 1} or weight <= candidate.weight
                last, due = weight, status.deadline if status.reason == "slow start" else None
                if due is not None:
                    assert due > now
                    deadline = next_deadline(step.state, now)
                    assert deadline is not None
                    assert deadline <= due, "the step would be late"
                now = due
            free = server_status(candidate, service, step.state, entry.at + service.slow_start)
            whole = weight_for_share(candidate.weight, step.state.verdict(candidate, service))
            assert free.weight in {0, whole}


def no_server_is_added_before_its_guest_is_ready(steps: Steps) -> None:
    """A server in the table stays, and so does a guest that migrates."""
    for step in steps:
        for service, _, server, guest in servers(step.state):
            if (
                guest is None
                or server not in step.state.remembered.admitted
                or server in step.before.remembered.admitted
            ):
                continue
            elsewhere = any(
                other.owner is not None and other.owner.uuid == guest.id.uuid
                for other in step.before.remembered.admitted
            )
            assert elsewhere or not not_ready_reason(service, guest), server


RULES = (
    the_table_has_admitted_and_sorry_servers_only,
    a_transition_names_every_service_whose_table_changed,
    a_transition_leaves_a_complete_state,
    leaving_paused_and_drained_guests_get_no_new_connections,
    no_server_serves_before_its_check_passed_in_this_boot,
    no_server_is_added_before_its_guest_is_ready,
    udp_servers_leave_the_table_after_drain_udp,
    a_drained_guest_returns_for_a_reason_only,
    every_drain_ends_once_and_its_outcome_is_remembered,
    a_host_drain_leaves_the_share,
    events_of_former_incarnations_change_nothing,
    failing_checks_leave_the_share,
    no_server_is_added_whose_check_fails,
    a_reload_removes_no_server_by_an_unprobed_check,
    a_check_removes_a_server_after_fall_failures_of_its_own,
    no_passing_server_is_held_back_if_no_other_serves,
    shares_are_within_their_bounds,
    an_alarm_is_noted_when_it_begins_and_when_it_ends,
    a_slow_start_only_rises_and_ends,
)


@story
@frequent
def test_the_rules_hold_after_every_step(story: list[Move]) -> None:
    steps = tuple(World().play(story))
    for rule in RULES:
        rule(steps)


@story
@seldom
def test_a_shutdown_request_sets_weight_0_at_once(story: list[Move]) -> None:
    """For every guest that serves, at the end of any story."""
    world = World()
    for _ in world.play(story):
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
            mine = [server for server in world.state.remembered.admitted if server.owner == key]
            assert all(server in result.state.remembered.admitted for server in mine)
            assert not any(table.get((server.service, server.key)) for server in mine)
            services = {
                service.name for service, _, server, _ in servers(world.state) if server in mine
            }
            assert result.services is not None
            assert services <= result.services


@story
@seldom
def test_a_death_removes_the_servers_at_once(story: list[Move]) -> None:
    world = World()
    for _ in world.play(story):
        pass
    for key, guest in world.state.guests.items():
        if guest.phase is Phase.ABSENT:
            continue
        result = reduce(world.state, Died(at=world.now, guest=key, incarnation=guest.incarnation))
        assert all(server.owner != key for server in result.state.remembered.admitted)
        assert result.state.guests[key].phase is Phase.ABSENT


def test_the_stories_reach_every_phase_and_reason() -> None:
    """The rules would also hold for a model that adds no server."""
    reached: Counter[str] = Counter()
    for seed in range(60):
        for step in World().play(a_story(seed)):
            for service, candidate, _, _ in servers(step.state):
                status = server_status(candidate, service, step.state, step.at)
                weight = {None: "none", 0: "0"}.get(status.weight, "some")
                reached[f"{status.phase} {weight}"] += 1
                reached[status.reason.split(";")[-1].strip()] += 1
                reached["not answered yet"] += status.reason.endswith("has not answered yet")
    for reason in (
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
        "waiting for a check to pass again",
        "drained by root",
        "no check",
        "its checks reduce its weight to 50%",
        "its checks reduce its weight to 0%",
        "held back",
        "not held back: no other server was up",
        "not answered yet",
    ):
        assert reached[reason] > 0, (reason, reached)


def test_metadata_of_an_older_listing_is_ignored() -> None:
    world = World()
    for _ in world.play(opening(0)):
        pass
    entry = MetadataService(name="web", weight=9)
    changed = MetadataChanged(at=world.now + 2, guest=GUESTS[0], services=(entry,))
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
    assert after.guests[GUESTS[0]].metadata == (entry,)
    # The listing's domain states count all the same.
    assert after.guests[GUESTS[1]].phase is Phase.ABSENT
    later = reduce(after, replace(listed, at=world.now + 5, requested_at=world.now + 4)).state
    assert later.guests[GUESTS[0]].metadata == ()


@story
@seldom
def test_a_restart_at_any_point_leaves_the_table_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, story: list[Move]
) -> None:
    """kill -9, and a start with the same configuration, before any event of a source."""
    path = tmp_path_factory.mktemp("restart") / "state.json"
    world = World()
    file = state_file.StateFile(path)
    for _ in world.play(story):
        file.save(SavedState(remembered=world.state.remembered))
    again = Configured(at=world.now, settings=replace(world.state.settings))
    restarted = reduce(State(remembered=state_file.load(path).remembered), again).state
    assert desired(again.settings.services, restarted, world.now) == world.agent_table
    # Results in a row do not count across a stop; overrides that differ in no more than these end.
    counted = {
        server: replace(
            entry,
            overrides={
                target: replace(own, streak=0)
                for target, own in entry.overrides.items()
                if not world.state.remembered.health[target].up
            },
        )
        for server, entry in world.state.remembered.admitted.items()
    }
    assert restarted.remembered.admitted == counted


def test_a_share_that_changes_no_weight_affects_no_service() -> None:
    world = World()
    for _ in world.play(opening(3)):
        pass
    target = next(t for t in world.state.remembered.health if t.check.type == "agent")
    for share, reweighs in ((0.5, True), (0.501, False), (0.1, True)):
        event = ProbeFinished(
            at=world.now, target=target, started=world.now, up=True, detail="", share=share
        )
        result = reduce(world.state, event)
        world.state = result.state
        assert world.state.remembered.health[target].share == share
        assert bool(result.services) is reweighs
