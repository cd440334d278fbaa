"""Which addresses are used."""

from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenlb.hypervisor.address_policy import Context, NoAddress, judge, judge_all, parse
from xenlb.ipvs.table import IPAddress
from xenlb.model.addresses import Found, Refused, Source
from xenlb.model.reserved_addresses import Host, Taken, refusal


def addresses(*texts: str) -> frozenset[IPAddress]:
    return frozenset(map(ip_address, texts))


CONTEXT = Context(
    host=Host(
        own=addresses("10.0.0.1", "2001:db8::1"),
        gateways=addresses("10.0.0.254"),
        strangers=addresses("10.0.0.77"),
    ),
    taken=Taken(
        services=addresses("10.0.0.100", "192.0.2.10"), sorry=addresses("10.0.0.99", "10.7.7.7")
    ),
    networks=(IPv4Network("10.0.0.0/24"), IPv6Network("2001:db8::/64"), IPv4Network("10.9.0.0/31")),
)
FORGEABLE = [Source.LEASE, Source.REPORTED, Source.NEIGHBOUR]


@pytest.mark.parametrize("source", list(Source))
@pytest.mark.parametrize("text", ["10.0.0.11", "2001:db8::11", "10.9.0.0", "10.9.0.1"])
def test_address_in_a_network_of_the_host(text: str, source: Source) -> None:
    assert judge(text, source, CONTEXT) == Found(address=ip_address(text), source=source)


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
@pytest.mark.parametrize("source", list(Source))
def test_refused_from_every_source(text: str, reason: str, source: Source) -> None:
    verdict = judge(text, source, CONTEXT)
    assert isinstance(verdict, Refused)
    assert reason in verdict.reason
    assert verdict.source is source


def test_a_refused_address_is_told_in_its_usual_notation() -> None:
    verdict = judge("2001:DB8:0:1::1", Source.REPORTED, CONTEXT)
    assert isinstance(verdict, Refused)
    assert verdict.text == "2001:db8:0:1::1"


@pytest.mark.parametrize("text", ["10.0.1.11", "192.168.1.1", "2001:db8:0:1::1", "8.8.8.8"])
def test_outside_only_where_the_host_says_so(text: str) -> None:
    for source in FORGEABLE:
        verdict = judge(text, source, CONTEXT)
        assert isinstance(verdict, Refused)
        assert "no network" in verdict.reason
    assert judge(text, Source.INTERFACE_XML, CONTEXT) == Found(
        address=ip_address(text), source=Source.INTERFACE_XML
    )


def test_networks_of_the_configuration_narrow_and_do_not_add() -> None:
    within = (IPv4Network("10.0.0.0/28"), IPv4Network("192.168.0.0/16"))
    context = replace(CONTEXT, within=within)
    for source in FORGEABLE:
        assert isinstance(judge("10.0.0.11", source, context), Found)
        for text, reason in (
            ("10.0.0.30", "none of guests.networks"),
            ("2001:db8::11", "none of guests.networks"),
            ("192.168.1.1", "no network of this host"),
        ):
            verdict = judge(text, source, context)
            assert isinstance(verdict, Refused)
            assert reason in verdict.reason
    assert isinstance(judge("10.0.0.30", Source.INTERFACE_XML, context), Found)


@pytest.mark.parametrize("text", ["10.0.0.0", "10.0.0.255", "2001:db8::"])
def test_edges_of_a_network(text: str) -> None:
    assert isinstance(judge(text, Source.REPORTED, CONTEXT), Refused)


def test_best_source_first_and_each_address_once() -> None:
    found, refused = judge_all(
        [
            ("10.0.0.12", Source.NEIGHBOUR),
            ("10.0.0.11", Source.REPORTED),
            ("10.0.0.13", Source.REPORTED),
            ("8.8.8.8", Source.REPORTED),
            ("8.8.8.8", Source.NEIGHBOUR),
            ("10.0.0.11", Source.LEASE),
        ],
        CONTEXT,
    )
    assert [(str(f.address), f.source) for f in found] == [
        ("10.0.0.11", Source.LEASE),
        ("10.0.0.12", Source.NEIGHBOUR),
        ("10.0.0.13", Source.REPORTED),
    ]
    assert [(r.text, r.source) for r in refused] == [("8.8.8.8", Source.NEIGHBOUR)]


@given(
    candidate=st.text() | st.binary() | st.ip_addresses().map(str),
    source=st.sampled_from(FORGEABLE),
)
def test_what_a_guest_says_is_bounded_and_inside(candidate: str | bytes, source: Source) -> None:
    match judge(candidate, source, CONTEXT):
        case Found() as found:
            assert any(
                found.address.version == network.version and found.address in network
                for network in CONTEXT.networks
            )
            assert not refusal(found.address, CONTEXT.host, CONTEXT.taken)
        case Refused() as refused:
            assert len(refused.text) <= 64
            assert refused.text.isprintable()


@given(address=st.ip_addresses(v=4, network="10.0.0.0/24") | st.ip_addresses(v=6))
def test_only_its_own_notation_is_read(address: object) -> None:
    """What is accepted is written back the same, so one address has one text."""
    try:
        parsed = parse(str(address))
    except NoAddress:
        return
    assert str(parsed) == str(address)
    assert parsed in ip_network(f"{parsed}/{parsed.max_prefixlen}")
