"""UDP sockets that are connected to the probed server.

FACTS

- A connected socket receives only what the server sends from that port, and errors by ICMP: a port
  without a listener is ECONNREFUSED at the next receive, at once.
- A host that does not answer ARP is EHOSTUNREACH at the next receive, about 3 s after the datagram
  (three requests, a second apart): with a timeout of 3 s or less that looks like silence.
- Each probe has a socket, and so a port, of its own: late answers to an earlier probe are dropped.
"""

import asyncio
import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from xenlb.health.transport.sockets import NetworkError, network_errors, open_socket
from xenlb.health.transport.udp_refusals import Refusals
from xenlb.model.target import Target
from xenlb.untrusted.budget import Budget

LARGEST = 65535

# Shared by all probes: a refusal to one delays the refusals to others.
REFUSALS = Refusals()


@contextmanager
def connected_socket(target: Target) -> Iterator[socket.socket]:
    """Open a connected UDP socket. Raises OSError, such as for no route or too many open files."""
    with open_socket(target.address, socket.SOCK_DGRAM) as udp:
        udp.connect((str(target.address), target.port))
        yield udp


async def receive_datagram(
    udp: socket.socket, target: Target, budget: Budget, *, sent: float
) -> bytes:
    """Return the next datagram. `sent`: when the query was sent, on the loop's clock.

    Raises NetworkError for ICMP errors, BudgetSpent.
    """
    # sock_recv does not yield to the loop while datagrams are there: a server could flood it.
    await asyncio.sleep(0)
    loop = asyncio.get_running_loop()
    try:
        with network_errors():
            data = await loop.sock_recv(udp, LARGEST)
    except NetworkError as error:
        if error.errno == errno.ECONNREFUSED:
            REFUSALS.refused(target.address, target.port, sent=sent, now=loop.time())
        raise
    REFUSALS.answered(target.address, target.port)
    budget.take(size=len(data))
    return data
