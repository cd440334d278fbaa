"""The mysql check: the server's greeting, and a log-in without a password where a user is given.

FACTS

- Without a log-in the server counts a connection that failed (Aborted_connects), and after
  max_connect_errors of them in a row it would block the host that asks, for everything
  (“Host is blocked”). A log-in that succeeds sets that count back.
- An empty password is an empty answer to the challenge for mysql_native_password and for
  caching_sha2_password, and so it is when the server asks for another plugin than it greeted with.
- An error may be the greeting: too many connections, host blocked or not allowed.
"""

from xenlb.health.answer import Answer
from xenlb.health.stream import Stream, Unexpected, converse
from xenlb.health.words import shown
from xenlb.model.checks import Mysql
from xenlb.model.events import Target

LONGEST = 4096  # bytes of a packet
# Packets until the log-in has succeeded or not, at most.
PACKETS = 5

PROTOCOL_10 = 0x0A
OK, MORE, SWITCH, ERROR = 0x00, 0x01, 0xFE, 0xFF
# CLIENT_LONG_PASSWORD, CLIENT_PROTOCOL_41, CLIENT_SECURE_CONNECTION, CLIENT_PLUGIN_AUTH
CAPABILITIES = 0x1 | 0x200 | 0x8000 | 0x80000
UTF8 = 33
PLUGINS = (b"mysql_native_password", b"caching_sha2_password")
QUIT = b"\x01\x00\x00\x00\x01"


async def probe(target: Target) -> Answer:
    asks = target.check.asks
    assert isinstance(asks, Mysql)
    return await converse(target, lambda stream: _talk(stream, asks))


async def _talk(stream: Stream, asks: Mysql) -> Answer:
    number, greeting = await _packet(stream, "greeting")
    if greeting[0] != PROTOCOL_10:
        raise stream.unexpected("a greeting of MySQL", greeting)
    version, _, rest = greeting[1:].partition(b"\0")
    if asks.user is None:
        await stream.part()
        return Answer(up=True, detail=f"{stream.where} greets as {shown(version, 40)}")
    await stream.send(_framed(number + 1, _login(asks.user, _plugin(rest))))
    for _ in range(PACKETS):
        number, packet = await _packet(stream, "answer to the log-in")
        if packet[0] == OK:
            await stream.part(QUIT)
            return Answer(up=True, detail=f"{stream.where} lets {asks.user} in")
        if packet[0] == SWITCH:
            await stream.send(_framed(number + 1, b""))
        elif packet[0] != MORE:
            break
    raise stream.unexpected(f"{asks.user} to be let in", packet)


def _plugin(rest: bytes) -> bytes:
    """The plugin that the greeting names after its 8 bytes of challenge, 1 of filling, 2 of
    capabilities, 1 of character set, 2 of status, 2 of capabilities, 1 of a length, 10 of nothing
    and at least 13 more of the challenge; 4 of thread number go before."""
    name = rest[4 + 8 + 1 + 2 + 1 + 2 + 2 + 1 + 10 + 13 :].partition(b"\0")[0]
    return name if name in PLUGINS else PLUGINS[0]


def _login(user: str, plugin: bytes) -> bytes:
    return b"".join(
        (
            CAPABILITIES.to_bytes(4, "little"),
            LONGEST.to_bytes(4, "little"),
            bytes([UTF8]) + bytes(23),
            user.encode() + b"\0",
            b"\0",  # the answer's length
            plugin + b"\0",
        )
    )


def _framed(number: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "little") + bytes([number & 0xFF]) + payload


async def _packet(stream: Stream, what: str) -> tuple[int, bytes]:
    """Its number and its content, a byte at least. Raises Unexpected, also for an error's."""
    head = await stream.exactly(4, what)
    size = int.from_bytes(head[:3], "little")
    if not 1 <= size <= LONGEST:
        raise stream.unexpected(f"a packet of MySQL as {what}", head)
    payload = await stream.exactly(size, what)
    if payload[0] == ERROR and size >= 3:
        code, words = int.from_bytes(payload[1:3], "little"), payload[3:]
        if words.startswith(b"#"):
            words = words[6:]
        raise Unexpected(
            f'expected the {what} from {stream.where}, got error {code} "{shown(words)}"'
        )
    return head[3], payload
