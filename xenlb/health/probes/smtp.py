"""The smtp check: a session with a mail server without a mail.

FACTS

- The probe waits for the banner before it sends anything: Postfix's postscreen and Exim treat a
  client that sends first as a spammer's. It sends EHLO, then HELO if EHLO is unknown (RFC 5321,
  3.2), and QUIT, whose reply it waits for. Postfix logs connect and disconnect of such a session,
  Exim nothing.
- The client's name is this host's as uname(2) returns it: a lookup of the full name would query a
  name server, which may hang.
"""

import re
import socket

from xenlb.health.transport.result import Answer
from xenlb.health.transport.stream import Stream, Unexpected, stream_probe
from xenlb.model.checks import Codes, Smtp, among, codes_text

LINES = 100  # of a reply, at most
QUIT = b"QUIT\r\n"
_REPLY = re.compile(rb"(\d{3})([ -]?)(.*)", re.ASCII | re.DOTALL)


class _UnexpectedCode(Unexpected):
    """A reply of SMTP with an unexpected code: QUIT may still be sent."""


async def _check(stream: Stream, asks: Smtp) -> Answer:
    try:
        await _read_reply(stream, "banner", ((220, 220),))
        answered = await _greet(stream, asks)
        if asks.starttls is not None:
            await stream.send(b"STARTTLS\r\n")
            await _read_reply(stream, "answer to STARTTLS", ((220, 220),))
            await stream.start_tls(asks.starttls, after="STARTTLS")
            answered = await _greet(stream, asks)
    except _UnexpectedCode:
        await stream.hang_up(QUIT)
        raise
    return await stream.passed(f"answers {answered}", goodbye=QUIT)


async def _greet(stream: Stream, asks: Smtp) -> str:
    """Send EHLO or HELO; return the command and the code of the reply."""
    name = (asks.hello or socket.gethostname()).encode("ascii", "replace")
    for command in ("EHLO", "HELO"):
        await stream.send(f"{command} ".encode() + name + b"\r\n")
        what = f"answer to {command}"
        code, first = await _read_reply(stream, what)
        if among(code, asks.expect):
            return f"{command} with {code}"
        if not 500 <= code <= 599:
            break
    raise _unexpected_code(stream, asks.expect, what, first)


async def _read_reply(stream: Stream, what: str, expect: Codes | None = None) -> tuple[int, bytes]:
    """Read a reply; return its code and first line.

    Raises Unexpected, also for a code that is not in `expect`.
    """
    first = b""
    for _ in range(LINES):
        line = await stream.read_line(what)
        first = first or line
        reply = _REPLY.fullmatch(line)
        if reply is None or reply[1] != first[:3]:
            raise stream.unexpected(f"a reply of SMTP as {what}", line)
        if reply[2] != b"-":
            code = int(reply[1])
            if expect is not None and not among(code, expect):
                raise _unexpected_code(stream, expect, what, first)
            return code, first
    raise stream.unexpected(f"at most {LINES} lines as {what}", "more", quote=False)


def _unexpected_code(stream: Stream, expect: Codes, what: str, first: bytes) -> _UnexpectedCode:
    return _UnexpectedCode(str(stream.unexpected(f"{codes_text(expect)} as {what}", first)))


probe = stream_probe(Smtp, _check)
