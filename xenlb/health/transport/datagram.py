"""A UDP socket that is connected to the server which is asked.

FACTS

- A connected socket is given only what the server sends from that port, and the kernel tells it of
  ICMP errors: a port that nobody listens on is ECONNREFUSED at the next receive, at once.
- A host that does not answer ARP is EHOSTUNREACH at the next receive, about 3 s after the datagram
  (three requests, a second apart): with a timeout of 3 s and less it is silence.
- Each probe has a socket, and so a port, of its own: a late answer to the one before goes nowhere.
"""

import asyncio
import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from xenlb.health.transport.sockets import NetworkError, later, unconnected
from xenlb.health.transport.udp_refusals import Refusals
from xenlb.model.target import Target
from xenlb.untrusted.budget import Budget

LARGEST = 65535

# Of all probes: a refusal to one keeps back those to others.
REFUSALS = Refusals()


@contextmanager
def connected(target: Target) -> Iterator[socket.socket]:
    """Raises OSError where there is no route, or no file left for a socket."""
    with unconnected(target.address, socket.SOCK_DGRAM) as asking:
        asking.connect((str(target.address), target.port))
        yield asking


async def received(asking: socket.socket, target: Target, budget: Budget, *, sent: float) -> bytes:
    """The next datagram. Raises NetworkError with what ICMP said of the one that was sent then,
    BudgetSpent."""
    # sock_recv does not give way when something is there already: a server that floods its
    # asker must not have the loop for itself.
    await asyncio.sleep(0)
    loop = asyncio.get_running_loop()
    try:
        with later():
            data = await loop.sock_recv(asking, LARGEST)
    except NetworkError as error:
        if error.errno == errno.ECONNREFUSED:
            REFUSALS.refused(target.address, target.port, sent=sent, now=loop.time())
        raise
    REFUSALS.answered(target.address, target.port)
    budget.take(size=len(data))
    return data
