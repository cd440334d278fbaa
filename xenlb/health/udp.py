"""The udp check: a datagram, and what comes back.

With `expect`, an answer must come in which it is found. Without it silence is what a healthy server
of many protocols gives: the server is up unless its host says within half of the timeout that the
port is closed. That catches a server that has ended, not a host that has died or hangs, whose
silence is the same; `check: [{type: udp}, {type: icmp}]` catches both.
"""

import asyncio

from xenlb.health.answer import Answer, failed
from xenlb.health.datagram import connected, received
from xenlb.health.pattern import Endless, found
from xenlb.health.words import shown
from xenlb.model.checks import Udp, octets
from xenlb.model.events import Target

PATIENCE = 0.5  # of the timeout: how long silence is waited for where nothing is expected


async def probe(target: Target) -> Answer:
    asks = target.check.asks
    assert isinstance(asks, Udp)
    where = f"{target.address} port {target.port}"
    try:
        with connected(target) as asking:
            asking.send(octets(asks.send))
            if asks.expect:
                got = (await received(asking)).decode("utf-8", "replace")
                try:
                    if found(asks.expect, got):
                        return Answer(up=True, detail=f"{where} answers as expected")
                except Endless:
                    what = f'expected "{asks.expect}" from {where}'
                    return Answer(up=False, detail=f"{what}, got what takes too long to search")
                return Answer(
                    up=False,
                    detail=f'expected "{asks.expect}" from {where}, got "{shown(got)}"',
                )
            try:
                async with asyncio.timeout(target.check.timeout * PATIENCE):
                    await received(asking)
            except TimeoutError:
                return Answer(up=True, detail=f"{where} does not refuse datagrams")
            return Answer(up=True, detail=f"{where} answers")
    except OSError as error:
        return failed(target, error)
