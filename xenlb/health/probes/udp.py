"""The udp check: a datagram, and what comes back.

With `expect`, an answer must come in which it is found. Without it silence is what a healthy server
of many protocols gives: the server is up unless its host says within half of the timeout that the
port is closed. That catches a server that has ended, not a host that has died or hangs, whose
silence is the same; `check: [{type: udp}, {type: icmp}]` catches both. How far silence can be
trusted: udp_refusals.py. Where it tells nothing, a second datagram is sent: the limit on refusals
is mostly over by then.
"""

import asyncio
import socket

from xenlb.health.transport.datagram import REFUSALS, connected, received
from xenlb.health.transport.pattern import SearchTooLong, matches
from xenlb.health.transport.result import Answer, failed
from xenlb.model.checks import Udp, octets
from xenlb.model.target import Target
from xenlb.untrusted.budget import Budget
from xenlb.untrusted.printable import first_line

# Of the timeout: how long silence is waited for where nothing is expected, the second time too.
PATIENCE = (0.5, 0.25)


async def probe(target: Target, budget: Budget) -> Answer:
    asks = target.check.asks
    assert isinstance(asks, Udp)
    where = f"{target.address} port {target.port}"
    refused = Answer(up=False, detail=f"connection refused by {where}")
    loop = asyncio.get_running_loop()
    if not asks.expect and REFUSALS.held(target.address, target.port, loop.time()):
        return refused
    try:
        with connected(target) as asking:
            if asks.expect:
                sent = loop.time()
                asking.send(octets(asks.send))
                data = await received(asking, target, budget, sent=sent)
                return await _judged(asks, data, where, budget)
            for share in PATIENCE:
                sent = loop.time()
                asking.send(octets(asks.send))
                if await _answers(asking, target, budget, sent, share * target.check.timeout):
                    return Answer(up=True, detail=f"{where} answers")
                match REFUSALS.silent(target.address, target.port, sent=sent):
                    case True:
                        return Answer(up=True, detail=f"{where} does not refuse datagrams")
                    case False:
                        return refused
    except OSError as error:
        return failed(target, error)
    return Answer(
        up=None,
        detail=f"the silence of {where} tells nothing: {target.address} refuses more datagrams on"
        " other ports than it says (expect would tell)",
    )


async def _answers(
    asking: socket.socket, target: Target, budget: Budget, sent: float, patience: float
) -> bool:
    try:
        async with asyncio.timeout(patience):
            await received(asking, target, budget, sent=sent)
    except TimeoutError:
        return False
    return True


async def _judged(asks: Udp, data: bytes, where: str, budget: Budget) -> Answer:
    got = data.decode("utf-8", "replace")
    try:
        if await matches(asks.expect, got, budget=budget):
            return Answer(up=True, detail=f"{where} answers as expected")
    except SearchTooLong:
        what = f'expected "{asks.expect}" from {where}'
        return Answer(up=False, detail=f"{what}, got what takes too long to search")
    return Answer(
        up=False, detail=f'expected "{asks.expect}" from {where}, got "{first_line(got)}"'
    )
