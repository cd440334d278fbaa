"""The ldap check: an anonymous bind and an unbind (RFC 4511, in BER).

A server that does not let in nameless clients answers, too, and is up; one that is busy or not
available says so and is not.
"""

from xenlb.health.transport.result import Answer
from xenlb.health.transport.stream import Stream, session
from xenlb.model.checks import Ldap
from xenlb.model.target import Target
from xenlb.untrusted.budget import Budget
from xenlb.untrusted.printable import first_line

# LDAPMessage, number 1: BindRequest, version 3, no name, simple authentication without a password.
BIND = bytes.fromhex("30 0c 02 01 01 60 07 02 01 03 04 00 80 00")
UNBIND = bytes.fromhex("30 05 02 01 02 42 00")
LONGEST = 4096  # bytes of an answer

BIND_RESPONSE = 0x61
EXTENDED_RESPONSE = 0x78  # as number 0: the server's notice that it hangs up
UNAVAILABLE = 52
UP = {
    0: "lets in",
    8: "wants stronger authentication",
    13: "wants encryption",
    48: "wants authentication",
    53: "wants a name",
}


class _Malformed(Exception):
    pass


async def probe(target: Target, budget: Budget) -> Answer:
    asks = target.check.asks
    assert isinstance(asks, Ldap)
    return await session(target, budget, _talk, tls=asks.tls)


async def _talk(stream: Stream) -> Answer:
    await stream.send(BIND)
    message = await _message(stream)
    try:
        code, words = _result(message)
    except _Malformed:
        raise stream.unexpected("the answer to a bind", message) from None
    if code not in UP:
        got = f'result {code} "{first_line(words)}"' if words else f"result {code}"
        raise stream.unexpected("the answer to a bind", got, quote=False)
    await stream.part(UNBIND)
    return Answer(up=True, detail=f"{stream.where} {UP[code]}")


async def _message(stream: Stream) -> bytes:
    """The content of the first LDAPMessage."""
    what = "answer to a bind"
    head = await stream.exactly(2, what)
    size = head[1]
    if size > 0x7F:  # so many bytes of length follow
        more = await stream.exactly(min(size & 0x7F, 4), what)
        head, size = head + more, int.from_bytes(more)
    if head[0] != 0x30 or size > LONGEST:
        raise stream.unexpected("the answer to a bind", head)
    return await stream.exactly(size, what)


def _result(message: bytes) -> tuple[int, bytes]:
    """The result's code and words."""
    number, _, rest = _element(message)
    kind, result, _ = _element(rest)
    tag, code, rest = _element(result)
    if number != 0x02 or kind not in (BIND_RESPONSE, EXTENDED_RESPONSE):
        raise _Malformed
    if tag != 0x0A or not 1 <= len(code) <= 4:
        raise _Malformed
    _, _, rest = _element(rest)  # a name
    _, words, _ = _element(rest)
    result_code = int.from_bytes(code, signed=True)
    if kind == EXTENDED_RESPONSE and result_code in UP:
        result_code = UNAVAILABLE  # it hangs up, whatever it calls that
    return result_code, words


def _element(data: bytes) -> tuple[int, bytes, bytes]:
    """Tag and content of the first element, and what follows it."""
    if len(data) < 2:
        raise _Malformed
    tag, size, start = data[0], data[1], 2
    if size > 0x7F:
        start += size & 0x7F
        size = int.from_bytes(data[2:start])
    if start > 6 or len(data) < start + size:
        raise _Malformed
    return tag, data[start : start + size], data[start + size :]
