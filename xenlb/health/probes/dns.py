"""The dns check: one query over UDP, and its answer.

dnspython encodes and decodes the messages; nothing is resolved here. An answer must have the
query's id and question, and come from the server. A truncated one (TC) passes: the rest would come
by TCP, for which there is `check: {type: tcp}`.

Without `query` every well-formed answer passes but SERVFAIL.

FACTS

- Every name server should answer for localhost by itself (RFC 6761, 6.3). BIND as Debian configures
  it, unbound and dnsmasq do. NSD refuses without a line in its log, as do unbound and dnsmasq for
  foreign zones. BIND logs each refusal.
- Servers without recursion refuse the root, and dnsmasq forwards it to its upstream.
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

from xenlb.health.transport.datagram import connected_socket, receive_datagram
from xenlb.health.transport.result import Answer, failed, where
from xenlb.model.checks import Dns
from xenlb.model.target import Target
from xenlb.untrusted.budget import Budget
from xenlb.untrusted.printable import first_line

LOCALHOST = ("localhost.", "A")  # name and type of the default query
# Bytes of a datagram. Without EDNS answers have at most USUAL (RFC 1035, 4.2.1), but servers may
# send more. A hostile message takes some 20 µs a byte to parse: a larger one is parsed in a thread.
USUAL, LARGEST = 512, 4096
STRAY = 16  # datagrams that do not answer the query, before the probe gives up


async def probe(target: Target, budget: Budget) -> Answer:
    """Run the check."""
    asks = target.check.asks
    assert isinstance(asks, Dns)
    source = where(target)
    what = _what(asks)
    name, record = LOCALHOST if asks.query is None else (asks.query, asks.record)
    try:
        flags = dns.flags.RD if asks.recursive else 0
        query = dns.message.make_query(name, record, flags=flags)
        wire = query.to_wire()
    except (dns.exception.DNSException, ValueError) as error:
        return Answer(up=None, detail=f"this host cannot ask for {what}: {first_line(str(error))}")
    try:
        with connected_socket(target) as udp:
            sent = asyncio.get_running_loop().time()
            udp.send(wire)
            for _ in range(STRAY):
                data = await receive_datagram(udp, target, budget, sent=sent)
                if data[:2] != wire[:2]:
                    continue
                if len(data) > LARGEST:
                    detail = f"expected {what} from {source}, got a datagram of {len(data)} bytes"
                    return Answer(up=False, detail=detail)
                try:
                    answer = await _parse(data, budget)
                except (dns.exception.DNSException, ValueError, IndexError) as error:
                    reason = first_line(str(error)) or type(error).__name__
                    return Answer(
                        up=False, detail=f"expected {what} from {source}, got no DNS: {reason}"
                    )
                if query.is_response(answer):
                    return _result(asks, answer, source)
    except OSError as error:
        return failed(target, error)
    return Answer(up=False, detail=f"expected {what} from {source}, got answers to other questions")


async def _parse(data: bytes, budget: Budget) -> dns.message.Message:
    """Raises DNSException, ValueError, IndexError."""
    if len(data) <= USUAL:
        return dns.message.from_wire(data, ignore_trailing=True)

    def parse() -> tuple[dns.message.Message, float]:
        started = time.thread_time()
        message = dns.message.from_wire(data, ignore_trailing=True)
        return message, time.thread_time() - started

    message, seconds = await asyncio.to_thread(parse)
    budget.add_time(seconds)
    return message


def _what(asks: Dns) -> str:
    return "an answer" if asks.query is None else f"{asks.record} of {asks.query}"


def _result(asks: Dns, answer: dns.message.Message, source: str) -> Answer:
    what = _what(asks)
    if asks.query is None and answer.rcode() != dns.rcode.SERVFAIL:
        return Answer(up=True, detail=f"{source} answers queries")
    if answer.rcode() != dns.rcode.NOERROR:
        code = dns.rcode.to_text(answer.rcode())
        return Answer(up=False, detail=f"expected {what} from {source}, got {code}")
    up = Answer(up=True, detail=f"{source} answers with {what}")
    wanted = dns.rdatatype.from_text(asks.record)
    records = [record for rrset in answer.answer if rrset.rdtype == wanted for record in rrset]
    if answer.flags & dns.flags.TC:
        return up
    if not records:
        return Answer(up=False, detail=f"expected {what} from {source}, got no such record")
    if asks.expect and not any(_is_expected(asks, record) for record in records):
        # Servers rotate their records: sorted, the same failure has the same text.
        got = first_line(", ".join(sorted(record.to_text() for record in records)))
        return Answer(up=False, detail=f"expected {asks.expect} as {what} from {source}, got {got}")
    return up


def _is_expected(asks: Dns, record: dns.rdata.Rdata) -> bool:
    expected = _parse_record(asks.record, asks.expect)
    return record.to_text() == asks.expect if expected is None else record == expected


@lru_cache(maxsize=1024)
def _parse_record(kind: str, text: str) -> dns.rdata.Rdata | None:
    """Parse a record; None if it is not in the format of zone files.

    Parsed, `10 MX1.example.org.` equals `10 mx1.example.org.`.
    """
    try:
        return dns.rdata.from_text(
            dns.rdataclass.IN, kind, text, origin=dns.name.root, relativize=False
        )
    except (dns.exception.DNSException, ValueError):
        return None
