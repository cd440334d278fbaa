"""The table that should be: what each server's weight is now, and why.

`standing` is the one place that decides a weight; the table and the status are made from it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from xenlb.ipvs.table import Entry, SchedulerFlags, Server, ServerKey, Service, ServiceKey, Table
from xenlb.model.drain import is_udp
from xenlb.model.guest import Guest, Phase
from xenlb.model.health import Health, Judged
from xenlb.model.membership import services_of
from xenlb.model.readiness import lacking
from xenlb.model.settings import ServiceSettings
from xenlb.model.state import Admission, Candidate, Slot, State
from xenlb.model.target import Target

# Seconds: a large weight does not make thousands of steps, each of which is a round of the owner.
SHORTEST_STEP = 0.1

# What comes at a deadline, followed by "in 40s".
RETURNS = "may return"
GROWS = "gets more weight"


class ServerPhase(StrEnum):
    """What status says of a server."""

    ABSENT = "absent"  # its guest does not run
    STARTING = "starting"  # not let in yet
    SERVING = "serving"
    DRAINING = "draining"
    PAUSED = "paused"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerStatus:
    """Where a server stands. `weight` None: not in the table. `deadline`: when that may change, and
    `then` what comes at that time."""

    phase: ServerPhase
    weight: int | None
    reason: str
    since: float
    deadline: float | None = None
    then: str = ""


def server_status(
    candidate: Candidate, service: ServiceSettings, state: State, now: float
) -> ServerStatus:
    """Weight and phase of one server at `now`."""
    admission = (
        state.remembered.admitted.get(candidate.slot) if candidate.slot is not None else None
    )
    quiet = _quiet(admission, candidate.service, service, now)
    guest = None if candidate.owner is None else state.guests[candidate.owner]
    if guest is not None:
        match guest.phase:
            case Phase.ABSENT:
                return ServerStatus(
                    phase=ServerPhase.ABSENT, weight=None, reason="not running", since=guest.since
                )
            case Phase.PAUSED:
                return ServerStatus(
                    phase=ServerPhase.PAUSED, weight=quiet, reason="paused", since=guest.since
                )
            case Phase.LEAVING | Phase.SUSPENDING:
                return _leaving(guest, quiet, _places(guest, state))
        if guest.drain is not None:
            return ServerStatus(
                phase=ServerPhase.DRAINING,
                weight=quiet,
                reason=guest.drain.text() + guest.drain.progress(_places(guest, state)),
                since=guest.drain.since,
                deadline=guest.drain.deadline if guest.drain.lasts else None,
                then="the drain ends at the latest",
            )
    since = 0.0 if guest is None else guest.since
    return _up(candidate, service, state, now, admission=admission, since=since)


def _places(guest: Guest, state: State) -> int:
    """In how many kernel services a guest serves, or would."""
    return sum(len(service.kernel_keys()) for service in services_of(state, guest))


def _leaving(guest: Guest, quiet: int | None, places: int) -> ServerStatus:
    request, drain = guest.request, guest.drain
    reason = "asked to go" if request is None else request.text()
    return ServerStatus(
        phase=ServerPhase.DRAINING,
        weight=quiet,
        reason=reason if drain is None else reason + drain.progress(places),
        since=guest.since,
        deadline=None if request is None else request.deadline,
        then="back in service, unless it goes,",
    )


def _up(
    candidate: Candidate,
    service: ServiceSettings,
    state: State,
    now: float,
    *,
    admission: Admission | None,
    since: float,
) -> ServerStatus:
    judged = state.judged(candidate, service)
    health = None if judged is None else judged[1]
    if admission is None:
        passes = judged is None or judged[1].up
        if candidate.slot is None or not passes:
            return _outside(candidate, judged, now, since=since)
        guest = None if candidate.owner is None else state.guests[candidate.owner]
        missing = "" if guest is None else lacking(service, guest)
        return ServerStatus(
            phase=ServerPhase.STARTING,
            weight=None,
            reason=missing or "about to be let in",
            since=since,
        )
    reason, held = "no check", None
    if judged is not None:
        target, verdict = judged
        if verdict.up is None:
            return ServerStatus(
                phase=ServerPhase.STARTING,
                weight=_quiet(admission, candidate.service, service, now),
                reason="waits for a check to pass again",
                since=since,
            )
        since = max(verdict.since, admission.at) if verdict.up else verdict.since
        if verdict.up:
            reason = f"check {target} has not answered yet" if verdict.assumed else "check passed"
            if now < verdict.held_until:
                reason += "; not held back, as no other server was up"
        else:
            reason, held = _failure(target, verdict, now)
    up = health is None or bool(health.up)
    if admission.quiesced:
        return ServerStatus(
            phase=ServerPhase.FAILED,
            weight=_quiet(admission, candidate.service, service, now),
            reason=reason,
            since=since,
            deadline=held,
            then=RETURNS,
        )
    share = None if health is None else health.share
    weight, deadline = _ramped(shared(candidate.weight, health), service, admission, now)
    if not up:  # settle() would have taken it out, were it free to go
        return ServerStatus(
            phase=ServerPhase.FAILED,
            weight=weight,
            reason=f"{reason}; still in service only because of keep-in-service",
            since=since,
            deadline=deadline,
            then=GROWS,
        )
    if candidate.weight == 0:
        reason = "weight 0 is configured: it gets no new connections"
    elif deadline is not None:
        reason = "slow start"
    elif weight != candidate.weight and share is not None:
        reason = f"its checks leave it {share * 100:.3g}% of its weight"
    return ServerStatus(
        phase=ServerPhase.SERVING,
        weight=weight or _quiet(admission, candidate.service, service, now),
        reason=reason,
        since=since,
        deadline=deadline,
        then=GROWS,
    )


def _quiet(
    admission: Admission | None, key: ServiceKey, service: ServiceSettings, now: float
) -> int | None:
    """What stands for weight 0: of UDP nothing, once drain.udp is over. Weight 0 ends no flow of a
    client that goes on sending from one port; where the server has left, its next packet is
    scheduled anew."""
    if admission is None:
        return None
    end = _udp_end(admission, key, service)
    return 0 if end is None or now < end else None


def _udp_end(admission: Admission, key: ServiceKey, service: ServiceSettings) -> float | None:
    """When a UDP server with weight 0 leaves the table; None: it has weight, or is not UDP."""
    if admission.quiet is None or not is_udp(key):
        return None
    return admission.quiet + service.drain.udp


def _outside(
    candidate: Candidate, judged: Judged | None, now: float, *, since: float
) -> ServerStatus:
    """Of a server that is not in the table because no check says that it may be."""
    if judged is not None and judged[1].up is False:
        reason, held = _failure(*judged, now)
        return ServerStatus(
            phase=ServerPhase.FAILED,
            weight=None,
            reason=reason,
            since=judged[1].since,
            deadline=held,
            then=RETURNS,
        )
    detail = candidate.reason
    if not detail and judged is not None:
        detail = judged[1].detail
    return ServerStatus(
        phase=ServerPhase.STARTING,
        weight=None,
        reason=detail or "waits for its first check",
        since=since,
    )


def _failure(target: Target, verdict: Health, now: float) -> tuple[str, float | None]:
    """Why a server fails, and until when it is held back if it is."""
    if verdict.damped(now):
        again = f"check {target} fails again and again ({verdict.failures} times in a row)"
        return f"{again}; held back", verdict.held_until
    return f"check {target} fails: {verdict.detail}", None


def shared(weight: int, health: Health | None) -> int:
    """The weight that a server's own answers leave of the configured one: whoever wants some of it
    keeps 1, and 0 is new connections to none."""
    share = None if health is None else health.share
    if share is None or weight == 0:
        return weight
    return min(65535, max(1 if share > 0 else 0, round(weight * share)))


def _ramped(
    weight: int, service: ServiceSettings, admission: Admission, now: float
) -> tuple[int, float | None]:
    """The weight that slow-start gives now, in whole steps, and when the next step is due."""
    if not admission.ramp or weight <= 1:
        return weight, None
    passed = max(0.0, now - admission.at)
    if passed >= service.slow_start:
        return weight, None
    steps = min(weight, max(1, int(service.slow_start / SHORTEST_STEP)))
    # A trifle more, so that at the time a step is due, as reckoned here, it is taken.
    done = int(steps * passed / service.slow_start + 1e-6)
    if steps == weight:
        done = max(1, done)  # the first step is to weight 1, and taken at once
    return max(1, weight * done // steps), admission.at + service.slow_start * (done + 1) / steps


def timed_slots(state: State) -> Mapping[Slot, Admission]:
    """The servers whose weight depends on the time."""
    return {
        slot: entry
        for slot, entry in state.remembered.admitted.items()
        if entry.ramp or (entry.quiet is not None and is_udp(slot.service))
    }


def next_deadline(state: State, now: float) -> float | None:
    """When something changes by itself after `now`: a grace or a drain ends, a ramp takes its next
    step, a UDP server leaves, an address waits no longer for its guest."""
    times = [g.reserved_until for g in state.guests.values() if g.reserved_until is not None]
    times += [g.request.deadline for g in state.guests.values() if g.request is not None]
    times += [
        guest.drain.deadline
        for guest in state.guests.values()
        if guest.drain is not None and guest.drain.lasts and guest.drain.deadline is not None
    ]
    times += [
        guest.drain.expires
        for guest in state.guests.values()
        if guest.drain is not None and guest.drain.due and guest.drain.expires is not None
    ]
    timed = timed_slots(state)
    for service in state.settings.services if timed else ():
        for candidate in state.derived.candidates[service.name]:
            entry = None if candidate.slot is None else timed.get(candidate.slot)
            if entry is None:
                continue
            weight = shared(candidate.weight, state.verdict(candidate, service))
            steps = (
                _ramped(weight, service, entry, now)[1] if service.slow_start > 0 else None,
                _udp_end(entry, candidate.service, service),
            )
            times += [at for at in steps if at is not None and at > now]
    return min(times, default=None)


def desired(services: Iterable[ServiceSettings], state: State, now: float) -> Table:
    """The kernel services of these services, each with the servers it should have at `now`."""
    entries: dict[ServiceKey, Entry] = {}
    for service in services:
        servers: dict[ServiceKey, dict[ServerKey, Server]] = {
            key: {} for key in service.kernel_keys()
        }
        for candidate in state.derived.candidates[service.name]:
            weight = server_status(candidate, service, state, now).weight
            if weight is not None and candidate.slot is not None:
                servers[candidate.service][candidate.slot.server] = server_of(
                    service, candidate.slot.server, weight
                )
        for key, own in servers.items():
            entries[key] = _entry(service, key, own)
    return Table(entries=entries)


def _entry(service: ServiceSettings, key: ServiceKey, servers: dict[ServerKey, Server]) -> Entry:
    """With the sorry server, which takes new connections as long as no other server does. Then it
    leaves: when its connections have ended, or at once if they are UDP's, which have no end."""
    leaving = frozenset[ServerKey]()
    if (sorry := service.sorry_key(key)) is not None:
        if not any(server.weight > 0 for server in servers.values()):
            servers = {sorry: server_of(service, sorry, 1)} | servers  # one that drains keeps 0
        elif not is_udp(key):
            leaving = frozenset({sorry} - servers.keys())
    quiet = bool(leaving) or any(server.weight == 0 for server in servers.values())
    return Entry(service=service_of(service, key, quiet=quiet), servers=servers, leaving=leaving)


# Schedulers that hash a client to a server and refuse the client while that server has weight 0,
# unless this flag tells them to look for another one.
FALLBACK = {"sh": SchedulerFlags.ONE, "mh": SchedulerFlags.ONE}
# dh has no such flag. lblc sends a destination to one server, too, but never to one of weight 0.
STAND_IN = {"dh": "lblc"}


def service_of(service: ServiceSettings, key: ServiceKey, *, quiet: bool = False) -> Service:
    """The kernel service; `quiet`: a server may have weight 0, and each of its clients gets
    another server."""
    scheduler = service.scheduler
    if quiet and scheduler in STAND_IN:
        scheduler = STAND_IN[scheduler]
    return Service(
        key=key,
        scheduler=scheduler,
        flags=service.flags | FALLBACK.get(service.scheduler, SchedulerFlags.NONE),
        one_packet=service.one_packet,
        persistence=service.persistence,
        prefix=service.prefix,
    )


def server_of(service: ServiceSettings, key: ServerKey, weight: int) -> Server:
    return Server(
        key=key,
        forwarding=service.forwarding,
        weight=weight,
        upper_threshold=service.upper_threshold,
        lower_threshold=service.lower_threshold,
        tunnel=service.tunnel,
    )
