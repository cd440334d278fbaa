"""Which guests may leave when the whole host goes down.

As many at once as leave every service its `keep-in-service` share, by the measure that holds for
failing servers, too (health.may_leave). Unlike there the weight of those that are drained counts as
what might serve: they are drained by this, and the share must not shrink with them. The rest is
kept as long as something may still take over: a server elsewhere that is not up yet, or one of the
first who comes back. That is not for ever, and so `rest` lets them go, too: a host that goes down
takes them along in any case, and drained their connections can end.

Pure. Who waits for what, and how long: the command `xenlb drain --all`.
"""

from dataclasses import dataclass
from urllib.parse import urlsplit

from xenlb.ipvs.table import ServiceKey
from xenlb.model.desired import ServerPhase, server_status
from xenlb.model.domain import GuestId
from xenlb.model.guest import Guest, Phase
from xenlb.model.health import may_leave
from xenlb.model.membership import services_of
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


@dataclass(slots=True, kw_only=True)
class _Weighed:
    """The weight of a kernel service: of the servers that are or may come to be in the table, and
    of those that serve now."""

    share: float
    able: int = 0
    serving: int = 0


def free_to_go(state: State, *, rest: bool) -> tuple[GuestId, ...]:
    """Those that may be drained now."""
    weighed: dict[ServiceKey, _Weighed] = {}
    places: dict[GuestId, list[tuple[_Weighed, int]]] = {}
    for service in state.settings.services:
        for candidate in state.derived.candidates.get(service.name, ()):
            if candidate.owner is None and candidate.slot is None:
                continue
            # How much weight it has now is of no matter here, so neither is the time.
            stands = server_status(candidate, service, state, 0.0)
            if stands.phase is ServerPhase.ABSENT:
                continue
            it = weighed.setdefault(candidate.service, _Weighed(share=service.keep_in_service))
            it.able += candidate.weight
            if stands.phase is ServerPhase.SERVING and stands.weight != 0:  # 0: it wants no share
                it.serving += candidate.weight
                if candidate.owner is not None:
                    places.setdefault(candidate.owner, []).append((it, candidate.weight))
    going: list[GuestId] = []
    for guest in kept(state):
        mine = places.get(guest.id, [])
        if rest or all(
            may_leave(weight, able=it.able, staying=it.serving, share=it.share)
            for it, weight in mine
        ):
            going.append(guest.id)
            for it, weight in mine:
                it.serving -= weight
    return tuple(going)
