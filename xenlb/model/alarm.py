"""The alarm of a service that keeps failing servers because too much of its weight would leave.

When it is raised: settle.py, by the rule of health.py. Here: what is said of it.
"""

from collections.abc import Iterator

from xenlb.ipvs import text
from xenlb.ipvs.table import ServiceKey
from xenlb.model.guest import Phase
from xenlb.model.settings import ServiceSettings
from xenlb.model.state import Note, State


def said(state: State, service: ServiceSettings, key: ServiceKey) -> str:
    """`2 of 3 servers fail, 1 of them is kept in service (keep-in-service: 50%)`"""
    able = failing = kept = 0
    for candidate in state.candidates[service.name]:
        if candidate.service != key or candidate.slot is None:
            continue
        guest = None if candidate.owner is None else state.guests[candidate.owner]
        if guest is not None and (guest.phase is not Phase.UP or guest.drain is not None):
            continue
        verdict = state.verdict(candidate, service)
        if verdict is not None and verdict.up is None:
            continue
        able += 1
        if verdict is not None and verdict.up is False:
            failing += 1
            admission = state.admitted.get(candidate.slot)
            kept += admission is not None and not admission.quiesced
    servers = f"{failing} of {able} server{'s' * (able != 1)} fail{'s' * (failing == 1)}"
    held = f"{kept} of them {'is' if kept == 1 else 'are'} kept in service"
    return f"{servers}, {held} (keep-in-service: {service.keep_in_service * 100:.3g}%)"


def news(before: State, state: State, at: float) -> Iterator[Note]:
    """What is to be told of alarms that began or ended between the two."""
    if before.alarms == state.alarms:
        return
    for service in state.settings.services:
        for key in service.kernel_keys():
            since, still = before.alarms.get(key), key in state.alarms
            name = f"service {service.name} ({text.service_key(key)})"
            if since is None and still:
                yield Note(at=at, text=f"{name}: {said(state, service, key)}", warning=True)
            elif since is not None and not still:
                lasted = f"it had to for {at - since:.0f} s"
                yield Note(at=at, text=f"{name}: keeps no failing server any more; {lasted}")
