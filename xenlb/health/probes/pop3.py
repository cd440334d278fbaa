"""The pop3 check: the server's greeting, STLS where that is wanted, and QUIT."""

from xenlb.health.transport.result import Answer
from xenlb.health.transport.stream import Stream, session
from xenlb.model.checks import Pop3
from xenlb.model.target import Target
from xenlb.untrusted.budget import Budget


async def probe(target: Target, budget: Budget) -> Answer:
    asks = target.check.asks
    assert isinstance(asks, Pop3)
    return await session(target, budget, lambda stream: _talk(stream, asks), tls=asks.tls)


async def _talk(stream: Stream, asks: Pop3) -> Answer:
    await _ok(stream, "greeting")
    if asks.starttls is not None:
        await stream.send(b"STLS\r\n")
        await _ok(stream, "answer to STLS")
        stream.nothing_unread("STLS")
        await stream.seal(asks.starttls)
    await stream.part(b"QUIT\r\n")
    return Answer(up=True, detail=f"{stream.where} greets")


async def _ok(stream: Stream, what: str) -> None:
    line = await stream.line(what)
    if not line.startswith(b"+OK"):
        raise stream.unexpected(f'"+OK" as {what}', line)
