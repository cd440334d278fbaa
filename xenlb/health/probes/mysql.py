"""The mysql check: a login without a password.

With `user` in the configuration the login must succeed. Without it the check logs in as OWN_NAME,
and a refusal (ANSWERS) means that the server is up.

FACTS

- A connection that ends before the login is decided counts against its host. After
  max_connect_errors of them (100 by default) the server blocks all connections of that host (error
  1129). A refused login does not count (m_handshake in sql/hostname.cc), and one that succeeds sets
  the count back to 0.
- A refused login is a warning in the log of MariaDB (log_warnings above 1, the default is 2) and a
  note in that of MySQL (log_error_verbosity 3, the default is 2). A user without rights avoids it.
- An empty password is an empty answer to the challenge of every plugin: mysql_native_password,
  caching_sha2_password, dialog, and those the server switches to. So every challenge is answered
  until the server decides: an undecided session would count, too.
- The greeting may be an error: too many connections, host blocked or not allowed.
"""

from xenlb.health.transport.result import Answer
from xenlb.health.transport.stream import Stream, Unexpected, stream_probe
from xenlb.model.checks import Mysql
from xenlb.untrusted.printable import first_line

LONGEST = 4096  # bytes of a packet
PACKETS = 10  # until the login is decided, at most
OWN_NAME = "xenlb"

PROTOCOL_10 = 0x0A
OK, MORE, SWITCH, ERROR = 0x00, 0x01, 0xFE, 0xFF
# In a MORE of caching_sha2_password: the login has succeeded, OK follows. It needs no reply.
FAST_SUCCESS = 0x03
# Errors about permissions, which are independent of the server's condition.
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


class _ServerError(Unexpected):
    """An error packet of the server; the message names the step that failed."""

    def __init__(self, message: str, *, code: int, text: str) -> None:
        super().__init__(message)
        self.code = code
        self.text = text


async def _check(stream: Stream, asks: Mysql) -> Answer:
    try:
        return await _log_in(stream, asks.user or OWN_NAME)
    except _ServerError as error:
        if asks.user is not None or error.code not in ANSWERS:
            raise
        return await stream.passed(f'answers {error.code} "{error.text}"')


async def _log_in(stream: Stream, user: str) -> Answer:
    number, greeting = await _read_packet(stream, "greeting")
    if greeting[0] != PROTOCOL_10:
        raise stream.unexpected("a greeting of MySQL", greeting)
    _, _, fields = greeting[1:].partition(b"\0")
    await stream.send(_packet(number + 1, _login(user, _plugin(fields))))
    for _ in range(PACKETS):
        number, packet = await _read_packet(stream, "answer to the log-in")
        if packet[0] == OK:
            return await stream.passed(f"lets {user} in", goodbye=QUIT)
        if packet[0] not in (MORE, SWITCH):
            break
        if packet[:2] != bytes([MORE, FAST_SUCCESS]):
            await stream.send(_packet(number + 1, b""))
    raise stream.unexpected(f"{user} to be let in", packet)


def _plugin(fields: bytes) -> bytes:
    """Return the greeting's plugin, or the default for an unknown one.

    Its name follows a thread number, 8 bytes of challenge, filling, capabilities, character set,
    status, capabilities, a length, 10 unused bytes and at least 13 more of the challenge.
    """
    name = fields[4 + 8 + 1 + 2 + 1 + 2 + 2 + 1 + 10 + 13 :].partition(b"\0")[0]
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


def _packet(number: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "little") + bytes([number & 0xFF]) + payload


async def _read_packet(stream: Stream, what: str) -> tuple[int, bytes]:
    """Return number and payload (at least a byte) of a packet. Raises Unexpected, _ServerError."""
    head = await stream.read_exactly(4, what)
    size = int.from_bytes(head[:3], "little")
    if not 1 <= size <= LONGEST:
        raise stream.unexpected(f"a packet of MySQL as {what}", head)
    payload = await stream.read_exactly(size, what)
    if payload[0] == ERROR and size >= 3:
        code, message = int.from_bytes(payload[1:3], "little"), payload[3:]
        if message.startswith(b"#"):  # an SQL state
            message = message[6:]
        text = first_line(message)
        detail = f'expected the {what} from {stream.where}, got error {code} "{text}"'
        raise _ServerError(detail, code=code, text=text)
    return head[3], payload


probe = stream_probe(Mysql, _check)
