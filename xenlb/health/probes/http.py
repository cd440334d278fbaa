"""The http and https checks: one request of HTTP/1.1 and the properties of its answer.

If the check has no conditions on headers and body, these are not read. Of the body SEARCHED bytes
are read. Parsing is lenient, as in browsers and curl: a malformed header is ignored, and a body
that is cut short is searched as far as it came. Redirections are not followed: the answer that
redirects is the server's own.
"""

import re

from xenlb import __version__
from xenlb.health.transport.result import Answer
from xenlb.health.transport.stream import ProbeImpossible, Stream, Unexpected, stream_probe
from xenlb.model.checks import Http, among, codes_text
from xenlb.model.target import Target
from xenlb.untrusted.printable import first_line

SEARCHED = 64 * 1024
INTERIM = 5  # answers before the final one (100, 103), at most
SWITCHES = 101  # the only one below 200 that is final
NO_BODY = frozenset({204, 304})
LONGEST_HEADER = 64 * 1024  # bytes

_STATUS = re.compile(rb"HTTP/1\.[0-9] +([0-9]{3})(?: (.*))?", re.DOTALL)
_SIZE = re.compile(rb"[ \t]*([0-9A-Fa-f]{1,8})[ \t]*(?:;.*)?", re.DOTALL)

# Names in lower case.
Headers = list[tuple[str, str]]


async def _check(stream: Stream, asks: Http) -> Answer:
    await stream.send(_request(asks, stream.target))
    status, reason = await _read_status(stream)
    text = f"{status} {first_line(reason)}".rstrip()
    if not among(status, asks.status):
        raise stream.unexpected(f"status {codes_text(asks.status)}", text, quote=False)
    if asks.header is not None or asks.body:
        headers = await _read_headers(stream)
        if asks.header is not None:
            await _check_header(stream, headers, *asks.header)
        if asks.body:
            await _check_body(stream, asks, status, headers)
    return await stream.passed(f"answers {text}")


def _request(asks: Http, target: Target) -> bytes:
    host = asks.host or _host(target, secure=asks.tls is not None)
    for text in (asks.method, asks.path, host):
        if not re.fullmatch("[!-~]+", text):
            raise ProbeImpossible(f"its request is no HTTP: {first_line(ascii(text))}")
    lines = (
        f"{asks.method} {asks.path} HTTP/1.1",
        f"Host: {host}",
        f"User-Agent: xenlb/{__version__}",
        "Accept: */*",
        "Accept-Encoding: identity",
        "Connection: close",
        "",
        "",
    )
    return "\r\n".join(lines).encode()


def _host(target: Target, *, secure: bool) -> str:
    host = f"[{target.address}]" if target.address.version == 6 else str(target.address)
    return host if target.port == (443 if secure else 80) else f"{host}:{target.port}"


async def _read_status(stream: Stream) -> tuple[int, bytes]:
    """Return the code and the reason phrase of the final answer."""
    line = b""
    for _ in range(INTERIM + 1):
        line = await stream.read_line("answer")
        match = _STATUS.fullmatch(line)
        if match is None:
            break
        status = int(match[1])
        if status >= 200 or status == SWITCHES:
            return status, match[2] or b""
        await _read_headers(stream)
    raise stream.unexpected("an answer of HTTP/1", line)


async def _read_headers(stream: Stream) -> Headers:
    """Return the headers, also if the connection ends before the empty line."""
    headers: Headers = []
    while True:
        try:
            line = await stream.read_line("headers", longest=LONGEST_HEADER)
        except Unexpected:
            if stream.ended:
                return headers
            raise
        if not line:
            return headers
        text = line.decode("latin-1")
        if text[0] in " \t" and headers:  # a continuation of the header before
            name, value = headers.pop()
            headers.append((name, f"{value} {text.strip()}"))
        else:
            name, _, value = text.partition(":")
            headers.append((name.strip().lower(), value.strip()))


async def _check_header(stream: Stream, headers: Headers, name: str, pattern: str) -> None:
    values = _values(headers, name)
    if not await stream.matches(pattern, *values):
        got = f"{name}: {first_line(values[0])}" if values else f"no header {name}"
        raise stream.unexpected(
            f'"{first_line(pattern)}" in header {name}', got, quote=bool(values)
        )


def _values(headers: Headers, name: str) -> list[str]:
    return [value for key, value in headers if key == name.lower()]


async def _check_body(stream: Stream, asks: Http, status: int, headers: Headers) -> None:
    body = bytearray()
    incomplete: Unexpected | None = None
    if asks.method != "HEAD" and status not in NO_BODY:
        try:
            await _read_body(stream, headers, body)
        except Unexpected as error:
            incomplete = error
    text = body.decode("utf-8", "replace")
    if await stream.matches(asks.body, text):
        return
    got = text or "an empty one"
    raise incomplete or stream.unexpected(
        f'"{first_line(asks.body)}" in the body', got, quote=bool(text)
    )


async def _read_body(stream: Stream, headers: Headers, body: bytearray) -> None:
    """Read the first SEARCHED bytes into `body`. Raises Unexpected if it is incomplete."""
    codings = ",".join(_values(headers, "Transfer-Encoding")).lower()
    lengths = [v for v in _values(headers, "Content-Length") if re.fullmatch("[0-9]{1,15}", v)]
    if "chunked" in codings:
        await _read_chunks(stream, body)
    elif lengths:
        await _read_part(stream, body, int(lengths[0]))
    else:
        while len(body) < SEARCHED and (piece := await stream.read_some("whole body")):
            body += piece[: SEARCHED - len(body)]


async def _read_chunks(stream: Stream, body: bytearray) -> None:
    while True:
        line = await stream.read_line("whole body")
        match = _SIZE.fullmatch(line)
        if match is None:
            raise stream.unexpected("the size of a chunk of the body", line)
        size = int(match[1], 16)
        if size == 0:
            return
        await _read_part(stream, body, size)
        if len(body) == SEARCHED:
            return
        await stream.read_line("whole body")


async def _read_part(stream: Stream, body: bytearray, size: int) -> None:
    """Append `size` bytes to `body`, up to SEARCHED in all."""
    wanted = min(len(body) + size, SEARCHED)
    while len(body) < wanted:
        piece = await stream.read_some("whole body", most=wanted - len(body))
        if not piece:
            raise stream.unexpected("a whole body", bytes(body))
        body += piece


probe = stream_probe(Http, _check)
