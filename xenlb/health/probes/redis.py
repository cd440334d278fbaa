"""The redis check: PING.

A server that wants a password first (NOAUTH), or lets nobody ping without a right to (NOPERM), has
answered and is up; one that still loads its data, has lost its master or is full is not, in its
own words. It logs nothing of it.
"""

from xenlb.health.transport.result import Answer
from xenlb.health.transport.stream import Stream, session
from xenlb.model.checks import Redis
from xenlb.model.target import Target
from xenlb.untrusted.budget import Budget

UP = (b"+PONG", b"-NOAUTH", b"-NOPERM")


async def probe(target: Target, budget: Budget) -> Answer:
    asks = target.check.asks
    assert isinstance(asks, Redis)
    return await session(target, budget, _talk, tls=asks.tls)


async def _talk(stream: Stream) -> Answer:
    await stream.send(b"*1\r\n$4\r\nPING\r\n")
    line = await stream.line("answer to PING")
    word = line.split(b" ")[0]
    if word not in UP:
        raise stream.unexpected("PONG as answer to PING", line)
    await stream.part()
    return Answer(up=True, detail=f"{stream.where} answers PING with {word[1:].decode()}")
