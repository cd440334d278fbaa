"""The imap check: the server's greeting, STARTTLS where that is wanted, and LOGOUT."""

from xenlb.health.transport.result import Answer
from xenlb.health.transport.stream import Stream, session
from xenlb.model.checks import Imap
from xenlb.model.target import Target
from xenlb.untrusted.budget import Budget

# Lines that may come before the answer to a command.
LINES = 20


async def probe(target: Target, budget: Budget) -> Answer:
    asks = target.check.asks
    assert isinstance(asks, Imap)
    return await session(target, budget, lambda stream: _talk(stream, asks), tls=asks.tls)


async def _talk(stream: Stream, asks: Imap) -> Answer:
    greeting = await stream.line("greeting")
    if not greeting.upper().startswith((b"* OK", b"* PREAUTH")):
        raise stream.unexpected('"* OK" as greeting', greeting)
    if asks.starttls is not None:
        await stream.send(b"a STARTTLS\r\n")
        await _answered(stream)
        stream.nothing_unread("STARTTLS")
        await stream.seal(asks.starttls)
    await stream.part(b"b LOGOUT\r\n")
    return Answer(up=True, detail=f"{stream.where} greets")


async def _answered(stream: Stream) -> None:
    for _ in range(LINES):
        line = await stream.line("answer to STARTTLS")
        if not line.startswith(b"* "):
            break
    if not line.upper().startswith(b"A OK"):
        raise stream.unexpected('"a OK" as answer to STARTTLS', line)
