"""The http and https checks: one request of HTTP/1.1, and what its answer must be like.

The body is read as far as a pattern is searched in it (SEARCHED bytes), else not at all beyond what
a polite end takes (stream.part). Redirections are not followed: the answer that redirects is the
server's own.
"""

import h11

from xenlb import __version__
from xenlb.health.answer import Answer
from xenlb.health.stream import NotAsked, Stream, converse
from xenlb.health.words import shown
from xenlb.model.checks import Http, among, codes_text
from xenlb.model.events import Target

SEARCHED = 64 * 1024
# Answers that only announce the answer (100, 103), at most.
ANNOUNCED = 5
# Bytes that are kept of what the server said, to be shown where it is no HTTP.
KEPT = 256


async def probe(target: Target) -> Answer:
    asks = target.check.asks
    assert isinstance(asks, Http)
    return await converse(target, lambda stream: _talk(stream, asks), tls=asks.tls)


async def _talk(stream: Stream, asks: Http) -> Answer:
    http = h11.Connection(h11.CLIENT)
    await stream.send(_request(http, asks, stream.target))
    response = await _response(http, stream)
    said = f"{response.status_code} {shown(response.reason)}".rstrip()
    if not among(response.status_code, asks.status):
        raise stream.unexpected(f"status {codes_text(asks.status)}", said, quote=False)
    if asks.header is not None:
        _check_header(stream, response, *asks.header)
    if asks.body and not stream.found(asks.body, text := await _body(http, stream)):
        raise stream.unexpected(
            f'"{shown(asks.body)}" in the body', text or "an empty one", quote=bool(text)
        )
    await stream.part()
    return Answer(up=True, detail=f"{stream.where} answers {said}")


def _request(http: h11.Connection, asks: Http, target: Target) -> bytes:
    try:
        request = h11.Request(
            method=asks.method,
            target=asks.path,
            headers=[
                ("Host", asks.host or _host(target, secure=asks.tls is not None)),
                ("User-Agent", f"xenlb/{__version__}"),
                ("Accept", "*/*"),
                ("Accept-Encoding", "identity"),
                ("Connection", "close"),
            ],
        )
        data = http.send(request)
        end = http.send(h11.EndOfMessage())
    except (h11.LocalProtocolError, UnicodeEncodeError) as error:
        raise NotAsked(f"its request is no HTTP: {error}") from error
    return (data or b"") + (end or b"")


def _host(target: Target, *, secure: bool) -> str:
    host = f"[{target.address}]" if target.address.version == 6 else str(target.address)
    return host if target.port == (443 if secure else 80) else f"{host}:{target.port}"


async def _response(http: h11.Connection, stream: Stream) -> h11.Response:
    announced = 0
    said = b""
    while True:
        try:
            event = http.next_event()
        except h11.RemoteProtocolError as error:
            raise stream.unexpected("an answer of HTTP/1", said) from error
        match event:
            case h11.Response() if event.http_version.startswith(b"1."):
                return event
            case h11.InformationalResponse() if announced < ANNOUNCED:
                announced += 1
            case _ if event is h11.NEED_DATA:
                piece = await stream.piece("answer")
                if len(said) < KEPT:
                    said += piece
                http.receive_data(piece)
            case _:
                raise stream.unexpected("an answer of HTTP/1", said)


def _check_header(stream: Stream, response: h11.Response, name: str, pattern: str) -> None:
    raw = name.lower().encode()
    values = [value.decode("latin-1") for key, value in response.headers if key == raw]
    if not any(stream.found(pattern, value) for value in values):
        got = f"{name}: {shown(values[0])}" if values else f"no header {name}"
        raise stream.unexpected(f'"{shown(pattern)}" in header {name}', got, quote=bool(values))


async def _body(http: h11.Connection, stream: Stream) -> str:
    """Its first bytes; half a body that ends too early is not what was asked for."""
    body = b""
    while len(body) < SEARCHED:
        try:
            event = http.next_event()
        except h11.RemoteProtocolError as error:
            raise stream.unexpected("a whole body", body) from error
        if isinstance(event, h11.Data):
            body += event.data
        elif event is h11.NEED_DATA:
            http.receive_data(await stream.piece("whole body"))
        else:
            break
    return body[:SEARCHED].decode("utf-8", "replace")
