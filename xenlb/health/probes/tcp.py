"""The tcp check: a connection to the server's port, and optionally what it answers.

FACTS

- The connection is established and then closed with a FIN, without data. A reset (SO_LINGER 0)
  would leave no TIME_WAIT on this host, but may overtake the server's accept(), which then fails
  (ECONNABORTED) and is logged as an error by some servers. A FIN is at most one “lost connection
  after CONNECT” of a mail server; `check: smtp` sends QUIT instead.
- The price: one TIME_WAIT entry for 60 s a probe, 12 a target at an interval of 5 s. They differ in
  address and port of the server, so they do not use up the local ports. Below
  net.ipv4.tcp_max_tw_buckets (262,144 on a host with some memory) they cost memory only; above it
  the kernel drops them early.
- A guest that is booting has no address yet: the SYN waits for ARP, with three requests a second
  apart; then connect() fails with EHOSTUNREACH, about 3 s after it began. With a timeout of 3 s,
  either of the two messages comes. If the guest answers in between, the waiting SYN leaves at once,
  so more frequent probes gain nothing. Once the guest has its address, a port without a listener is
  refused within a millisecond, and the next probe comes soon.
- A SYN that a full backlog or a firewall drops is sent again by the kernel after 1 and 3 s.
- Probes go to the server itself: IPVS processes only packets to service addresses.
"""

import socket

from xenlb.health.transport.result import Answer, failed
from xenlb.health.transport.sockets import connect, open_socket
from xenlb.health.transport.stream import Stream, stream_probe
from xenlb.model.checks import Tcp, octets
from xenlb.model.target import Target
from xenlb.untrusted.budget import Budget
from xenlb.untrusted.printable import first_line

LONGEST = 4096  # bytes of the answer that are searched for `expect`


async def probe(target: Target, budget: Budget) -> Answer:
    """Run the check; without `send` and `expect`, as for most checks, with a socket alone."""
    asks = target.check.asks
    assert isinstance(asks, Tcp)
    if asks.send or asks.expect:
        return await _stream_probe(target, budget)
    try:
        with open_socket(target.address, socket.SOCK_STREAM) as connection:
            await connect(connection, target)
    except OSError as error:
        return failed(target, error)
    return Answer(up=True, detail=f"{target.address} accepts connections on port {target.port}")


async def _check(stream: Stream, asks: Tcp) -> Answer:
    if asks.send:
        await stream.send(octets(asks.send))
    answer = b""
    while asks.expect and not await stream.matches(asks.expect, answer.decode("utf-8", "replace")):
        piece = await stream.read_some("expected answer")
        answer += piece
        if not piece or len(answer) > LONGEST:
            raise stream.unexpected(f'"{first_line(asks.expect)}"', answer)
    return await stream.passed("answers as expected")


_stream_probe = stream_probe(Tcp, _check)
