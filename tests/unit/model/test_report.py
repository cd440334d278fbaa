"""What operators are told beyond the table: `why`."""

from ipaddress import ip_address
from uuid import UUID

from xenlb.model import report
from xenlb.model.events import GuestId
from xenlb.model.found import Found, Refused, Source
from xenlb.model.guest import Guest, Phase
from xenlb.model.state import State

MINE, OTHER = (GuestId(uri="xen:///system", uuid=UUID(int=number)) for number in (1, 2))


def test_every_address_that_is_not_used_is_refused_with_a_reason() -> None:
    found = tuple(
        Found(address=ip_address(text), source=Source.REPORTED)
        for text in ("10.0.0.11", "10.0.0.12", "10.0.0.5")
    )
    refused = Refused(text="192.0.2.10", source=Source.REPORTED, reason="it is a service address")
    state = State(
        guests={
            MINE: Guest(id=MINE, name="mine", phase=Phase.UP, found=found, refused=(refused,)),
            OTHER: Guest(id=OTHER, name="other", phase=Phase.UP),
        },
        owners={found[0].address: MINE, found[1].address: OTHER, found[2].address: None},
    )
    said = report.guest(state, MINE, wall=str)
    source = "reported by the guest"
    assert said["addresses"] == [{"address": "10.0.0.11", "source": source}]
    assert said["refused_addresses"] == [
        {"address": "192.0.2.10", "source": source, "reason": "it is a service address"},
        {"address": "10.0.0.12", "source": source, "reason": "it is that of guest other"},
        {"address": "10.0.0.5", "source": source, "reason": "it is that of a configured host"},
    ]
