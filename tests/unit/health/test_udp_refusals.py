"""Conclusions from silent UDP ports, as a host refuses one datagram a second."""

from ipaddress import ip_address

import pytest

from xenlb.health.transport.udp_refusals import CERTAIN, HOLD, Refusals
from xenlb.ipvs.table import IPAddress

HOST = ip_address("10.0.0.11")
OTHER = ip_address("10.0.0.12")


def refuse(refusals: Refusals, address: IPAddress, port: int, now: float) -> None:
    refusals.refused(address, port, sent=now, now=now)


def test_silence_of_a_port_that_never_refused_means_open() -> None:
    assert Refusals().silent(HOST, 514, sent=10.0) is True


def test_after_a_refusal_one_silence_is_not_enough() -> None:
    refusals = Refusals()
    refuse(refusals, HOST, 514, 10.0)
    seen = [refusals.silent(HOST, 514, sent=sent) for sent in (15.0, 20.0, 25.0, 30.0)]
    assert seen == [False, False, True, True]


def test_silences_that_are_too_close_count_as_one() -> None:
    refusals = Refusals()
    refuse(refusals, HOST, 514, 10.0)
    assert not any(refusals.silent(HOST, 514, sent=10.0 + n / 2) for n in range(9))


def test_a_refusal_resets_the_silences() -> None:
    refusals = Refusals()
    for start in (10.0, 30.0):
        refuse(refusals, HOST, 514, start)
        assert not refusals.silent(HOST, 514, sent=start + 5)
        assert not refusals.silent(HOST, 514, sent=start + 10)
    assert refusals.silent(HOST, 514, sent=45.0)


def test_an_answer_clears_the_refusals() -> None:
    refusals = Refusals()
    refuse(refusals, HOST, 514, 10.0)
    refusals.answered(HOST, 514)
    assert refusals.silent(HOST, 514, sent=15.0)


@pytest.mark.parametrize(
    ("sent", "open_"), [(9.5, True), (9.9, None), (10.5, None), (11.2, None), (11.3, True)]
)
def test_silence_is_inconclusive_while_another_port_is_refused(
    sent: float, open_: bool | None
) -> None:
    refusals = Refusals()
    refuse(refusals, HOST, 515, 10.0)
    assert refusals.silent(HOST, 514, sent=sent) is open_
    assert refusals.silent(OTHER, 514, sent=sent) is True


def test_a_late_refusal_counts_from_its_datagram() -> None:
    refusals = Refusals()
    refusals.refused(HOST, 515, sent=10.0, now=13.0)
    assert refusals.silent(HOST, 514, sent=10.0) is None
    assert refusals.silent(HOST, 514, sent=14.0) is None
    assert refusals.silent(HOST, 514, sent=14.3) is True


def test_loopback_has_no_limit_on_refusals() -> None:
    refusals = Refusals()
    refuse(refusals, ip_address("::1"), 515, 10.0)
    assert refusals.silent(ip_address("::1"), 514, sent=10.0)


def test_a_port_that_refuses_leaves_the_refusals_to_others() -> None:
    refusals = Refusals()
    for n in range(CERTAIN):
        assert not refusals.is_held(HOST, 514, 10.0 + n)
        refuse(refusals, HOST, 514, 10.0 + n)
    last = 10.0 + CERTAIN - 1
    assert refusals.is_held(HOST, 514, last + HOLD - 0.1)
    assert not refusals.is_held(HOST, 514, last + HOLD)
    assert not refusals.is_held(HOST, 515, last), "never refused"
    refuse(refusals, HOST, 515, 20.0)
    assert refusals.is_held(HOST, 514, 20.1)
    assert not refusals.is_held(HOST, 515, 20.1), "not certain yet"


def test_the_memory_of_refusals_is_bounded() -> None:
    refusals = Refusals(most=2)
    for port in (1, 2, 3):
        refuse(refusals, HOST, port, 0.0)
    assert refusals.silent(HOST, 1, sent=9.0), "forgotten"
    assert not refusals.silent(HOST, 3, sent=9.0)


def test_twenty_dead_ports_and_a_live_one() -> None:
    """A host with the kernel's limit, probed like the agent: at first every 0.25 s."""
    refusals = Refusals()
    tokens, filled = 6.0, 0.0
    live, dead = 514, range(1, 21)
    found_dead: set[int] = set()
    said_of_live = None
    for now in (0.3 * n for n in range(200)):
        for port in (*dead, live):
            if refusals.is_held(HOST, port, now):
                continue
            tokens, filled = min(6.0, tokens + now - filled), now
            if port != live and tokens >= 1:
                tokens -= 1
                refuse(refusals, HOST, port, now)
                found_dead.add(port)
                continue
            said = refusals.silent(HOST, port, sent=now)
            if port == live:
                said_of_live = said_of_live or said
            else:
                assert said is not True, f"port {port} after {now:g} s"
        if found_dead == set(dead) and said_of_live:
            break
    assert found_dead == set(dead)
    assert said_of_live, "the live one has been let in, too"
