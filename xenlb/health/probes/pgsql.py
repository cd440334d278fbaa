"""The pgsql check: the start of a session, up to the server's request for a password.

FACTS

- The server does not log a client that hangs up when a password is requested, as that client may be
  about to prompt its user (PostgreSQL's src/backend/libpq/auth.c, recv_password_packet). Terminate
  would be an error (“expected password response, got message type 88”).
- Without a password, the login succeeds before the server checks its limits and the database (seen:
  a role's CONNECTION LIMIT): an error may follow until ReadyForQuery.
- For an unknown user or database, or no line in pg_hba.conf, the server answers and logs an error
  (FATAL) each time. An existing user and database avoid that.
- A server that starts, stops or recovers answers 57P03, a full one 53300.
"""

from xenlb.health.transport.result import Answer
from xenlb.health.transport.stream import Stream, Unexpected, stream_probe
from xenlb.model.checks import Pgsql
from xenlb.untrusted.printable import first_line

PROTOCOL = (196608).to_bytes(4)  # 3.0
TERMINATE = b"X\x00\x00\x00\x04"
AUTHENTICATED = bytes(4)  # AuthenticationOk
LONGEST = 4096  # bytes of a message
MESSAGES = 100  # until the server is ready, at most
# Classes of errors: permission to log in, no such database.
ANSWERS = (b"28", b"3D")


async def _check(stream: Stream, asks: Pgsql) -> Answer:
    parameters = {"user": asks.user, "database": asks.database, "application_name": "xenlb"}
    texts = [text for pair in parameters.items() for text in pair]
    body = PROTOCOL + b"".join(text.encode() + b"\0" for text in texts) + b"\0"
    await stream.send((len(body) + 4).to_bytes(4) + body)
    kind, message = await _read_message(stream, first=True)
    if kind == b"R" and message[:4] != AUTHENTICATED:
        return await stream.passed("asks for a password")
    for _ in range(MESSAGES):
        if kind == b"E":
            return await _error(stream, message)
        if kind == b"Z":
            return await stream.passed(f"lets {asks.user} in", goodbye=TERMINATE)
        kind, message = await _read_message(stream)
    raise stream.unexpected(f"at most {MESSAGES} messages", "more", quote=False)


async def _error(stream: Stream, message: bytes) -> Answer:
    fields = {field[:1]: field[1:] for field in message.split(b"\0") if field}
    code, text = fields.get(b"C", b""), first_line(fields.get(b"M", b""))
    if not code.startswith(ANSWERS):
        got = first_line(code) or "?"
        raise Unexpected(f'expected a session with {stream.where}, got {got} "{text}"')
    return await stream.passed(f'answers {first_line(code)} "{text}"')


async def _read_message(stream: Stream, *, first: bool = False) -> tuple[bytes, bytes]:
    """Return type and content of a message. The first must be about the login or an error."""
    what = "answer to the start of a session"
    head = await stream.read_exactly(5, what)
    size = int.from_bytes(head[1:]) - 4
    if (first and head[:1] not in (b"R", b"E")) or not 0 <= size <= LONGEST:
        raise stream.unexpected("the start of a session of PostgreSQL", head)
    return head[:1], await stream.read_exactly(size, what)


probe = stream_probe(Pgsql, _check)
