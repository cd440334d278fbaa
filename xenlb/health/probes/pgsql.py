"""The pgsql check: the start of a session, as far as the server says how to log in.

FACTS

- A client that hangs up when it is asked for a password is one that goes to ask its user; the
  server logs nothing of it (PostgreSQL's src/backend/libpq/auth.c, recv_password_packet), where
  Terminate would be an error (“expected password response, got message type 88”).
- Who needs no password is let in before the server knows whether there is room for him and the
  database is there (seen: a role's CONNECTION LIMIT): an error may follow until ReadyForQuery.
- No such user or database, no line in pg_hba.conf: it answers, and logs it (FATAL) each time; a
  user and database that are there spare it that.
- A server that starts, stops or recovers says 57P03, one that is full 53300.
"""

from xenlb.health.transport.result import Answer
from xenlb.health.transport.stream import Stream, Unexpected, session
from xenlb.model.checks import Pgsql
from xenlb.model.target import Target
from xenlb.untrusted.budget import Budget
from xenlb.untrusted.printable import first_line

PROTOCOL = (196608).to_bytes(4)  # 3.0
TERMINATE = b"X\x00\x00\x00\x04"
AUTHENTICATED = bytes(4)  # AuthenticationOk
LONGEST = 4096  # bytes of a message
MESSAGES = 100  # until the server is ready, at most
# The class of an error that says who may log in, and no such database.
ANSWERS = (b"28", b"3D")


async def probe(target: Target, budget: Budget) -> Answer:
    asks = target.check.asks
    assert isinstance(asks, Pgsql)
    return await session(target, budget, lambda stream: _talk(stream, asks))


async def _talk(stream: Stream, asks: Pgsql) -> Answer:
    names = {"user": asks.user, "database": asks.database, "application_name": "xenlb"}
    words = [word for pair in names.items() for word in pair]
    body = PROTOCOL + b"".join(word.encode() + b"\0" for word in words) + b"\0"
    await stream.send((len(body) + 4).to_bytes(4) + body)
    kind, message = await _message(stream, first=True)
    if kind == b"R" and message[:4] != AUTHENTICATED:
        await stream.part()
        return Answer(up=True, detail=f"{stream.where} asks for a password")
    for _ in range(MESSAGES):
        if kind == b"E":
            return await _error(stream, message)
        if kind == b"Z":
            await stream.part(TERMINATE)
            return Answer(up=True, detail=f"{stream.where} lets {asks.user} in")
        kind, message = await _message(stream)
    raise stream.unexpected(f"at most {MESSAGES} messages", "more", quote=False)


async def _error(stream: Stream, message: bytes) -> Answer:
    fields = {part[:1]: part[1:] for part in message.split(b"\0") if part}
    code, said = fields.get(b"C", b""), first_line(fields.get(b"M", b""))
    if not code.startswith(ANSWERS):
        got = first_line(code) or "?"
        raise Unexpected(f'expected a session with {stream.where}, got {got} "{said}"')
    await stream.part()
    return Answer(up=True, detail=f'{stream.where} answers {first_line(code)} "{said}"')


async def _message(stream: Stream, *, first: bool = False) -> tuple[bytes, bytes]:
    """Its kind and its content. The first is about the log-in, or an error."""
    what = "answer to the start of a session"
    head = await stream.exactly(5, what)
    size = int.from_bytes(head[1:]) - 4
    if (first and head[:1] not in (b"R", b"E")) or not 0 <= size <= LONGEST:
        raise stream.unexpected("the start of a session of PostgreSQL", head)
    return head[:1], await stream.exactly(size, what)
