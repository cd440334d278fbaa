"""The mysql check: a log-in without a password.

With `user` in the configuration the log-in must succeed. Without it the check logs in as OWN_NAME,
and a refusal of that log-in (ANSWERS) is an answer of a server that serves.

FACTS

- A connection that ends before the log-in is decided counts against its host. After
  max_connect_errors of them (100 by default) the server blocks that host for everything (error
  1129). A refused log-in does not count (m_handshake in sql/hostname.cc), and one that succeeds
  sets the count back to 0.
- A refused log-in is a warning in the log of MariaDB (log_warnings above 1, the default is 2) and a
  note in that of MySQL (log_error_verbosity 3, the default is 2). A user without rights spares it.
- An empty password is an empty answer to the challenge of every plugin: mysql_native_password,
  caching_sha2_password, dialog, and whichever the server switches to. So every challenge is
  answered until the server decides: a session that is left undecided would count, too.
- An error may be the greeting: too many connections, host blocked or not allowed.
"""

from xenlb.health.transport.result import Answer
from xenlb.health.transport.stream import Stream, Unexpected, session
from xenlb.model.checks import Mysql
from xenlb.model.target import Target
from xenlb.untrusted.budget import Budget
from xenlb.untrusted.printable import first_line

LONGEST = 4096  # bytes of a packet
# Packets until the log-in has succeeded or not, at most.
PACKETS = 10
OWN_NAME = "xenlb"

PROTOCOL_10 = 0x0A
OK, MORE, SWITCH, ERROR = 0x00, 0x01, 0xFE, 0xFF
# In a MORE of caching_sha2_password: the log-in has succeeded, OK follows. It wants no reply.
FAST_SUCCESS = 0x03
# Errors that say who may log in, from where and how, and nothing of the server's condition.
ANSWERS = {
    1044: "ER_DBACCESS_DENIED_ERROR",
    1045: "ER_ACCESS_DENIED_ERROR",
    1130: "ER_HOST_NOT_PRIVILEGED",
    1251: "ER_NOT_SUPPORTED_AUTH_MODE",
    1698: "ER_ACCESS_DENIED_NO_PASSWORD_ERROR",
    1862: "ER_MUST_CHANGE_PASSWORD_LOGIN",
    3118: "ER_ACCOUNT_HAS_BEEN_LOCKED",
    3159: "ER_SECURE_TRANSPORT_REQUIRED",
    4151: "ER_ACCOUNT_HAS_BEEN_LOCKED, MariaDB's",
}
# CLIENT_LONG_PASSWORD, CLIENT_PROTOCOL_41, CLIENT_SECURE_CONNECTION, CLIENT_PLUGIN_AUTH
CAPABILITIES = 0x1 | 0x200 | 0x8000 | 0x80000
UTF8 = 33
PLUGINS = (b"mysql_native_password", b"caching_sha2_password")
QUIT = b"\x01\x00\x00\x00\x01"


async def probe(target: Target, budget: Budget) -> Answer:
    asks = target.check.asks
    assert isinstance(asks, Mysql)
    return await session(target, budget, lambda stream: _talk(stream, asks))


class _Error(Unexpected):
    """An error packet of the server; the message says where it came."""

    def __init__(self, message: str, *, code: int, words: str) -> None:
        super().__init__(message)
        self.code = code
        self.words = words


async def _talk(stream: Stream, asks: Mysql) -> Answer:
    try:
        return await _log_in(stream, asks.user or OWN_NAME)
    except _Error as error:
        if asks.user is not None or error.code not in ANSWERS:
            raise
        await stream.part()
        return Answer(up=True, detail=f'{stream.where} answers {error.code} "{error.words}"')


async def _log_in(stream: Stream, user: str) -> Answer:
    number, greeting = await _packet(stream, "greeting")
    if greeting[0] != PROTOCOL_10:
        raise stream.unexpected("a greeting of MySQL", greeting)
    _, _, rest = greeting[1:].partition(b"\0")
    await stream.send(_framed(number + 1, _login(user, _plugin(rest))))
    for _ in range(PACKETS):
        number, packet = await _packet(stream, "answer to the log-in")
        if packet[0] == OK:
            await stream.part(QUIT)
            return Answer(up=True, detail=f"{stream.where} lets {user} in")
        if packet[0] not in (MORE, SWITCH):
            break
        if packet[:2] != bytes([MORE, FAST_SUCCESS]):
            await stream.send(_framed(number + 1, b""))
    raise stream.unexpected(f"{user} to be let in", packet)


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
    """Its number and its content, a byte at least. Raises Unexpected, _Error for an error's."""
    head = await stream.exactly(4, what)
    size = int.from_bytes(head[:3], "little")
    if not 1 <= size <= LONGEST:
        raise stream.unexpected(f"a packet of MySQL as {what}", head)
    payload = await stream.exactly(size, what)
    if payload[0] == ERROR and size >= 3:
        code, words = int.from_bytes(payload[1:3], "little"), payload[3:]
        if words.startswith(b"#"):
            words = words[6:]
        said = first_line(words)
        raise _Error(
            f'expected the {what} from {stream.where}, got error {code} "{said}"',
            code=code,
            words=said,
        )
    return head[3], payload
