"""The dns probe against a server of the test's own."""

import asyncio
from collections.abc import Callable, Iterable

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest

from tests.unit.health.datagrams import answering, asked, closed_port, target
from xenlb.health.registry import run_probe
from xenlb.health.transport.result import Answer, answer_budget
from xenlb.model.checks import Dns


def records(*lines: str) -> Callable[[bytes], Iterable[bytes]]:
    """A server with these records for every query."""

    def answer(data: bytes) -> Iterable[bytes]:
        reply = dns.message.make_response(dns.message.from_wire(data))
        for line in lines:
            name, kind, value = line.split(maxsplit=2)
            reply.answer.append(dns.rrset.from_text(name, 60, "IN", kind, value))
        yield reply.to_wire()

    return answer


def changed(change: Callable[[dns.message.Message], None]) -> Callable[[bytes], Iterable[bytes]]:
    def answer(data: bytes) -> Iterable[bytes]:
        reply = dns.message.make_response(dns.message.from_wire(data))
        change(reply)
        yield reply.to_wire()

    return answer


A = Dns(query="www.example.org", record="A")


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_record_of_the_type_is_up(address: str) -> None:
    answer = asked(A, records("www.example.org. A 192.0.2.7"), address)
    assert answer == Answer(
        up=True, detail=f"{address} port PORT answers with A of www.example.org"
    )


@pytest.mark.parametrize(
    ("asks", "lines"),
    [
        (
            Dns(query="example.org", record="MX", expect="10 MX1.example.org."),
            "MX 10 mx1.Example.org.",
        ),
        (
            Dns(query="example.org", record="MX", expect="10 mx1.example.org"),
            "MX 10 mx1.example.org.",
        ),
        (Dns(query="example.org", record="TXT", expect='"v=spf1 -all"'), 'TXT "v=spf1 -all"'),
        (Dns(query="example.org", record="AAAA", expect="fd00:0::7"), "AAAA fd00::7"),
    ],
)
def test_records_are_compared_as_data(asks: Dns, lines: str) -> None:
    assert asked(asks, records(f"example.org. {lines}")).up


def test_an_alias_in_the_answer_is_ignored() -> None:
    server = records("www.example.org. CNAME web.example.org.", "web.example.org. A 192.0.2.7")
    assert asked(A, server).up


@pytest.mark.parametrize(
    ("server", "got"),
    [
        (changed(lambda reply: reply.set_rcode(dns.rcode.SERVFAIL)), "got SERVFAIL"),
        (changed(lambda reply: reply.set_rcode(dns.rcode.NXDOMAIN)), "got NXDOMAIN"),
        (records(), "got no such record"),
        (records("www.example.org. AAAA fd00::7"), "got no such record"),
        (lambda data: [data[:2] + b"nonsense"], "got no DNS: "),
        (lambda data: [data], "got answers to other questions"),
    ],
)
def test_other_answers_are_down(server: Callable[[bytes], Iterable[bytes]], got: str) -> None:
    if got == "got answers to other questions":
        echo = server
        server = lambda data: list(echo(data)) * 20  # noqa: E731 - it is one line more of a def
    answer = asked(A, server)
    assert not answer.up
    assert answer.detail.startswith(
        f"expected A of www.example.org from 127.0.0.1 port PORT, {got}"
    )


def test_unexpected_records_are_sorted() -> None:
    asks = Dns(query="www.example.org", record="A", expect="192.0.2.9")
    one = asked(asks, records("www.example.org. A 192.0.2.8", "www.example.org. A 192.0.2.7"))
    two = asked(asks, records("www.example.org. A 192.0.2.7", "www.example.org. A 192.0.2.8"))
    assert one == two
    assert one == Answer(
        up=False,
        detail="expected 192.0.2.9 as A of www.example.org from 127.0.0.1 port PORT,"
        " got 192.0.2.7, 192.0.2.8",
    )


def test_a_truncated_answer_is_up() -> None:
    def cut(reply: dns.message.Message) -> None:
        reply.flags |= dns.flags.TC

    assert asked(A, changed(cut)).up


def test_an_answer_to_another_query_is_ignored() -> None:
    """The answer follows one with another id and one to another query."""

    def answer(data: bytes) -> Iterable[bytes]:
        (right,) = records("www.example.org. A 192.0.2.7")(data)
        other = dns.message.make_query("evil.example.org", "A", id=int.from_bytes(data[:2]))
        yield bytes([right[0] ^ 1]) + right[1:]
        yield dns.message.make_response(other).to_wire()
        yield right

    assert asked(A, answer).up


@pytest.mark.parametrize("recursive", [True, False])
def test_recursion_is_requested_if_configured(recursive: bool) -> None:
    seen: list[bool] = []

    def answer(data: bytes) -> Iterable[bytes]:
        seen.append(bool(dns.message.from_wire(data).flags & dns.flags.RD))
        return records(". SOA a. b. 1 2 3 4 5")(data)

    assert asked(Dns(query=".", recursive=recursive), answer).up
    assert seen == [recursive]


def answered(
    rcode: dns.rcode.Rcode, *, question: bool = True
) -> Callable[[bytes], Iterable[bytes]]:
    def change(reply: dns.message.Message) -> None:
        reply.set_rcode(rcode)
        if not question:
            reply.question.clear()

    return changed(change)


@pytest.mark.parametrize(
    "server",
    [
        answered(dns.rcode.NOERROR),
        answered(dns.rcode.NXDOMAIN),
        answered(dns.rcode.REFUSED),
        answered(dns.rcode.NOTIMP, question=False),
        answered(dns.rcode.FORMERR, question=False),
        lambda data: [each + b"more" for each in answered(dns.rcode.REFUSED)(data)],
    ],
)
def test_without_a_query_any_answer_is_up(server: Callable[[bytes], Iterable[bytes]]) -> None:
    assert asked(Dns(), server) == Answer(up=True, detail="127.0.0.1 port PORT answers queries")


@pytest.mark.parametrize(
    ("server", "got"),
    [
        (answered(dns.rcode.SERVFAIL), "SERVFAIL"),
        (lambda data: [data], "answers to other questions"),
        (lambda data: [data[:2] + b"nonsense"], "no DNS: "),
    ],
)
def test_without_a_query_a_failure_is_down(
    server: Callable[[bytes], Iterable[bytes]], got: str
) -> None:
    answer = asked(Dns(), lambda data: [*server(data)] * 20)
    assert not answer.up
    assert answer.detail.startswith(f"expected an answer from 127.0.0.1 port PORT, got {got}")


def test_a_closed_port_is_down_at_once() -> None:
    port = closed_port()
    answer = asyncio.run(
        asyncio.wait_for(run_probe(target(A, port, timeout=600), answer_budget()), 60)
    )
    assert answer == Answer(up=False, detail=f"connection refused by 127.0.0.1 port {port}")


def test_an_invalid_query_is_no_verdict() -> None:
    answer = asked(Dns(query="a..b", record="A"), records())
    assert answer.up is None
    assert "this host cannot ask for A of a..b" in answer.detail


def test_silence_is_left_to_the_timeout() -> None:
    async def main() -> None:
        async with answering(lambda _: ()) as port:
            task = asyncio.create_task(run_probe(target(A, port), answer_budget()))
            await asyncio.sleep(0.1)
            assert not task.done()
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()

    asyncio.run(main())
