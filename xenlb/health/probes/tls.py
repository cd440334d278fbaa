"""The tls check: does the server shake hands, and is its certificate good?"""

from xenlb.health.transport.result import Answer
from xenlb.health.transport.stream import Stream, session
from xenlb.model.checks import TlsHandshake
from xenlb.model.target import Target
from xenlb.untrusted.budget import Budget


async def probe(target: Target, budget: Budget) -> Answer:
    asks = target.check.asks
    assert isinstance(asks, TlsHandshake)
    return await session(target, budget, _talk, tls=asks.tls)


async def _talk(stream: Stream) -> Answer:
    version = stream.tls_version()
    await stream.part()
    return Answer(up=True, detail=f"{stream.where} shakes hands ({version})")
