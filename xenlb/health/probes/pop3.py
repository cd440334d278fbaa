"""The pop3 check: the server's greeting, STLS if configured, and QUIT."""

from xenlb.health.transport.result import Answer
from xenlb.health.transport.stream import Stream, stream_probe
from xenlb.model.checks import Pop3


async def _check(stream: Stream, asks: Pop3) -> Answer:
    await _read_ok(stream, "greeting")
    if asks.starttls is not None:
        await stream.send(b"STLS\r\n")
        await _read_ok(stream, "answer to STLS")
        await stream.start_tls(asks.starttls, after="STLS")
    return await stream.passed("greets", goodbye=b"QUIT\r\n")


async def _read_ok(stream: Stream, what: str) -> None:
    line = await stream.read_line(what)
    if not line.startswith(b"+OK"):
        raise stream.unexpected(f'"+OK" as {what}', line)


probe = stream_probe(Pop3, _check)
