"""What each peer may use of a listener, and what it costs the others: nothing."""

import pytest

from xenlb.control import guest_limits
from xenlb.control.guest_limits import ConnectionSlots, GuestPeer, PeerRates, parse_peer


@pytest.mark.parametrize(
    ("host", "address", "network"),
    [
        ("192.0.2.7", "192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7", "192.0.2.7"),
        ("2001:db8:0:1:2::3", "2001:db8:0:1:2::3", "2001:db8:0:1::/64"),
        ("fe80::1%eth0", "fe80::1", "fe80::/64"),
    ],
)
def test_a_peer_is_parsed_from_its_address(host: str, address: str, network: str) -> None:
    assert parse_peer(host) == GuestPeer(address, network)


def granted(rates: PeerRates, hosts: list[str], now: float = 0.0) -> int:
    return sum(not rates.refusal(parse_peer(host), now) for host in hosts)


def test_one_address_has_its_own_budget_and_no_other() -> None:
    rates = PeerRates()
    flooder = ["10.0.0.2"] * 100_000
    assert granted(rates, flooder) == guest_limits.ADDRESS_BURST
    assert granted(rates, ["10.0.0.3"] * 5) == 5
    assert granted(rates, flooder, 10.0) == min(20, 10 * guest_limits.ADDRESS_RATE)


def test_a_guest_has_as_many_addresses_as_its_64_and_one_budget() -> None:
    rates = PeerRates()
    flood = [f"2001:db8::{n:x}" for n in range(3000)]
    assert granted(rates, flood) == guest_limits.NETWORK_BURST
    assert granted(rates, ["2001:db8:0:1::1"] * 5) == 5


def test_one_address_does_not_use_up_its_64() -> None:
    rates = PeerRates()
    granted(rates, ["2001:db8::1"] * 100_000)
    assert granted(rates, [f"2001:db8::{n:x}" for n in range(2, 60)]) == 58


def test_the_number_of_remembered_peers_is_bounded() -> None:
    rates = PeerRates()
    flood = [
        f"10.{n >> 16 & 255}.{n >> 8 & 255}.{n & 255}" for n in range(2 * guest_limits.REMEMBERED)
    ]
    assert granted(rates, flood) == guest_limits.BURST
    assert len(rates._addresses) == guest_limits.REMEMBERED


def test_the_log_gets_a_limited_number_of_lines() -> None:
    rates, one, other = PeerRates(), parse_peer("10.0.0.2"), parse_peer("10.0.0.3")
    assert [rates.complaint(one, now) for now in (0.0, 1.0, 59.0)] == [0, None, None]
    assert rates.complaint(other, 59.0) == 0, "one that is loud does not hide another"
    assert rates.complaint(one, 60.0) == 2
    many = [rates.complaint(parse_peer(f"10.0.1.{n}"), 60.0) for n in range(200)]
    assert sum(each is not None for each in many) < guest_limits.LINES


def places(*hosts: str) -> ConnectionSlots[int]:
    it = ConnectionSlots[int]()
    for number, host in enumerate(hosts):
        assert it.make_room(parse_peer(host)) is None
        it.take(number, parse_peer(host))
    return it


def test_the_network_with_most_connections_makes_room() -> None:
    few = [f"10.0.0.{n}" for n in range(guest_limits.SLOTS - 3)]
    it = places(*few, "2001:db8::1", "2001:db8::2", "2001:db8::3")
    first = guest_limits.SLOTS - 3
    assert it.make_room(parse_peer("10.1.0.1")) == (first, parse_peer("2001:db8::1"))
    it.take(1000, parse_peer("10.1.0.1"))
    assert it.make_room(parse_peer("10.1.0.2")) == (first + 1, parse_peer("2001:db8::2"))


def test_an_address_makes_room_for_itself() -> None:
    it = places("10.0.0.1", *["10.0.0.2"] * guest_limits.SLOTS_OF_ADDRESS)
    assert it.make_room(parse_peer("10.0.0.2")) == (1, parse_peer("10.0.0.2"))
    it.release(2)
    it.take(1000, parse_peer("10.0.0.2"))
    assert it.make_room(parse_peer("10.0.0.2")) is None
