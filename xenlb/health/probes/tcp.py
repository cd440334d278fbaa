"""The tcp check: does the server's port accept a connection, and say what it should?

FACTS

- The connection is made in full and then closed with a FIN, before anything is said. A reset
  (SO_LINGER 0) would be cheaper here, with no TIME_WAIT left on this host, but it may overtake the
  server's accept(), which then fails (ECONNABORTED) and is logged as an error by some; a FIN is
  one “lost connection after CONNECT” of a mail server at most. `check: smtp` says QUIT instead.
- The price: one TIME_WAIT entry for 60 s a probe, 12 a target at an interval of 5 s. They differ in
  address and port of the server, so they do not use up the local ports; below
  net.ipv4.tcp_max_tw_buckets (262,144 on a host with some memory) they cost memory only, and above
  it the kernel drops them early.
- A guest that still boots has no address yet: the SYN waits for ARP, which is asked three times,
  a second apart; then connect() fails with EHOSTUNREACH, about 3 s after it began. With a timeout
  of 3 s, either of the two messages comes. When the guest answers in between, the waiting SYN
  leaves at once, so nothing is gained by asking more often. Once the guest has its address, a port
  that nobody listens on yet is refused within a millisecond, and the next probe comes soon.
- A SYN that a full backlog or a firewall drops is sent again by the kernel after 1 and 3 s.
- Probes go to the server itself, not through IPVS: IPVS looks at packets to service addresses only.
"""

import socket

from xenlb.health.transport.result import Answer, failed
from xenlb.health.transport.sockets import connect, unconnected
from xenlb.health.transport.stream import Stream, session
from xenlb.model.checks import Tcp, octets
from xenlb.model.target import Target
from xenlb.untrusted.budget import Budget
from xenlb.untrusted.printable import first_line

# Bytes of the answer in which `expect` must come.
LONGEST = 4096


async def probe(target: Target, budget: Budget) -> Answer:
    asks = target.check.asks
    assert isinstance(asks, Tcp)
    if asks.send or asks.expect:
        return await session(target, budget, lambda stream: _talk(stream, asks))
    return await _connect(target)


async def _connect(target: Target) -> Answer:
    """Connects and hangs up: most checks are that, and nothing is spent on it beyond."""
    try:
        with unconnected(target.address, socket.SOCK_STREAM) as connection:
            await connect(connection, target)
    except OSError as error:
        return failed(target, error)
    return Answer(up=True, detail=f"{target.address} accepts connections on port {target.port}")


async def _talk(stream: Stream, asks: Tcp) -> Answer:
    if asks.send:
        await stream.send(octets(asks.send))
    said = b""
    while asks.expect and not await stream.matches(asks.expect, said.decode("utf-8", "replace")):
        more = await stream.piece("expected answer")
        said += more
        if not more or len(said) > LONGEST:
            raise stream.unexpected(f'"{first_line(asks.expect)}"', said)
    await stream.part()
    return Answer(up=True, detail=f"{stream.where} answers as expected")
