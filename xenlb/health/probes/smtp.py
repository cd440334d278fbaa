"""The smtp check: a whole session with a mail server that asks for nothing.

FACTS

- It waits for the banner before it says anything: Postfix's postscreen and Exim treat a client that
  talks first as a spammer's. EHLO, then HELO where EHLO is not known (RFC 5321, 3.2), and QUIT,
  whose answer it waits for. Postfix logs connect and disconnect of such a session, Exim nothing.
- The name that is said is this host's as uname(2) has it: to ask for a full one would ask a name
  server, which may hang.
"""

import re
import socket

from xenlb.health.transport.result import Answer
from xenlb.health.transport.stream import Stream, Unexpected, session
from xenlb.model.checks import Codes, Smtp, among, codes_text
from xenlb.model.target import Target
from xenlb.untrusted.budget import Budget

# Lines of a reply, at most.
LINES = 100
_REPLY = re.compile(rb"(\d{3})([ -]?)(.*)", re.ASCII | re.DOTALL)


class _Refused(Unexpected):
    """A reply of SMTP, though not the wanted one: goodbye may still be said."""


async def probe(target: Target, budget: Budget) -> Answer:
    asks = target.check.asks
    assert isinstance(asks, Smtp)

    async def talk(stream: Stream) -> Answer:
        try:
            said = await _talk(stream, asks)
        except _Refused:
            await stream.part(b"QUIT\r\n")
            raise
        await stream.part(b"QUIT\r\n")
        return Answer(up=True, detail=f"{stream.where} answers {said}")

    return await session(target, budget, talk, tls=asks.tls)


async def _talk(stream: Stream, asks: Smtp) -> str:
    """What it answers to EHLO or HELO: the command and the code."""
    await _reply(stream, "banner", ((220, 220),))
    said = await _hello(stream, asks)
    if asks.starttls is None:
        return said
    await stream.send(b"STARTTLS\r\n")
    await _reply(stream, "answer to STARTTLS", ((220, 220),))
    stream.nothing_unread("STARTTLS")
    await stream.seal(asks.starttls)
    return await _hello(stream, asks)


async def _hello(stream: Stream, asks: Smtp) -> str:
    name = (asks.hello or socket.gethostname()).encode("ascii", "replace")
    await stream.send(b"EHLO " + name + b"\r\n")
    what = "answer to EHLO"
    code, first = await _reply(stream, what)
    if 500 <= code <= 599 and not among(code, asks.expect):
        await stream.send(b"HELO " + name + b"\r\n")
        what = "answer to HELO"
        code, first = await _reply(stream, what)
    if not among(code, asks.expect):
        raise _refused(stream, asks.expect, what, first)
    return f"{what.removeprefix('answer to ')} with {code}"


async def _reply(stream: Stream, what: str, expect: Codes | None = None) -> tuple[int, bytes]:
    """Its code and its first line. Raises Unexpected where `expect` is set and has not the code."""
    first = b""
    for _ in range(LINES):
        line = await stream.line(what)
        first = first or line
        reply = _REPLY.fullmatch(line)
        if reply is None or reply[1] != first[:3]:
            raise stream.unexpected(f"a reply of SMTP as {what}", line)
        if reply[2] != b"-":
            code = int(reply[1])
            if expect is not None and not among(code, expect):
                raise _refused(stream, expect, what, first)
            return code, first
    raise stream.unexpected(f"at most {LINES} lines as {what}", "more", quote=False)


def _refused(stream: Stream, expect: Codes, what: str, first: bytes) -> _Refused:
    return _Refused(str(stream.unexpected(f"{codes_text(expect)} as {what}", first)))
