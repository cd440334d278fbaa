"""The imap check: the server's greeting, STARTTLS if configured, and LOGOUT."""

from xenlb.health.transport.result import Answer
from xenlb.health.transport.stream import Stream, stream_probe
from xenlb.model.checks import Imap

LINES = 20  # before the reply to a command, at most


async def _check(stream: Stream, asks: Imap) -> Answer:
    greeting = await stream.read_line("greeting")
    if not greeting.upper().startswith((b"* OK", b"* PREAUTH")):
        raise stream.unexpected('"* OK" as greeting', greeting)
    if asks.starttls is not None:
        await stream.send(b"a STARTTLS\r\n")
        for _ in range(LINES):
            line = await stream.read_line("answer to STARTTLS")
            if not line.startswith(b"* "):
                break
        if not line.upper().startswith(b"A OK"):
            raise stream.unexpected('"a OK" as answer to STARTTLS', line)
        await stream.start_tls(asks.starttls, after="STARTTLS")
    return await stream.passed("greets", goodbye=b"b LOGOUT\r\n")


probe = stream_probe(Imap, _check)
