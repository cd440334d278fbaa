"""Requests that a guest may write itself, as often as it likes."""

from ipaddress import ip_address
from uuid import UUID

import pytest

from xenlb.model.domain import DomainDescription, DomainState, GuestId, RequestKind
from xenlb.model.events import Configured, GuestsListed, ShutdownRequested
from xenlb.model.note import NoteKind
from xenlb.model.reducer import reduce
from xenlb.model.settings import Member, Port, ServiceSettings, Settings
from xenlb.model.state import State

XEN = "xen:///system"
MAIL = GuestId(uri=XEN, uuid=UUID(int=1))
SERVICE = ServiceSettings(
    name="mail",
    address=ip_address("192.0.2.10"),
    ports=(Port(number=25),),
    servers=(Member(guest="mail1", address=ip_address("10.0.0.11")),),
)


def running() -> State:
    state = reduce(
        State(), Configured(at=0.0, settings=Settings(uris=(XEN,), services=(SERVICE,)))
    ).state
    mail = DomainDescription(
        guest=MAIL, name="mail1", domain_state=DomainState.RUNNING, incarnation=4
    )
    return reduce(state, GuestsListed(at=1.0, requested_at=1.0, uri=XEN, guests=(mail,))).state


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        (RequestKind.POWEROFF, 20.0),
        (RequestKind.REBOOT, 20.0),
        (RequestKind.SUSPEND, 20.0),
        (RequestKind.INSIDE, 0.0),
    ],
)
def test_a_repeated_request_moves_its_deadline_without_a_note(
    kind: RequestKind, more: float
) -> None:
    """A hold that repeats its report has the time of a drain; the grace is longer here."""
    first = reduce(running(), ShutdownRequested(at=10.0, guest=MAIL, incarnation=4, kind=kind))
    assert len([note for note in first.notes if note.guest == MAIL]) == 1
    again = reduce(first.state, ShutdownRequested(at=30.0, guest=MAIL, incarnation=4, kind=kind))
    assert again.notes == ()
    before, after = (result.state.guests[MAIL].request for result in (first, again))
    assert before is not None
    assert after is not None
    assert after.deadline == before.deadline + more


def test_another_request_is_noted() -> None:
    first = reduce(
        running(), ShutdownRequested(at=10.0, guest=MAIL, incarnation=4, kind=RequestKind.POWEROFF)
    )
    other = reduce(
        first.state, ShutdownRequested(at=11.0, guest=MAIL, incarnation=4, kind=RequestKind.REBOOT)
    )
    assert [note.kind for note in other.notes] == [NoteKind.GUEST_REQUESTED]
    assert [note.text for note in other.notes] == ["asked for reboot (domain 4)"]
