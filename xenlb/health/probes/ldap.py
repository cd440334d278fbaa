"""The ldap check: an anonymous bind and an unbind (RFC 4511, in BER).

A server that refuses anonymous clients has answered and is up; one that reports that it is busy or
unavailable is down.
"""

from xenlb.health.transport.result import Answer
from xenlb.health.transport.stream import Stream, stream_probe
from xenlb.model.checks import Ldap
from xenlb.untrusted.printable import first_line

# LDAPMessage 1: BindRequest, version 3, no name, simple authentication without a password.
BIND = bytes.fromhex("30 0c 02 01 01 60 07 02 01 03 04 00 80 00")
UNBIND = bytes.fromhex("30 05 02 01 02 42 00")
LONGEST = 4096  # bytes of an answer

BIND_RESPONSE = 0x61
EXTENDED_RESPONSE = 0x78  # in LDAPMessage 0: the server's notice of disconnection
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


async def _check(stream: Stream, _asks: Ldap) -> Answer:
    await stream.send(BIND)
    message = await _read_message(stream)
    try:
        code, text = _parse_result(message)
    except _Malformed:
        raise stream.unexpected("the answer to a bind", message) from None
    if code not in UP:
        got = f'result {code} "{first_line(text)}"' if text else f"result {code}"
        raise stream.unexpected("the answer to a bind", got, quote=False)
    return await stream.passed(UP[code], goodbye=UNBIND)


async def _read_message(stream: Stream) -> bytes:
    """Return the content of the first LDAPMessage."""
    what = "answer to a bind"
    head = await stream.read_exactly(2, what)
    size = head[1]
    if size > 0x7F:  # the number of bytes that encode the length
        length = await stream.read_exactly(min(size & 0x7F, 4), what)
        head, size = head + length, int.from_bytes(length)
    if head[0] != 0x30 or size > LONGEST:
        raise stream.unexpected("the answer to a bind", head)
    return await stream.read_exactly(size, what)


def _parse_result(message: bytes) -> tuple[int, bytes]:
    """Return code and text of the result. Raises _Malformed."""
    number, _, following = _element(message)
    kind, result, _ = _element(following)
    tag, code, following = _element(result)
    if number != 0x02 or kind not in (BIND_RESPONSE, EXTENDED_RESPONSE):
        raise _Malformed
    if tag != 0x0A or not 1 <= len(code) <= 4:
        raise _Malformed
    _, _, following = _element(following)  # a name
    _, text, _ = _element(following)
    result_code = int.from_bytes(code, signed=True)
    if kind == EXTENDED_RESPONSE and result_code in UP:
        result_code = UNAVAILABLE  # the server hangs up, whatever the code
    return result_code, text


def _element(data: bytes) -> tuple[int, bytes, bytes]:
    """Return tag and content of the first element, and the bytes after it. Raises _Malformed."""
    if len(data) < 2:
        raise _Malformed
    tag, size, start = data[0], data[1], 2
    if size > 0x7F:
        start += size & 0x7F
        size = int.from_bytes(data[2:start])
    if start > 6 or len(data) < start + size:
        raise _Malformed
    return tag, data[start : start + size], data[start + size :]


probe = stream_probe(Ldap, _check)
