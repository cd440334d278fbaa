"""Who is connected: the kernel's list of IPVS connections, /proc/net/ip_vs_conn.

The counters that tell how many are left are kernel.py's; this list tells an operator whose they
are. With many connections it is long, so no more than a part of it is read.
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
    """One line of the list; `state` is the kernel's word, ESTABLISHED for TCP that goes on."""

    protocol: str
    client: IPAddress
    server: ServerKey
    state: str


def parse(lines: Iterable[str]) -> Iterator[Connection]:
    """The connections of a list; what is not one (its heading) is passed over.

    `Pro FromIP FPrt ToIP TPrt DestIP DPrt State Expires PEName PEData`, addresses as eight
    hexadecimal digits, or as IPv6 is written. Source: ip_vs_conn_seq_show() of Linux 6.1.
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


def _written(server: ServerKey) -> str:
    """A server as a line has it."""
    address = server.address
    text = address.exploded if isinstance(address, IPv6Address) else f"{int(address):08X}"
    return f"{text} {server.port:04X} "


def _address(text: str) -> IPAddress:
    text = text.strip("[]")
    return IPv6Address(text) if ":" in text else IPv4Address(int(text, 16))


def holders(
    servers: Collection[ServerKey], *, established: bool, path: Path = PROC
) -> dict[IPAddress, int]:
    """The clients of these servers with how many connections each has, most first.

    `established`: only those count that are; without, all but UDP. Nothing where the list cannot
    be read. Blocks.
    """
    found: Counter[IPAddress] = Counter()
    needles = [_written(server) for server in servers]
    try:
        with path.open() as file:
            # Most lines are of others; to look at each of them closely would take the interpreter.
            lines = (line for line in islice(file, MOST) if any(each in line for each in needles))
            for each in parse(lines):
                counts = each.state == "ESTABLISHED" if established else each.protocol != "UDP"
                if counts and each.server in servers:
                    found[each.client] += 1
    except OSError:
        return {}
    return dict(found.most_common())
