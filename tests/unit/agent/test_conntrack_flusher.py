"""Which servers' entries are flushed: those that left because their check failed, and no others."""

from dataclasses import replace
from ipaddress import ip_address

import pytest

from tests.unit.model.worlds import GUESTS, URIS
from xenlb.agent.conntrack_flusher import failed_servers
from xenlb.director.conntrack import FailedServer
from xenlb.ipvs.table import Protocol
from xenlb.model.domain import DomainDescription, DomainState, GuestId
from xenlb.model.events import Configured, Died, GuestsListed, ProbeFinished
from xenlb.model.reducer import reduce
from xenlb.model.settings import Check, Member, OnFailure, Port, ServiceSettings, Settings
from xenlb.model.state import State

HOST = ip_address("10.0.0.5")
GUEST = ip_address("10.0.0.11")
SERVICE = ServiceSettings(
    name="dns",
    address=ip_address("192.0.2.10"),
    ports=(Port(number=53, protocol=Protocol.UDP),),
    checks=(Check(fall=2, port=53),),
    servers=(Member(host=HOST), Member(guest="*", address=GUEST)),
    flush=True,
)


def serving(service: ServiceSettings) -> State:
    """Both of its servers are in the table."""
    state = State()
    settings = Settings(uris=URIS[:1], services=(service,))
    guest = DomainDescription(
        guest=GUESTS[0], name="mail1", domain_state=DomainState.RUNNING, incarnation=1
    )
    state = reduce(state, Configured(at=1.0, settings=settings)).state
    state = reduce(
        state, GuestsListed(at=2.0, uri=URIS[0], requested_at=1.5, guests=(guest,))
    ).state
    state = probed(probed(state, 3.0, up=True), 3.0, up=True, address="10.0.0.11")
    assert len(state.remembered.admitted) == 2
    return state


def probed(state: State, at: float, *, up: bool, address: str = "10.0.0.5") -> State:
    target = next(each for each in state.remembered.health if str(each.address) == address)
    return reduce(
        state, ProbeFinished(at=at, target=target, started=at - 0.1, up=up, detail="")
    ).state


@pytest.mark.parametrize("address", ["10.0.0.5", "10.0.0.11"])
def test_a_server_that_fails(address: str) -> None:
    state = serving(SERVICE)
    once = probed(state, 4.0, up=False, address=address)
    assert failed_servers(state, once) == frozenset(), "it is in the table yet"
    twice = probed(once, 5.0, up=False, address=address)
    gone = FailedServer(address=ip_address(address), protocol=Protocol.UDP, port=53)
    assert failed_servers(once, twice) == {gone}
    assert failed_servers(twice, probed(twice, 6.0, up=False, address=address)) == frozenset(), (
        "once"
    )


@pytest.mark.parametrize(
    "service",
    [
        replace(SERVICE, flush=False),
        replace(SERVICE, on_failure=OnFailure.QUIESCE),
        replace(SERVICE, keep_in_service=1.0),
    ],
)
def test_where_nothing_is_flushed(service: ServiceSettings) -> None:
    state = serving(service)
    once = probed(state, 4.0, up=False)
    assert failed_servers(state, probed(once, 5.0, up=False)) == frozenset()


def test_a_guest_that_dies_has_not_failed_its_check() -> None:
    state = serving(SERVICE)
    guest: GuestId = GUESTS[0]
    gone = reduce(state, Died(at=4.0, guest=guest, incarnation=1)).state
    assert len(gone.remembered.admitted) == 1
    assert failed_servers(state, gone) == frozenset()
