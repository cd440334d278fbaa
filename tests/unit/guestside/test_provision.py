"""A guest's answer to a look, however large: it is read and held against the needs in a thread."""

import asyncio
import time
from ipaddress import ip_address
from uuid import UUID

import pytest

from tests.unit.guestside.inspect.test_parse import framed
from xenlb.guestside import provision
from xenlb.guestside.inspect.parse import PIECES
from xenlb.guestside.requirements.compile import ServiceBinding
from xenlb.guestside.target import GuestTarget
from xenlb.guestside.transport.channel import LIMIT, DeliveryError, Output
from xenlb.ipvs.table import Forwarding
from xenlb.model.guest_side import GuestSide
from xenlb.model.settings import Port, ServiceSettings

# Some 0.3 s to read.
HOPS = ("default" + " nexthop via 10.0.0.1 dev eth0" * 900 + "\n") * (PIECES // 1000)


def target() -> GuestTarget:
    place = ServiceBinding(
        service=ServiceSettings(
            name="web",
            address=ip_address("192.0.2.1"),
            ports=(Port(number=80),),
            forwarding=Forwarding.GATEWAYING,
        ),
        side=GuestSide(),
        address=ip_address("10.0.0.11"),
    )
    return GuestTarget(
        name="web1",
        uuid=UUID(int=1),
        uri="qemu:///system",
        bindings=(place,),
        side=GuestSide(),
        hold=None,
        domid=1,
    )


class Channel:
    """A guest that answers with that."""

    def __init__(self, out: bytes) -> None:
        self._out = out

    async def run(self, script: str, *, limit: float = LIMIT) -> Output:
        return Output(status=0, out=self._out, err=b"")


def test_a_large_answer_does_not_hold_the_loop() -> None:
    async def main() -> tuple[float, int]:
        before = time.thread_time()
        seen = await provision.inspect(target(), Channel(framed(routes4=HOPS)))
        await asyncio.to_thread(provision.verdicts, target(), seen)
        return time.thread_time() - before, len(seen.default_routes)

    seconds, routes = asyncio.run(main())
    assert routes == 900 * (PIECES // 1000)
    assert seconds < 0.05, "of this thread"


def test_an_answer_that_is_too_large_is_one_sentence() -> None:
    with pytest.raises(DeliveryError, match=r"web1: .* larger than xenlb reads"):
        asyncio.run(provision.inspect(target(), Channel(framed(routes4=HOPS + HOPS))))
