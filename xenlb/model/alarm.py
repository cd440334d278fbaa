"""The alarm of a kernel service: no server serves, too little does, or failing servers are kept.

The cause does not matter: checks, drains, shutdown requests, guests that do not run.

No alarm begins while the first check result, or the first list of a libvirt's guests, is missing:
the state is unknown then. Both come within seconds, or their absence is reported by itself.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from xenlb.ipvs import text
from xenlb.ipvs.table import ServiceKey
from xenlb.model.desired import ServerPhase, server_status
from xenlb.model.domain import GuestId
from xenlb.model.events import ProbeFinished
from xenlb.model.membership import services_of, sorry_target
from xenlb.model.note import Note, NoteKind
from xenlb.model.settings import ServiceSettings
from xenlb.model.state import Alarm, AlarmKind, Candidate, State

# The order of phases in messages.
_SHOWN = (
    ServerPhase.FAILED,
    ServerPhase.DRAINING,
    ServerPhase.PAUSED,
    ServerPhase.STARTING,
    ServerPhase.ABSENT,
)
# What `keep-in-service` is a share of: servers that serve, or did in this boot of their guest.
_SERVED = {ServerPhase.SERVING, ServerPhase.FAILED, ServerPhase.DRAINING, ServerPhase.PAUSED}


@dataclass(slots=True)
class _Tally:
    """The servers of one kernel service by phase.

    `idle`: serving with weight 0. `total`, `remaining`: configured weights of the servers that
    serve or have served, and of those with weight now. `kept`: failing servers with weight.
    `unprobed`: servers without any check result yet.
    """

    phases: Counter[ServerPhase] = field(default_factory=Counter)
    idle: int = 0
    total: int = 0
    remaining: int = 0
    kept: int = 0
    unprobed: int = 0

    @property
    def serving(self) -> int:
        return self.phases[ServerPhase.SERVING]


def _tally(
    service: ServiceSettings,
    candidates: Iterable[Candidate],
    state: State,
    now: float,
    *,
    without: GuestId | None = None,
) -> _Tally:
    """Count the candidates of one kernel service. `without`: as if this guest were drained."""
    tally = _Tally()
    for candidate in candidates:
        status = server_status(candidate, service, state, now)
        phase, weight = status.phase, status.weight or 0
        if phase is ServerPhase.SERVING and candidate.owner == without and without is not None:
            phase, weight = ServerPhase.DRAINING, 0
        if phase is ServerPhase.SERVING and weight == 0:
            tally.idle += 1
        else:
            tally.phases[phase] += 1
        if phase in _SERVED:
            tally.total += candidate.weight
        if weight > 0:
            tally.remaining += candidate.weight
            tally.kept += phase is ServerPhase.FAILED
        if phase is ServerPhase.STARTING and candidate.server is not None:
            verdict = state.verdict(candidate, service)
            if verdict is not None and verdict.up is None and not verdict.detail:
                tally.unprobed += 1
    return tally


def _kind(service: ServiceSettings, tally: _Tally) -> AlarmKind | None:
    if not tally.serving:
        return AlarmKind.DOWN
    if tally.kept:
        return AlarmKind.KEPT
    if tally.remaining < round(service.keep_in_service * tally.total, 6):
        return AlarmKind.BELOW
    return None


def current_alarm(
    service: ServiceSettings,
    key: ServiceKey,
    candidates: Sequence[Candidate],
    state: State,
    at: float,
) -> Alarm | None:
    """Return the alarm of one kernel service, None without one."""
    if not service.keep_in_service and _any_serves(service, candidates, state, at):
        return None  # the usual case, found quickly
    tally = _tally(service, candidates, state, at)
    kind = _kind(service, tally)
    before = state.remembered.alarms.get(key)
    if kind is None:
        return None
    if before is None and kind is AlarmKind.DOWN:
        served = tally.phases.keys() & _SERVED
        if tally.unprobed or not (served or state.synced):
            return None
    return Alarm(kind=kind, since=at if before is None else before.since)


def _any_serves(
    service: ServiceSettings, candidates: Iterable[Candidate], state: State, at: float
) -> bool:
    statuses = (server_status(candidate, service, state, at) for candidate in candidates)
    return any(status.phase is ServerPhase.SERVING and status.weight for status in statuses)


def alarm_text(state: State, service: ServiceSettings, key: ServiceKey, now: float) -> str:
    """Return the text of an alarm, such as `no server serves: 2 failed, 1 absent`."""
    tally = _tally(service, state.candidates_by_key(service)[key], state, now)
    failing, keep = tally.phases[ServerPhase.FAILED], _keep_in_service(service)
    if tally.kept:
        total = tally.serving + failing
        servers = f"{failing} of {total} server{'s' * (total != 1)} fail{'s' * (failing == 1)}"
        kept = f"{tally.kept} of them {'is' if tally.kept == 1 else 'are'} kept in service"
        return f"{servers}, {kept} ({keep})"
    parts = [f"{tally.phases[phase]} {phase}" for phase in _SHOWN if tally.phases[phase]]
    if tally.idle:
        parts.append(f"{tally.idle} with weight 0")
    others = ", ".join(parts) or "it has no server"
    if not tally.serving:
        return f"no server serves: {others}{_sorry_text(state, service, key)}"
    return f"{_percent(tally)} of the weight serves ({keep}): {others}"


def _keep_in_service(service: ServiceSettings) -> str:
    return f"keep-in-service: {service.keep_in_service * 100:.3g}%"


def _percent(tally: _Tally) -> str:
    return f"{tally.remaining / tally.total * 100 if tally.total else 0:.3g}%"


def _sorry_text(state: State, service: ServiceSettings, key: ServiceKey) -> str:
    sorry = service.sorry_key(key)
    if sorry is None:
        return ""
    subject = f"; the sorry server {text.endpoint(sorry.address, sorry.port)}"
    failure = sorry_failure(state, service, key)
    return f"{subject} also fails its check: {failure}" if failure else f"{subject} takes over"


def sorry_failure(state: State, service: ServiceSettings, key: ServiceKey) -> str:
    """Return why the sorry server fails; "" if it passes, is unknown, or there is none."""
    target = sorry_target(service, key)
    health = None if target is None else state.remembered.health.get(target)
    return "" if health is None or health.up else health.detail


def sorry_server_notes(state: State, result: ProbeFinished) -> Iterator[Note]:
    """Yield a warning for each service whose sorry server was never up and fails."""
    for service in state.settings.services:
        if service.name in state.derived.targets[result.target]:
            for key in service.kernel_keys():
                if sorry_target(service, key) == result.target:
                    subject = f"service {service.name}: the sorry server fails its check"
                    message = f"{subject} {result.target}: {result.detail}"
                    yield Note(result.at, NoteKind.CHECK, message, warning=True)


def services_left_by(state: State, guest: GuestId, now: float) -> list[str]:
    """Return a line for each kernel service that a drain of this guest would leave too weak.

    That is without a serving server, or with less than keep-in-service, unless it already is.
    """
    lines = []
    for service in services_of(state, state.guests[guest]):
        for key, candidates in state.candidates_by_key(service).items():
            if all(candidate.owner != guest for candidate in candidates):
                continue
            before = _tally(service, candidates, state, now)
            after = _tally(service, candidates, state, now, without=guest)
            name = f"{service.name} ({text.label(key)})"
            below = (_kind(service, tally) is AlarmKind.BELOW for tally in (before, after))
            if before.serving and not after.serving:
                lines.append(f"{name} without a serving server")
            elif tuple(below) == (False, True):
                keep = _keep_in_service(service)
                lines.append(f"{name} with {_percent(after)} of its weight ({keep})")
    return lines


_ENDS = {
    AlarmKind.DOWN: "serves again",
    AlarmKind.BELOW: "enough servers serve again",
    AlarmKind.KEPT: "enough servers are healthy again",
}


def alarm_notes(before: State, state: State, at: float) -> Iterator[Note]:
    """Yield notes of alarms that began, changed their kind, or ended between the two."""
    if before.remembered.alarms == state.remembered.alarms:
        return
    for service in state.settings.services:
        for key in service.kernel_keys():
            old, new = before.remembered.alarms.get(key), state.remembered.alarms.get(key)
            name = f"service {service.name} ({text.label(key)})"
            if new is not None and (old is None or old.kind is not new.kind):
                message = f"{name}: {alarm_text(state, service, key, at)}"
                yield Note(at, NoteKind.ALARM_BEGUN, message, warning=True)
            elif old is not None and new is None:
                lasted = f"the alarm lasted {at - old.since:.0f} s"
                yield Note(at, NoteKind.ALARM_ENDED, f"{name}: {_ENDS[old.kind]}; {lasted}")
