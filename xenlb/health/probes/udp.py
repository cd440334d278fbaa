"""The udp check: a datagram and its answer, or the absence of a refusal.

With `expect`, an answer must come that contains it. Without it, a healthy server of many protocols
is silent: the server is up unless its host reports within half of the timeout that the port is
closed. That detects a server that has ended, but not a host that is down or hangs, which is silent
as well; `check: [{type: udp}, {type: icmp}]` detects both. As hosts limit refusals, nothing may
follow from silence; then a second datagram is sent, mostly after the limit has passed.
"""

import asyncio
import socket

from xenlb.health.transport.datagram import REFUSALS, connected_socket, receive_datagram
from xenlb.health.transport.pattern import SearchTooLong, matches
from xenlb.health.transport.result import Answer, failed, where
from xenlb.model.checks import Udp, octets
from xenlb.model.target import Target
from xenlb.untrusted.budget import Budget
from xenlb.untrusted.printable import first_line

# Shares of the timeout for which the probe waits after the first and the second datagram.
PATIENCE = (0.5, 0.25)


async def probe(target: Target, budget: Budget) -> Answer:
    """Run the check."""
    asks = target.check.asks
    assert isinstance(asks, Udp)
    refused = Answer(up=False, detail=f"connection refused by {where(target)}")
    loop = asyncio.get_running_loop()
    if not asks.expect and REFUSALS.is_held(target.address, target.port, loop.time()):
        return refused
    try:
        with connected_socket(target) as udp:
            if asks.expect:
                sent = loop.time()
                udp.send(octets(asks.send))
                data = await receive_datagram(udp, target, budget, sent=sent)
                return await _result(asks, data, where(target), budget)
            for share in PATIENCE:
                sent = loop.time()
                udp.send(octets(asks.send))
                if await _answers(udp, target, budget, sent, share * target.check.timeout):
                    return Answer(up=True, detail=f"{where(target)} answers")
                match REFUSALS.silent(target.address, target.port, sent=sent):
                    case True:
                        return Answer(up=True, detail=f"{where(target)} does not refuse datagrams")
                    case False:
                        return refused
    except OSError as error:
        return failed(target, error)
    return Answer(
        up=None,
        detail=f"the silence of {where(target)} tells nothing: {target.address} refuses more"
        " datagrams on other ports than it says (expect would tell)",
    )


async def _answers(
    udp: socket.socket, target: Target, budget: Budget, sent: float, patience: float
) -> bool:
    try:
        async with asyncio.timeout(patience):
            await receive_datagram(udp, target, budget, sent=sent)
    except TimeoutError:
        return False
    return True


async def _result(asks: Udp, data: bytes, source: str, budget: Budget) -> Answer:
    text = data.decode("utf-8", "replace")
    expected = f'expected "{asks.expect}" from {source}'
    try:
        if await matches(asks.expect, text, budget=budget):
            return Answer(up=True, detail=f"{source} answers as expected")
    except SearchTooLong:
        return Answer(up=False, detail=f"{expected}, got what takes too long to search")
    return Answer(up=False, detail=f'{expected}, got "{first_line(text)}"')
