"""The dns check: one query over UDP, and its answer.

dnspython makes and reads the messages; nothing is resolved here. An answer counts if its id, its
question and its sender are those that were asked. One that was cut short (TC) is an answer: the
server would tell the rest by TCP, and whether it can is a question for `check: {type: tcp}`.

Without `query` the check asks whether a name server is there: every well-formed answer passes but
SERVFAIL.

FACTS

- Every name server should answer for localhost by itself (RFC 6761, 6.3). BIND as Debian configures
  it, unbound and dnsmasq do; NSD refuses without a line in its log, as do unbound and dnsmasq for
  what is not theirs. BIND logs each refusal.
- The root is refused by servers without recursion, and dnsmasq passes it on to its upstream.
- BIND limits answers about its version (version.bind, class CHAOS) to three a second for a /24, and
  drops the others.
"""

import asyncio
import time
from functools import lru_cache

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype

from xenlb.health.transport.datagram import connected, received
from xenlb.health.transport.result import Answer, failed
from xenlb.model.checks import Dns
from xenlb.model.target import Target
from xenlb.untrusted.budget import Budget
from xenlb.untrusted.printable import first_line

# What is asked without `query`: name and type.
LOCALHOST = ("localhost.", "A")
# Bytes of a datagram. Queries here do not allow for more than USUAL (RFC 1035, 4.2.1; EDNS would),
# but servers may send more. A message made for it takes some 20 µs a byte to read: what is more
# than usual is read in a thread.
USUAL, LARGEST = 512, 4096
STRAY = 16  # datagrams that are no answer to the query, after which the server is not heard further


async def probe(target: Target, budget: Budget) -> Answer:
    asks = target.check.asks
    assert isinstance(asks, Dns)
    where = f"{target.address} port {target.port}"
    what = _what(asks)
    name, record = LOCALHOST if asks.query is None else (asks.query, asks.record)
    try:
        flags = dns.flags.RD if asks.recursive else 0
        query = dns.message.make_query(name, record, flags=flags)
        wire = query.to_wire()
    except (dns.exception.DNSException, ValueError) as error:
        return Answer(up=None, detail=f"this host cannot ask for {what}: {first_line(str(error))}")
    try:
        with connected(target) as asking:
            sent = asyncio.get_running_loop().time()
            asking.send(wire)
            for _ in range(STRAY):
                got = await received(asking, target, budget, sent=sent)
                if got[:2] != wire[:2]:
                    continue
                if len(got) > LARGEST:
                    detail = f"expected {what} from {where}, got a datagram of {len(got)} bytes"
                    return Answer(up=False, detail=detail)
                try:
                    answer = await _message(got, budget)
                # Whatever a datagram holds, it is the server's trouble and not this probe's.
                except (dns.exception.DNSException, ValueError, IndexError) as error:
                    reason = first_line(str(error)) or type(error).__name__
                    return Answer(
                        up=False, detail=f"expected {what} from {where}, got no DNS: {reason}"
                    )
                if query.is_response(answer):
                    return _judged(asks, answer, where)
    except OSError as error:
        return failed(target, error)
    return Answer(up=False, detail=f"expected {what} from {where}, got answers to other questions")


async def _message(data: bytes, budget: Budget) -> dns.message.Message:
    """Raises DNSException, ValueError, IndexError."""
    if len(data) <= USUAL:
        return dns.message.from_wire(data, ignore_trailing=True)
    message, seconds = await asyncio.to_thread(_measured, data)
    budget.took(seconds)
    return message


def _measured(data: bytes) -> tuple[dns.message.Message, float]:
    began = time.thread_time()
    message = dns.message.from_wire(data, ignore_trailing=True)
    return message, time.thread_time() - began


def _what(asks: Dns) -> str:
    return "an answer" if asks.query is None else f"{asks.record} of {asks.query}"


def _judged(asks: Dns, answer: dns.message.Message, where: str) -> Answer:
    what = _what(asks)
    if asks.query is None and answer.rcode() != dns.rcode.SERVFAIL:
        return Answer(up=True, detail=f"{where} answers queries")
    if answer.rcode() != dns.rcode.NOERROR:
        code = dns.rcode.to_text(answer.rcode())
        return Answer(up=False, detail=f"expected {what} from {where}, got {code}")
    up = Answer(up=True, detail=f"{where} answers with {what}")
    wanted = dns.rdatatype.from_text(asks.record)
    found = [each for rrset in answer.answer if rrset.rdtype == wanted for each in rrset]
    if answer.flags & dns.flags.TC:
        return up
    if not found:
        return Answer(up=False, detail=f"expected {what} from {where}, got no such record")
    if asks.expect and not any(_same(asks, each) for each in found):
        # Servers turn their records round: sorted, the same trouble has the same words.
        got = first_line(", ".join(sorted(each.to_text() for each in found)))
        return Answer(up=False, detail=f"expected {asks.expect} as {what} from {where}, got {got}")
    return up


def _same(asks: Dns, record: dns.rdata.Rdata) -> bool:
    wanted = _expected(asks.record, asks.expect)
    return record.to_text() == asks.expect if wanted is None else record == wanted


@lru_cache(maxsize=1024)
def _expected(kind: str, text: str) -> dns.rdata.Rdata | None:
    """As data, so that `10 MX1.example.org.` and `10 mx1.example.org.` are the same; None where it
    is not written as a zone file would."""
    try:
        return dns.rdata.from_text(
            dns.rdataclass.IN, kind, text, origin=dns.name.root, relativize=False
        )
    except (dns.exception.DNSException, ValueError):
        return None
