"""The redis check: PING.

A server that requires a password (NOAUTH) or a permission (NOPERM) has answered and is up. A server
that loads its data, has lost its master or is full answers with another error and is down. It does
not log the check.
"""

from xenlb.health.transport.result import Answer
from xenlb.health.transport.stream import Stream, stream_probe
from xenlb.model.checks import Redis

UP = (b"+PONG", b"-NOAUTH", b"-NOPERM")


async def _check(stream: Stream, _asks: Redis) -> Answer:
    await stream.send(b"*1\r\n$4\r\nPING\r\n")
    line = await stream.read_line("answer to PING")
    code = line.split(b" ")[0]
    if code not in UP:
        raise stream.unexpected("PONG as answer to PING", line)
    return await stream.passed(f"answers PING with {code[1:].decode()}")


probe = stream_probe(Redis, _check)
