"""What guests need for their services: each forwarding method, written out."""

from dataclasses import replace
from ipaddress import ip_address

import pytest

from xenlb.guestside.requirements.compile import NeedsError, ServiceBinding, compile_needs
from xenlb.guestside.requirements.needs import settings_lines
from xenlb.ipvs.table import (
    Family,
    Forwarding,
    Protocol,
    Tunnel,
    TunnelChecksum,
    TunnelType,
    family_of,
)
from xenlb.model.guest_side import GuestSide, ReturnPath
from xenlb.model.settings import Port, ServiceSettings

GATEWAYS = {Family.INET: ip_address("10.0.0.1"), Family.INET6: ip_address("fd00:10::1")}
V4, V6 = "192.0.2.10", "2001:db8::10"
OWN4, OWN6 = "10.0.0.11", "fd00:10::11"
SILENT = ["sysctl net/ipv4/conf/all/arp_ignore 1", "sysctl net/ipv4/conf/all/arp_announce 2"]
GATEWAYING, TUNNEL = Forwarding.GATEWAYING, Forwarding.TUNNEL
RULE = GuestSide(return_path=ReturnPath.RULE)
MARK = GuestSide(return_path=ReturnPath.MARK)


def place(
    vip: str,
    own: str | None = OWN4,
    *,
    forwarding: Forwarding = Forwarding.MASQUERADE,
    tunnel: Tunnel | None = None,
    side: GuestSide | None = None,
    server_port: int | None = None,
) -> ServiceBinding:
    service = ServiceSettings(
        name="mail",
        address=ip_address(vip),
        family=family_of(ip_address(vip)),
        ports=(Port(number=25), Port(number=53, protocol=Protocol.UDP)),
        forwarding=forwarding,
        tunnel=tunnel,
        server_port=server_port,
    )
    return ServiceBinding(
        service=service,
        side=side or GuestSide(),
        address=None if own is None else ip_address(own),
        gateways=GATEWAYS,
    )


def rp_filter(device: str) -> list[str]:
    return [f"sysctl net/ipv4/conf/{name}/rp_filter 0" for name in ("all", device)]


GRE = Tunnel(type=TunnelType.GRE)
GRE_CHECKED = Tunnel(type=TunnelType.GRE, checksum=TunnelChecksum.CHECKSUM)
GUE = Tunnel(type=TunnelType.GUE, port=6080)
CASES: dict[str, tuple[ServiceBinding, list[str]]] = {
    "gatewaying": (place(V4, forwarding=GATEWAYING), [*SILENT, f"address {V4} lo"]),
    "gatewaying-6": (place(V6, OWN6, forwarding=GATEWAYING), [f"address {V6} lo"]),
    "ipip": (
        place(V4, forwarding=TUNNEL),
        [
            *SILENT,
            *rp_filter("tunl0"),
            "tunnel tunl0 ipip ipip any",
            f"clamp {V4} 1440",
            f"address {V4} tunl0",
        ],
    ),
    "6-in-4": (
        place(V6, forwarding=TUNNEL),
        ["tunnel sit0 sit sit any", f"clamp {V6} 1420", f"address {V6} sit0"],
    ),
    "4-in-6": (
        place(V4, OWN6, forwarding=TUNNEL),
        [
            *SILENT,
            *rp_filter("xenlb-tnl6"),
            f"tunnel xenlb-tnl6 ip6tnl ip6_tunnel {OWN6}",
            f"clamp {V4} 1420",
            f"address {V4} xenlb-tnl6",
        ],
    ),
    "gre": (
        place(V4, forwarding=TUNNEL, tunnel=GRE),
        [
            *SILENT,
            *rp_filter("xenlb-gre"),
            f"tunnel xenlb-gre gre ip_gre {OWN4}",
            f"clamp {V4} 1436",
            f"address {V4} xenlb-gre",
        ],
    ),
    "gre-checked-6": (
        place(V6, OWN6, forwarding=TUNNEL, tunnel=GRE_CHECKED),
        [
            f"tunnel xenlb-gre6 ip6gre ip6_gre {OWN6} checksums",
            f"clamp {V6} 1392",
            f"address {V6} xenlb-gre6",
        ],
    ),
    "gue": (
        place(V4, forwarding=TUNNEL, tunnel=GUE),
        [
            *SILENT,
            *rp_filter("tunl0"),
            "tunnel tunl0 ipip ipip any",
            "gue 4 6080",
            f"clamp {V4} 1428",
            f"address {V4} tunl0",
        ],
    ),
    "masquerade": (place(V4), []),
    "masquerade-rule": (
        place(V4, side=replace(RULE, interface="eth1")),
        ["route 4 10.0.0.1 eth1 732", f"rule 4 from {OWN4} 732"],
    ),
    "masquerade-rule-6": (
        place(V6, OWN6, side=replace(RULE, table=100)),
        ["route 6 fd00:10::1 eth0 100", f"rule 6 from {OWN6} 100"],
    ),
    "masquerade-mark": (
        place(V4, side=replace(MARK, tx_checksums=False)),
        [
            "sysctl net/ipv4/conf/all/src_valid_mark 1",
            "route 4 10.0.0.1 eth0 731",
            "rule 4 mark 731 731",
            "mark eth0 tcp 25 731",
            "mark eth0 udp 53 731",
            "no-tx-checksums eth0",
        ],
    ),
    "masquerade-mark-server-port": (
        place(V6, OWN6, side=MARK, server_port=26),
        [
            "route 6 fd00:10::1 eth0 731",
            "rule 6 mark 731 731",
            "mark eth0 tcp 26 731",
            "mark eth0 udp 26 731",
        ],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_each_method(case: str) -> None:
    each, lines = CASES[case]
    assert list(settings_lines(compile_needs([each]))) == lines


def test_what_two_services_need_stands_once() -> None:
    needs = compile_needs(
        [place(V4, forwarding=GATEWAYING), place("192.0.2.11", forwarding=GATEWAYING)]
    )
    assert list(settings_lines(needs)) == [
        *SILENT,
        f"address {V4} lo",
        "address 192.0.2.11 lo",
    ]


def test_each_interface_has_its_own_table_whatever_else_there_is() -> None:
    def tables(*interfaces: str) -> dict[str, int]:
        needs = compile_needs([place(V4, side=replace(RULE, interface=i)) for i in interfaces])
        return {route.interface: route.table for route in needs.routes}

    assert tables("eth1") == {"eth1": 732}
    assert tables("eth1", "eth0") == {"eth0": 731, "eth1": 732}
    assert tables("eth0", "ens0") == {"ens0": 731, "eth0": 732}


def test_a_service_by_mark_takes_its_addresses_from_the_configuration() -> None:
    service = ServiceSettings(name="web", fwmark=7, forwarding=GATEWAYING)
    side = GuestSide(addresses=(ip_address(V4), ip_address(V6)))
    needs = compile_needs([ServiceBinding(service=service, side=side, address=None)])
    assert list(settings_lines(needs)) == [*SILENT, f"address {V4} lo"]
    masqueraded = replace(service, forwarding=Forwarding.MASQUERADE)
    marks = compile_needs(
        [ServiceBinding(service=masqueraded, side=MARK, address=None, gateways=GATEWAYS)]
    ).marks
    assert [(mark.protocol, mark.port) for mark in marks] == [
        (Protocol.TCP, None),
        (Protocol.UDP, None),
    ]


def test_the_default_gateway_is_looked_at_where_it_is_the_way_back() -> None:
    assert compile_needs([place(V4)]).default_gateways == (GATEWAYS[Family.INET],)
    assert compile_needs([place(V4, side=RULE)]).default_gateways == ()


def test_one_device_cannot_be_two() -> None:
    """The kernel tells GRE devices apart by their ends only."""
    with pytest.raises(NeedsError, match="xenlb-gre with different settings"):
        compile_needs(
            [
                place(V4, forwarding=TUNNEL, tunnel=GRE),
                place("192.0.2.11", forwarding=TUNNEL, tunnel=GRE_CHECKED),
            ]
        )


@pytest.mark.parametrize(
    ("each", "says"),
    [
        (place(V4, None, forwarding=TUNNEL), "a tunnel ends there"),
        (place(V4, None, side=RULE), "routed by it"),
        (replace(place(V4, side=RULE), gateways={}), "director's address"),
        (place(V4, side=GuestSide(interface="$(reboot)")), "not the name of an interface"),
        (
            ServiceBinding(
                service=ServiceSettings(name="web", fwmark=7, forwarding=GATEWAYING),
                side=GuestSide(),
                address=None,
            ),
            "by a firewall mark",
        ),
    ],
)
def test_what_cannot_be_told_is_said(each: ServiceBinding, says: str) -> None:
    with pytest.raises(NeedsError, match=says) as error:
        compile_needs([each])
    assert error.value.hint
