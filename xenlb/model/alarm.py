"""The alarm of a kernel service: no server serves, too little of it does, or failing servers stay.

Whatever the cause: checks, drains, requests to shut down, guests that do not run. admission.py
raises it after each event; here are the rule, and the words for status and journal.

No alarm yet where the first answer of a check, or the first list of a libvirt's guests, is still to
come: then nothing is known. Both come within seconds, or are reported by themselves.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from xenlb.ipvs import text
from xenlb.ipvs.table import ServiceKey
from xenlb.model.desired import ServerPhase, ServerStatus, server_status
from xenlb.model.domain import GuestId
from xenlb.model.events import ProbeFinished
from xenlb.model.membership import services_of, sorry_target
from xenlb.model.note import Note, NoteKind
from xenlb.model.settings import ServiceSettings
from xenlb.model.state import Alarm, AlarmKind, Candidate, State

# Phases in the order in which they are counted out.
TOLD = (
    ServerPhase.FAILED,
    ServerPhase.DRAINING,
    ServerPhase.PAUSED,
    ServerPhase.STARTING,
    ServerPhase.ABSENT,
)
# What `keep-in-service` is a share of: servers that serve, or did in this boot of their guest.
ABLE = {ServerPhase.SERVING, ServerPhase.FAILED, ServerPhase.DRAINING, ServerPhase.PAUSED}


@dataclass(slots=True)
class Measured:
    """One kernel service. `able` and `staying` are configured weights; `kept` counts the servers
    that fail and keep their weight. `unheard`: servers of which no check has said anything yet."""

    phases: Counter[ServerPhase] = field(default_factory=Counter)
    idle: int = 0
    able: int = 0
    staying: int = 0
    kept: int = 0
    unheard: int = 0

    @property
    def serving(self) -> int:
        return self.phases[ServerPhase.SERVING]


def measure(
    service: ServiceSettings,
    candidates: Iterable[Candidate],
    state: State,
    now: float,
    *,
    without: GuestId | None = None,
) -> Measured:
    """`candidates`: those of one kernel service. `without`: as if this guest were drained."""
    found = Measured()
    for candidate in candidates:
        stands = server_status(candidate, service, state, now)
        phase, weight = stands.phase, stands.weight or 0
        if phase is ServerPhase.SERVING and candidate.owner == without and without is not None:
            phase, weight = ServerPhase.DRAINING, 0
        if phase is ServerPhase.SERVING and weight == 0:
            found.idle += 1  # in the table, for no new connection
        else:
            found.phases[phase] += 1
        if phase in ABLE:
            found.able += candidate.weight
        if weight > 0:
            found.staying += candidate.weight
            found.kept += phase is ServerPhase.FAILED
        found.unheard += _unheard(candidate, service, state, stands)
    return found


def _unheard(
    candidate: Candidate, service: ServiceSettings, state: State, stands: ServerStatus
) -> bool:
    if stands.phase is not ServerPhase.STARTING or candidate.slot is None:
        return False
    verdict = state.verdict(candidate, service)
    return verdict is not None and verdict.up is None and not verdict.detail


def kind_of(service: ServiceSettings, found: Measured) -> AlarmKind | None:
    if not found.serving:
        return AlarmKind.DOWN
    if found.kept:
        return AlarmKind.KEPT
    if found.staying < round(service.keep_in_service * found.able, 6):
        return AlarmKind.BELOW
    return None


def raised(
    service: ServiceSettings,
    key: ServiceKey,
    candidates: tuple[Candidate, ...],
    state: State,
    at: float,
) -> Alarm | None:
    """The alarm of one kernel service now, with the time since when there is one."""
    if not service.keep_in_service and _any_serves(service, candidates, state, at):
        return None  # as nearly always, and quickly said
    found = measure(service, candidates, state, at)
    kind = kind_of(service, found)
    before = state.remembered.alarms.get(key)
    if kind is None:
        return None
    if before is None and kind is AlarmKind.DOWN:
        served = found.phases.keys() & ABLE
        if found.unheard or not (served or state.synced):
            return None
    return Alarm(kind=kind, since=at if before is None else before.since)


def _any_serves(
    service: ServiceSettings, candidates: tuple[Candidate, ...], state: State, at: float
) -> bool:
    for candidate in candidates:
        stands = server_status(candidate, service, state, at)
        if stands.phase is ServerPhase.SERVING and stands.weight:
            return True
    return False


def alarm_text(state: State, service: ServiceSettings, key: ServiceKey, now: float) -> str:
    """`no server serves: 2 failed, 1 absent`"""
    mine = [each for each in state.derived.candidates[service.name] if each.service == key]
    found = measure(service, mine, state, now)
    failing, share = found.phases[ServerPhase.FAILED], f"{service.keep_in_service * 100:.3g}%"
    if found.kept:
        able = found.serving + failing
        servers = f"{failing} of {able} server{'s' * (able != 1)} fail{'s' * (failing == 1)}"
        held = f"{found.kept} of them {'is' if found.kept == 1 else 'are'} kept in service"
        return f"{servers}, {held} (keep-in-service: {share})"
    parts = [f"{found.phases[phase]} {phase}" for phase in TOLD if found.phases[phase]]
    if found.idle:
        parts.append(f"{found.idle} with weight 0")
    others = ", ".join(parts) or "it has no server"
    if not found.serving:
        return f"no server serves: {others}{_sorry(state, service, key)}"
    return f"{_share(found)} of the weight serves (keep-in-service: {share}): {others}"


def _sorry(state: State, service: ServiceSettings, key: ServiceKey) -> str:
    """What takes the connections instead."""
    sorry = service.sorry_key(key)
    if sorry is None:
        return ""
    where = f"; the sorry server {text.endpoint(sorry.address, sorry.port)}"
    failure = sorry_failure(state, service, key)
    return f"{where} fails its check, too: {failure}" if failure else f"{where} takes their place"


def sorry_failure(state: State, service: ServiceSettings, key: ServiceKey) -> str:
    """What its check says; "" where it passes, has not answered yet, or there is none."""
    target = sorry_target(service, key)
    health = None if target is None else state.remembered.health.get(target)
    return "" if health is None or health.up else health.detail


def sorry_news(state: State, result: ProbeFinished) -> Iterator[Note]:
    """A sorry server that fails from the beginning, which is no news of a server."""
    for service in state.settings.services:
        if service.name in state.derived.targets[result.target]:
            for key in service.kernel_keys():
                if sorry_target(service, key) == result.target:
                    subject = f"service {service.name}: the sorry server fails its check"
                    text = f"{subject} {result.target}: {result.detail}"
                    yield Note(at=result.at, kind=NoteKind.CHECK, text=text, warning=True)


def _share(found: Measured) -> str:
    return f"{found.staying / found.able * 100 if found.able else 0:.3g}%"


def services_left_by(state: State, guest: GuestId, now: float) -> list[str]:
    """The kernel services that a drain of this guest would leave without a serving server, or with
    less than keep-in-service wants: one line each. Those that are so already are not among them."""
    lines = []
    for service in services_of(state, state.guests[guest]):
        for key in service.kernel_keys():
            mine = [each for each in state.derived.candidates[service.name] if each.service == key]
            if all(candidate.owner != guest for candidate in mine):
                continue
            before = measure(service, mine, state, now)
            after = measure(service, mine, state, now, without=guest)
            name = f"{service.name} ({text.label(key)})"
            if before.serving and not after.serving:
                lines.append(f"{name} without a serving server")
            elif (
                kind_of(service, after) is AlarmKind.BELOW
                and kind_of(service, before) is not AlarmKind.BELOW
            ):
                wanted = f"keep-in-service: {service.keep_in_service * 100:.3g}%"
                lines.append(f"{name} with {_share(after)} of its weight ({wanted})")
    return lines


_ENDS = {
    AlarmKind.DOWN: "serves again",
    AlarmKind.BELOW: "enough servers serve again",
    AlarmKind.KEPT: "enough servers are healthy again",
}


def alarm_notes(before: State, state: State, at: float) -> Iterator[Note]:
    """What is to be told of alarms that began, changed their kind, or ended between the two."""
    if before.remembered.alarms == state.remembered.alarms:
        return
    for service in state.settings.services:
        for key in service.kernel_keys():
            was, now = before.remembered.alarms.get(key), state.remembered.alarms.get(key)
            name = f"service {service.name} ({text.label(key)})"
            if now is not None and (was is None or was.kind is not now.kind):
                told = alarm_text(state, service, key, at)
                yield Note(at=at, kind=NoteKind.ALARM_BEGUN, text=f"{name}: {told}", warning=True)
            elif was is not None and now is None:
                lasted = f"the alarm lasted {at - was.since:.0f} s"
                yield Note(
                    at=at, kind=NoteKind.ALARM_ENDED, text=f"{name}: {_ENDS[was.kind]}; {lasted}"
                )
