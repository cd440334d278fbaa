"""Which guests may be drained when the whole host shuts down.

As many at once as leave every service its `keep-in-service` share, by the rule that also applies to
failing servers. Unlike there, drained servers count in the total: this very drain takes them out,
and the share must not shrink with them. The others stay in service while another server may take
over: one elsewhere that is not up yet, or a drained one that returns. `rest` drains them too: the
host stops them in any case, and drained their connections can end.
"""

from dataclasses import dataclass
from urllib.parse import urlsplit

from xenlb.ipvs.table import ServiceKey
from xenlb.model.desired import ServerPhase, server_status
from xenlb.model.domain import GuestId
from xenlb.model.guest import Guest, Phase
from xenlb.model.health import can_spare
from xenlb.model.membership import services_of
from xenlb.model.state import State


def is_local(uri: str) -> bool:
    """Return whether the guests of that libvirt run on this host."""
    return urlsplit(uri).hostname in {None, "localhost", "127.0.0.1", "::1"}


def local_members(state: State) -> tuple[Guest, ...]:
    """Return the running guests of this host that belong to a service, in a stable order."""
    guests = (
        guest
        for guest in state.guests.values()
        if guest.phase is not Phase.ABSENT and is_local(guest.id.uri) and services_of(state, guest)
    )
    return tuple(sorted(guests, key=lambda guest: (guest.name, guest.id)))


def not_drained(state: State) -> tuple[Guest, ...]:
    """Return those of them that are neither drained nor shutting down yet."""
    return tuple(guest for guest in local_members(state) if guest.drain is None)


@dataclass(slots=True, kw_only=True)
class _Weights:
    """The weights of a kernel service: of all servers that run, and of those that serve now."""

    share: float
    total: int = 0
    serving: int = 0


def drainable(state: State, *, rest: bool) -> tuple[GuestId, ...]:
    """Return the guests that may be drained now."""
    weights: dict[ServiceKey, _Weights] = {}
    served: dict[GuestId, list[tuple[_Weights, int]]] = {}
    for service in state.settings.services:
        for candidate in state.derived.candidates.get(service.name, ()):
            if candidate.owner is None and candidate.server is None:
                continue
            # Only whether it serves matters, which does not depend on the time.
            status = server_status(candidate, service, state, 0.0)
            if status.phase is ServerPhase.ABSENT:
                continue
            entry = weights.setdefault(candidate.service, _Weights(share=service.keep_in_service))
            entry.total += candidate.weight
            if status.phase is ServerPhase.SERVING and status.weight != 0:
                entry.serving += candidate.weight
                if candidate.owner is not None:
                    served.setdefault(candidate.owner, []).append((entry, candidate.weight))
    chosen: list[GuestId] = []
    for guest in not_drained(state):
        entries = served.get(guest.id, [])
        if rest or all(
            can_spare(weight, total=entry.total, remaining=entry.serving, share=entry.share)
            for entry, weight in entries
        ):
            chosen.append(guest.id)
            for entry, weight in entries:
                entry.serving -= weight
    return tuple(chosen)
