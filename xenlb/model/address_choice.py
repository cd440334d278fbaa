"""Choice among several addresses of a guest for its server.

A guest has several with two network cards, or with two leases of one MAC address: the initramfs may
have used another client identifier than the system. The best one may be dead, so the others are
probed too while it does not pass. A server in the table keeps its address while that does not fail;
only a better source moves it.

An address that fails while a lower one passes is given up: it ranks last until the guest boots.
Only a probe that began after the other one had passed counts: in a booting guest all fail first.
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
ByAddress = Mapping[IPAddress, Sequence[Candidate]]


def ranked(
    usable: Mapping[IPAddress, Sequence[AddressCandidate]], guest: Guest
) -> tuple[IPAddress, ...]:
    """Return the addresses by source and number of sources, best first; given-up ones are last."""
    return tuple(sorted(usable, key=lambda ip: (*_rank(usable[ip], ip, guest), -len(usable[ip]))))


def _rank(
    sources: Iterable[AddressCandidate], address: IPAddress, guest: Guest
) -> tuple[bool, int]:
    return address in guest.given_up, min(RANKS[candidate.source] for candidate in sources)


def choose(
    service: ServiceSettings, guest: Guest, by_address: ByAddress, state: State
) -> tuple[IPAddress, ...]:
    """Return the ranked addresses with the server's address first."""
    order = tuple(by_address)
    best = order[0]
    passes = {address: _passes(service, by_address[address], state) for address in order}
    first = next((address for address in order if passes[address] is False), best)
    if passes[best]:
        first = best
    present = next((ip for ip in order if _in_table(guest, by_address[ip], state)), None)
    if present is not None:
        ranks = {
            address: _rank((c for c in guest.candidates if c.address == address), address, guest)
            for address in (present, best)
        }
        out = guest.phase is not Phase.UP or guest.drain is not None
        if out or (passes[present] is not False and ranks[present] == ranks[best]):
            first = present
        elif passes[present] is not False:
            first = best
    return first, *(address for address in order if address != first)


def _passes(service: ServiceSettings, candidates: Iterable[Candidate], state: State) -> bool | None:
    """Return whether any port passes, None if unknown; without a check every address passes."""
    verdicts = [state.verdict(candidate, service) for candidate in candidates]
    ups = [True if verdict is None else verdict.up for verdict in verdicts]
    return True if True in ups else False if False in ups else None


def _in_table(guest: Guest, candidates: Iterable[Candidate], state: State) -> bool:
    admissions = (state.admission_of(candidate) for candidate in candidates)
    return any(entry is not None and entry.at >= guest.booted for entry in admissions)


def without_failing_address(state: State, event: ProbeFinished) -> Guest | None:
    """Return the guest with the failed probe's address given up, if another one of it passes."""
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
        by_address: dict[IPAddress, list[Candidate]] = {}
        for candidate in state.derived.candidates[service.name]:
            if candidate.owner != owner or not candidate.alternatives:
                continue
            for variant in (candidate, *candidate.alternatives):
                if variant.server is not None:
                    by_address.setdefault(variant.server.key.address, []).append(variant)
        if _passes(service, by_address.get(address, ()), state):
            continue
        for other, candidates in by_address.items():
            if _passed_before(service, candidates, state, event.started):
                return replace(guest, given_up=(guest.given_up | {address}) - {other})
    return None


def _passed_before(
    service: ServiceSettings, candidates: Iterable[Candidate], state: State, started: float
) -> bool:
    verdicts = [state.verdict(candidate, service) for candidate in candidates]
    return any(v is not None and bool(v.up) and v.since <= started for v in verdicts)
