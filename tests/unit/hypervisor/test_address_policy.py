"""Accepted and rejected addresses."""

from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenlb.hypervisor.address_policy import (
    PolicyContext,
    UnusableAddress,
    check_address,
    check_addresses,
    parse_address,
)
from xenlb.ipvs.table import IPAddress
from xenlb.model.addresses import AddressCandidate, AddressSource, RejectedAddress
from xenlb.model.reserved_addresses import AddressesInUse, HostNetwork, rejection_reason


def addresses(*texts: str) -> frozenset[IPAddress]:
    return frozenset(map(ip_address, texts))


CONTEXT = PolicyContext(
    host=HostNetwork(
        own=addresses("10.0.0.1", "2001:db8::1"),
        gateways=addresses("10.0.0.254"),
        strangers=addresses("10.0.0.77"),
    ),
    taken=AddressesInUse(
        services=addresses("10.0.0.100", "192.0.2.10"), sorry=addresses("10.0.0.99", "10.7.7.7")
    ),
    networks=(IPv4Network("10.0.0.0/24"), IPv6Network("2001:db8::/64"), IPv4Network("10.9.0.0/31")),
)
FORGEABLE = [AddressSource.LEASE, AddressSource.REPORTED, AddressSource.NEIGHBOUR]


@pytest.mark.parametrize("source", list(AddressSource))
@pytest.mark.parametrize("text", ["10.0.0.11", "2001:db8::11", "10.9.0.0", "10.9.0.1"])
def test_address_in_a_network_of_the_host(text: str, source: AddressSource) -> None:
    assert check_address(text, source, CONTEXT) == AddressCandidate(
        address=ip_address(text), source=source
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not an IPv4 or IPv6"),
        ("mail1", "not an IPv4 or IPv6"),
        ("10.0.0", "not an IPv4 or IPv6"),
        ("10.0.0.011", "not an IPv4 or IPv6"),
        ("0x0a.0.0.11", "not an IPv4 or IPv6"),
        ("167772171", "not an IPv4 or IPv6"),
        (" 10.0.0.11", "not an IPv4 or IPv6"),
        ("10.0.0.11\n", "not an IPv4 or IPv6"),
        ("10.0.0.11/24", "not an IPv4 or IPv6"),
        ("2001:db8::11%eth0", "zone"),
        ("::ffff:10.0.0.11", "IPv4 address in IPv6"),
        ("1" * 65, "longer than 64"),
        ("0.0.0.0", "unspecified"),
        ("::", "unspecified"),
        ("127.0.0.5", "loopback"),
        ("::1", "loopback"),
        ("169.254.1.1", "link-local"),
        ("fe80::1", "link-local"),
        ("224.0.0.1", "multicast"),
        ("ff02::1", "multicast"),
        ("255.255.255.255", "reserved"),
        ("240.0.0.1", "reserved"),
        ("0.1.2.3", "reserved"),
        ("10.0.0.100", "service address"),
        ("192.0.2.10", "service address"),
        ("10.0.0.1", "address of this host"),
        ("2001:db8::1", "address of this host"),
        ("10.0.0.254", "gateway of this host"),
        ("10.0.0.99", "sorry server"),
        ("10.7.7.7", "sorry server"),
        ("10.0.0.77", "no guest"),
    ],
)
@pytest.mark.parametrize("source", list(AddressSource))
def test_address_refused_from_every_source(text: str, reason: str, source: AddressSource) -> None:
    verdict = check_address(text, source, CONTEXT)
    assert isinstance(verdict, RejectedAddress)
    assert reason in verdict.reason
    assert verdict.source is source


def test_a_refused_address_has_its_usual_notation() -> None:
    verdict = check_address("2001:DB8:0:1::1", AddressSource.REPORTED, CONTEXT)
    assert isinstance(verdict, RejectedAddress)
    assert verdict.text == "2001:db8:0:1::1"


@pytest.mark.parametrize("text", ["10.0.1.11", "192.168.1.1", "2001:db8:0:1::1", "8.8.8.8"])
def test_address_outside_the_host_s_networks_needs_a_trusted_source(text: str) -> None:
    for source in FORGEABLE:
        verdict = check_address(text, source, CONTEXT)
        assert isinstance(verdict, RejectedAddress)
        assert "no network" in verdict.reason
    assert check_address(text, AddressSource.INTERFACE_XML, CONTEXT) == AddressCandidate(
        address=ip_address(text), source=AddressSource.INTERFACE_XML
    )


def test_networks_of_the_configuration_narrow_and_do_not_add() -> None:
    within = (IPv4Network("10.0.0.0/28"), IPv4Network("192.168.0.0/16"))
    context = replace(CONTEXT, within=within)
    for source in FORGEABLE:
        assert isinstance(check_address("10.0.0.11", source, context), AddressCandidate)
        for text, reason in (
            ("10.0.0.30", "none of guests.networks"),
            ("2001:db8::11", "none of guests.networks"),
            ("192.168.1.1", "no network of this host"),
        ):
            verdict = check_address(text, source, context)
            assert isinstance(verdict, RejectedAddress)
            assert reason in verdict.reason
    assert isinstance(
        check_address("10.0.0.30", AddressSource.INTERFACE_XML, context), AddressCandidate
    )


@pytest.mark.parametrize("text", ["10.0.0.0", "10.0.0.255", "2001:db8::"])
def test_edges_of_a_network(text: str) -> None:
    assert isinstance(check_address(text, AddressSource.REPORTED, CONTEXT), RejectedAddress)


def test_best_source_first_and_each_address_once() -> None:
    found, refused = check_addresses(
        [
            ("10.0.0.12", AddressSource.NEIGHBOUR),
            ("10.0.0.11", AddressSource.REPORTED),
            ("10.0.0.13", AddressSource.REPORTED),
            ("8.8.8.8", AddressSource.REPORTED),
            ("8.8.8.8", AddressSource.NEIGHBOUR),
            ("10.0.0.11", AddressSource.LEASE),
        ],
        CONTEXT,
    )
    assert [(str(f.address), f.source) for f in found] == [
        ("10.0.0.11", AddressSource.LEASE),
        ("10.0.0.12", AddressSource.NEIGHBOUR),
        ("10.0.0.13", AddressSource.REPORTED),
    ]
    assert [(r.text, r.source) for r in refused] == [("8.8.8.8", AddressSource.NEIGHBOUR)]


@given(
    candidate=st.text() | st.binary() | st.ip_addresses().map(str),
    source=st.sampled_from(FORGEABLE),
)
def test_an_accepted_address_is_inside_the_networks(
    candidate: str | bytes, source: AddressSource
) -> None:
    match check_address(candidate, source, CONTEXT):
        case AddressCandidate() as found:
            assert any(
                found.address.version == network.version and found.address in network
                for network in CONTEXT.networks
            )
            assert not rejection_reason(found.address, CONTEXT.host, CONTEXT.taken)
        case RejectedAddress() as refused:
            assert len(refused.text) <= 64
            assert refused.text.isprintable()


@given(address=st.ip_addresses(v=4, network="10.0.0.0/24") | st.ip_addresses(v=6))
def test_a_parsed_address_has_its_usual_notation(address: object) -> None:
    """An address has one notation."""
    try:
        parsed = parse_address(str(address))
    except UnusableAddress:
        return
    assert str(parsed) == str(address)
    assert parsed in ip_network(f"{parsed}/{parsed.max_prefixlen}")
