"""Which of several addresses of a guest its server has.

A guest has several with two network cards, or with two leases of one MAC address, as where the
initramfs asked for one with another client identifier than the system does. The first may be dead.
So the best one is probed, and as long as it does not pass, the others are as well. A server that
is in the table stays where it is while it does not fail; a better source moves it, as before.

An address that fails while a lower one passes is given up: it goes last until the guest boots. Only
a probe that was begun after the other one had passed counts: of a guest that boots, all fail first.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from xenlb.ipvs.table import IPAddress
from xenlb.model.addresses import RANKS, AddressCandidate
from xenlb.model.events import ProbeFinished
from xenlb.model.guest import Guest, Phase
from xenlb.model.settings import ServiceSettings
from xenlb.model.state import Candidate, State

# The same server at each address, for each kernel service of its service.
Places = Mapping[IPAddress, Sequence[Candidate]]


def ranked(
    usable: Mapping[IPAddress, Sequence[AddressCandidate]], guest: Guest
) -> tuple[IPAddress, ...]:
    """Best first: those not given up, by the best source, by the number of sources that confirm an
    address, and as the sources gave them."""
    return tuple(
        sorted(usable, key=lambda each: (*_class(usable[each], each, guest), -len(usable[each])))
    )


def _class(found: Iterable[AddressCandidate], address: IPAddress, guest: Guest) -> tuple[bool, int]:
    return address in guest.given_up, min(RANKS[each.source] for each in found)


def choose(
    service: ServiceSettings, guest: Guest, places: Places, state: State
) -> tuple[IPAddress, ...]:
    """The addresses, best first as given, with the one that the server has put first."""
    order = tuple(places)
    passes = {each: _passes(service, places[each], state) for each in order}
    first = next((each for each in order if passes[each] is False), order[0])
    if passes[order[0]]:
        first = order[0]
    now = next((each for each in order if _in_table(guest, places[each], state)), None)
    if now is not None:
        classes = {
            each: _class((f for f in guest.candidates if f.address == each), each, guest)
            for each in (now, order[0])
        }
        leaves = guest.phase is not Phase.UP or guest.drain is not None
        if leaves or (passes[now] is not False and classes[now] == classes[order[0]]):
            first = now
        elif passes[now] is not False:
            first = order[0]
    return first, *(each for each in order if each != first)


def _passes(service: ServiceSettings, candidates: Iterable[Candidate], state: State) -> bool | None:
    """On any port; None: nothing is known. Without a check every address passes."""
    verdicts = [state.verdict(each, service) for each in candidates]
    ups = [True if verdict is None else verdict.up for verdict in verdicts]
    return True if True in ups else False if False in ups else None


def _in_table(guest: Guest, candidates: Iterable[Candidate], state: State) -> bool:
    entries = (
        None if c.slot is None else state.remembered.admitted.get(c.slot) for c in candidates
    )
    return any(entry is not None and entry.at >= guest.booted for entry in entries)


def given_up(state: State, event: ProbeFinished) -> Guest | None:
    """The guest without the address of a probe that failed, where another one of it passes."""
    address = event.target.address
    owner = state.derived.owners.get(address)
    if event.up or owner is None or address in state.guests[owner].given_up:
        return None
    guest = state.guests[owner]
    if guest.phase is not Phase.UP:
        return None
    for service in state.settings.services:
        if service.name not in state.derived.targets.get(event.target, {}):
            continue
        mine = [
            c for c in state.derived.candidates[service.name] if c.owner == owner and c.alternatives
        ]
        places: dict[IPAddress, list[Candidate]] = {}
        for each in (place for candidate in mine for place in (candidate, *candidate.alternatives)):
            if each.slot is not None:
                places.setdefault(each.slot.server.address, []).append(each)
        if _passes(service, places.get(address, ()), state):
            continue
        for other, candidates in places.items():
            if _passed_before(service, candidates, state, event.started):
                given = (guest.given_up | {address}) - {other}
                return replace(guest, given_up=given)
    return None


def _passed_before(
    service: ServiceSettings, candidates: Iterable[Candidate], state: State, asked: float
) -> bool:
    verdicts = [state.verdict(each, service) for each in candidates]
    return any(v is not None and bool(v.up) and v.since <= asked for v in verdicts)
