"""Which guests may leave when the whole host goes down.

As many at once as leave every service its `keep-in-service` share. The rest is kept as long as
something may still take over: a server elsewhere that is not up yet, or one of the first who comes
back. That is not for ever, and so `rest` lets them go, too: a host that goes down takes them along
in any case, and drained their connections can end.

Pure. Who waits for what, and how long: the command `xenlb drain --all`.
"""

from collections.abc import Iterator
from math import ceil
from urllib.parse import urlsplit

from xenlb.model.desired import ServerPhase, Standing, standing
from xenlb.model.events import GuestId
from xenlb.model.guest import Guest, Phase
from xenlb.model.members import services_of
from xenlb.model.settings import ServiceSettings
from xenlb.model.state import State


def is_local(uri: str) -> bool:
    """Are the guests of that libvirt this host's own? `xen+ssh://dom0b/system` names another."""
    return urlsplit(uri).hostname in {None, "localhost", "127.0.0.1", "::1"}


def leavers(state: State) -> tuple[Guest, ...]:
    """The guests of this host that run and serve something, in a stable order."""
    found = (
        guest
        for guest in state.guests.values()
        if guest.phase is not Phase.ABSENT and is_local(guest.id.uri) and services_of(state, guest)
    )
    return tuple(sorted(found, key=lambda guest: (guest.name, guest.id)))


def kept(state: State) -> tuple[Guest, ...]:
    """Those of them that nobody has drained or asked to go yet."""
    return tuple(guest for guest in leavers(state) if guest.drain is None)


def free_to_go(state: State, *, rest: bool) -> tuple[GuestId, ...]:
    """Those that may be drained now."""
    serving: dict[str, set[GuestId | str]] = {}
    needed: dict[str, int] = {}
    for service in state.settings.services:
        able, up = _servers(state, service)
        serving[service.name] = up
        needed[service.name] = ceil(round(service.keep_in_service * len(able), 6))
    going: list[GuestId] = []
    for guest in kept(state):
        mine = [s.name for s in services_of(state, guest) if guest.id in serving[s.name]]
        if rest or all(len(serving[name]) - 1 >= needed[name] for name in mine):
            going.append(guest.id)
            for name in mine:
                serving[name].discard(guest.id)
    return tuple(going)


def _servers(
    state: State, service: ServiceSettings
) -> tuple[set[GuestId | str], set[GuestId | str]]:
    """The service's servers, as guests or hosts' addresses: those that are or may come to be in the
    table, and those that serve now at every port."""
    able: set[GuestId | str] = set()
    out: set[GuestId | str] = set()
    for who, stands in _standings(state, service):
        if stands.phase is ServerPhase.ABSENT:
            continue
        able.add(who)
        if stands.phase is not ServerPhase.SERVING or stands.weight == 0:
            out.add(who)  # weight 0: its checks leave it no share
    return able, able - out


def _standings(state: State, service: ServiceSettings) -> Iterator[tuple[GuestId | str, Standing]]:
    for candidate in state.candidates.get(service.name, ()):
        if candidate.weight == 0:
            continue  # it takes nothing over
        who: GuestId | str
        if candidate.owner is not None:
            who = candidate.owner
        elif candidate.slot is not None:
            who = str(candidate.slot.server.address)
        else:
            continue
        # How much weight it has now is of no matter here, so neither is the time.
        yield who, standing(candidate, service, state, 0.0)
