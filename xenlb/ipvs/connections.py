"""The kernel's list of IPVS connections, /proc/net/ip_vs_conn: the clients of a server.

With many connections the list is long, so only a part of it is read.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from itertools import islice
from pathlib import Path

from xenlb.ipvs.table import IPAddress, ServerKey

PROC = Path("/proc/net/ip_vs_conn")
MOST = 200_000  # lines


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """One line of the list; `state` is the kernel's, ESTABLISHED for a live TCP connection."""

    protocol: str
    client: IPAddress
    server: ServerKey
    state: str


def parse(lines: Iterable[str]) -> Iterator[Connection]:
    """The connections of a list; other lines, such as the heading, are ignored.

    A line is `Pro FromIP FPrt ToIP TPrt DestIP DPrt State Expires PEName PEData`. IPv4
    addresses are eight hexadecimal digits. Source: ip_vs_conn_seq_show() of Linux 6.1.
    """
    for line in lines:
        words = line.split()
        if len(words) < 9 or words[0] == "Pro":
            continue
        try:
            server = ServerKey(address=_address(words[5]), port=int(words[6], 16))
            client = _address(words[1])
        except ValueError:
            continue
        yield Connection(protocol=words[0], client=client, server=server, state=words[7])


def _in_list(server: ServerKey) -> str:
    """A server in the notation of the list."""
    address = server.address
    text = address.exploded if isinstance(address, IPv6Address) else f"{int(address):08X}"
    return f"{text} {server.port:04X} "


def _address(text: str) -> IPAddress:
    text = text.strip("[]")
    return IPv6Address(text) if ":" in text else IPv4Address(int(text, 16))


def client_connections(
    servers: Collection[ServerKey], *, established: bool, path: Path = PROC
) -> dict[IPAddress, int]:
    """The clients of these servers and the number of their connections, most first.

    `established`: count only established connections; otherwise all but UDP. Empty if the list
    cannot be read. Blocks.
    """
    clients: Counter[IPAddress] = Counter()
    texts = [_in_list(server) for server in servers]
    try:
        with path.open() as file:
            # Most lines are of other servers; parsing them all would block the interpreter.
            lines = (line for line in islice(file, MOST) if any(text in line for text in texts))
            for one in parse(lines):
                counts = one.state == "ESTABLISHED" if established else one.protocol != "UDP"
                if counts and one.server in servers:
                    clients[one.client] += 1
    except OSError:
        return {}
    return dict(clients.most_common())
