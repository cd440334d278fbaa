"""The wanted table: the weight of each server now, and the reason.

`server_status` is the one place that decides a weight; the table and the status are made from it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from xenlb.ipvs.table import Entry, SchedulerFlags, Server, ServerKey, Service, ServiceKey, Table
from xenlb.model.drain import is_udp
from xenlb.model.guest import Guest, Phase
from xenlb.model.health import Health, TargetVerdict
from xenlb.model.membership import services_of
from xenlb.model.readiness import not_ready_reason
from xenlb.model.settings import ServiceSettings
from xenlb.model.state import Admission, Candidate, RealServer, State
from xenlb.model.target import Target

# Seconds: a large weight must not make thousands of steps, each of which is a turn of the loop.
SHORTEST_STEP = 0.1

# What comes at a deadline, followed by "in 40s".
RETURNS = "may return"
GROWS = "gets more weight"
UNDRAINS = "back in service, unless it goes,"
DRAIN_ENDS = "the drain ends at the latest"


class ServerPhase(StrEnum):
    """The phase of a server in `status`."""

    ABSENT = "absent"  # its guest does not run
    STARTING = "starting"  # not added to the table yet
    SERVING = "serving"
    DRAINING = "draining"
    PAUSED = "paused"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """The status of a server. `weight` None: it is not in the table.

    `deadline`: when the status may change, and `then` what comes at that time.
    """

    phase: ServerPhase
    weight: int | None
    reason: str
    since: float
    deadline: float | None = None
    then: str = ""


def server_status(
    candidate: Candidate, service: ServiceSettings, state: State, now: float
) -> ServerStatus:
    """Return weight and phase of one server at `now`."""
    admission = state.admission_of(candidate)
    zero = _zero_weight(admission, candidate.service, service, now)
    guest = state.guest_of(candidate)
    if guest is None:
        return _status_by_checks(candidate, service, state, now, admission=admission, since=0.0)
    if guest.phase is Phase.ABSENT:
        return ServerStatus(ServerPhase.ABSENT, None, "not running", guest.since)
    if guest.phase is Phase.PAUSED:
        return ServerStatus(ServerPhase.PAUSED, zero, "paused", guest.since)
    drain = guest.drain
    progress = "" if drain is None else drain.progress(_kernel_services(guest, state))
    if guest.phase in {Phase.LEAVING, Phase.SUSPENDING}:
        reason, deadline = "shutting down", None
        if guest.request is not None:
            reason, deadline = guest.request.text(), guest.request.deadline
        reason += progress
        return ServerStatus(ServerPhase.DRAINING, zero, reason, guest.since, deadline, UNDRAINS)
    if drain is not None:
        reason, deadline = drain.text() + progress, drain.deadline if drain.active else None
        return ServerStatus(ServerPhase.DRAINING, zero, reason, drain.since, deadline, DRAIN_ENDS)
    since = guest.since
    return _status_by_checks(candidate, service, state, now, admission=admission, since=since)


def _kernel_services(guest: Guest, state: State) -> int:
    return sum(len(service.kernel_keys()) for service in services_of(state, guest))


def _status_by_checks(
    candidate: Candidate,
    service: ServiceSettings,
    state: State,
    now: float,
    *,
    admission: Admission | None,
    since: float,
) -> ServerStatus:
    """Return the status of a server whose guest, if any, is up and not drained."""
    decided = state.deciding_verdict(candidate, service)
    if admission is None:
        passes = decided is None or decided[1].up
        if candidate.server is None or not passes:
            return _outside(candidate, decided, now, since=since)
        guest = state.guest_of(candidate)
        reason = "" if guest is None else not_ready_reason(service, guest)
        reason = reason or "about to be added to the table"
        return ServerStatus(ServerPhase.STARTING, None, reason, since)
    zero = _zero_weight(admission, candidate.service, service, now)
    reason, held, verdict = "no check", None, None
    if decided is not None:
        target, verdict = decided
        if verdict.up is None:
            reason = "waiting for a check to pass again"
            return ServerStatus(ServerPhase.STARTING, zero, reason, since)
        since = max(verdict.since, admission.at) if verdict.up else verdict.since
        if verdict.up:
            reason = f"check {target} has not answered yet" if verdict.assumed else "check passed"
            if now < verdict.held_until:
                reason += "; not held back: no other server was up"
        else:
            reason, held = _failure(target, verdict, now)
    if admission.quiesced:
        return ServerStatus(ServerPhase.FAILED, zero, reason, since, held, RETURNS)
    reduced = weight_for_share(candidate.weight, verdict)
    weight, deadline = _ramped(reduced, service, admission, now)
    if verdict is not None and not verdict.up:  # a server that can be spared was removed before
        reason += "; still in service only because of keep-in-service"
        return ServerStatus(ServerPhase.FAILED, weight, reason, since, deadline, GROWS)
    if candidate.weight == 0:
        reason = "weight 0 is configured: it gets no new connections"
    elif deadline is not None:
        reason = "slow start"
    elif verdict is not None and verdict.share is not None and weight != candidate.weight:
        reason = f"its checks reduce its weight to {verdict.share * 100:.3g}%"
    weight_now = weight or zero
    return ServerStatus(ServerPhase.SERVING, weight_now, reason, since, deadline, GROWS)


def _zero_weight(
    admission: Admission | None, key: ServiceKey, service: ServiceSettings, now: float
) -> int | None:
    """Return 0, or None if the server leaves the table instead: UDP, once drain.udp is over.

    Weight 0 ends no flow of a client that goes on sending from one port. After the server has left,
    the client's next packet is scheduled to another server.
    """
    if admission is None:
        return None
    end = _udp_end(admission, key, service)
    return 0 if end is None or now < end else None


def _udp_end(admission: Admission, key: ServiceKey, service: ServiceSettings) -> float | None:
    """Return when a UDP server leaves the table; None: it has weight, or is not UDP."""
    if admission.zero_since is None or not is_udp(key):
        return None
    return admission.zero_since + service.drain.udp


def _outside(
    candidate: Candidate, decided: TargetVerdict | None, now: float, *, since: float
) -> ServerStatus:
    """Return the status of a server that is not in the table because its checks do not pass."""
    if decided is not None and decided[1].up is False:
        reason, held = _failure(*decided, now)
        since = decided[1].since
        return ServerStatus(ServerPhase.FAILED, None, reason, since, held, RETURNS)
    reason = candidate.reason
    if not reason and decided is not None:
        reason = decided[1].detail
    return ServerStatus(ServerPhase.STARTING, None, reason or "waiting for its first check", since)


def _failure(target: Target, verdict: Health, now: float) -> tuple[str, float | None]:
    """Return why a server fails, and until when it is held back, if it is."""
    if verdict.damped(now):
        text = f"check {target} failed {verdict.failures} times in a row; held back"
        return text, verdict.held_until
    return f"check {target} fails: {verdict.detail}", None


def weight_for_share(weight: int, health: Health | None) -> int:
    """Return the configured weight reduced to the share of a verdict: at least 1 if not 0."""
    share = None if health is None else health.share
    if share is None or weight == 0:
        return weight
    return min(65535, max(1 if share > 0 else 0, round(weight * share)))


def _ramped(
    weight: int, service: ServiceSettings, admission: Admission, now: float
) -> tuple[int, float | None]:
    """Return the weight of a slow start now, in whole steps, and when the next step is due."""
    if not admission.ramp or weight <= 1:
        return weight, None
    passed = max(0.0, now - admission.at)
    if passed >= service.slow_start:
        return weight, None
    steps = min(weight, max(1, int(service.slow_start / SHORTEST_STEP)))
    # A trifle more, so that a step is taken at the time computed for it here.
    done = int(steps * passed / service.slow_start + 1e-6)
    if steps == weight:
        done = max(1, done)  # the first step is to weight 1, and taken at once
    return max(1, weight * done // steps), admission.at + service.slow_start * (done + 1) / steps


def timed_servers(state: State) -> Mapping[RealServer, Admission]:
    """Return the servers whose weight depends on the time."""
    return {
        server: entry
        for server, entry in state.remembered.admitted.items()
        if entry.ramp or (entry.zero_since is not None and is_udp(server.service))
    }


def next_deadline(state: State, now: float) -> float | None:
    """Return when the state changes by itself after `now`; None: it does not."""
    times: list[float | None] = []
    for guest in state.guests.values():
        times.append(guest.reserved_until)
        if guest.request is not None:
            times.append(guest.request.deadline)
        if guest.active_drain is not None:
            times.append(guest.active_drain.deadline)
        if guest.drain is not None and guest.drain.request_due:
            times.append(guest.drain.request_expires)
    timed = timed_servers(state)
    for service in state.settings.services if timed else ():
        for candidate in state.derived.candidates[service.name]:
            entry = None if candidate.server is None else timed.get(candidate.server)
            if entry is None:
                continue
            weight = weight_for_share(candidate.weight, state.verdict(candidate, service))
            steps = (
                _ramped(weight, service, entry, now)[1] if service.slow_start > 0 else None,
                _udp_end(entry, candidate.service, service),
            )
            times += [at for at in steps if at is not None and at > now]
    return min((at for at in times if at is not None), default=None)


# Schedulers that hash a client to a server. They refuse the client while that server has weight 0,
# unless this flag makes them look for another one.
FALLBACK = {"sh": SchedulerFlags.ONE, "mh": SchedulerFlags.ONE}
# dh has no such flag. lblc also sends a destination to one server, but never to one of weight 0.
STAND_IN = {"dh": "lblc"}


def desired(services: Iterable[ServiceSettings], state: State, now: float) -> Table:
    """Return the kernel services of these services, each with its servers at `now`."""
    entries: dict[ServiceKey, Entry] = {}
    for service in services:
        servers: dict[ServiceKey, dict[ServerKey, Server]] = {
            key: {} for key in service.kernel_keys()
        }
        for candidate in state.derived.candidates[service.name]:
            weight = server_status(candidate, service, state, now).weight
            if weight is not None and candidate.server is not None:
                key = candidate.server.key
                servers[candidate.service][key] = _server(service, key, weight)
        for service_key, members in servers.items():
            entries[service_key] = _entry(service, service_key, members)
    return Table(entries=entries)


def _entry(service: ServiceSettings, key: ServiceKey, servers: dict[ServerKey, Server]) -> Entry:
    """Return the entry with its sorry server while no other server takes new connections.

    Afterwards the sorry server leaves when its connections have ended; over UDP at once, as flows
    have no end.
    """
    leaving = frozenset[ServerKey]()
    if (sorry := service.sorry_key(key)) is not None:
        if not any(server.weight > 0 for server in servers.values()):
            # As a draining server of the service it keeps weight 0.
            servers = {sorry: _server(service, sorry, 1)} | servers
        elif not is_udp(key):
            leaving = frozenset({sorry} - servers.keys())
    scheduler = service.scheduler
    if scheduler in STAND_IN and (leaving or any(s.weight == 0 for s in servers.values())):
        scheduler = STAND_IN[scheduler]
    kernel_service = Service(
        key=key,
        scheduler=scheduler,
        flags=service.flags | FALLBACK.get(service.scheduler, SchedulerFlags.NONE),
        one_packet=service.one_packet,
        persistence=service.persistence,
        prefix=service.prefix,
    )
    return Entry(service=kernel_service, servers=servers, leaving=leaving)


def _server(service: ServiceSettings, key: ServerKey, weight: int) -> Server:
    return Server(
        key=key,
        forwarding=service.forwarding,
        weight=weight,
        upper_threshold=service.upper_threshold,
        lower_threshold=service.lower_threshold,
        tunnel=service.tunnel,
    )
