"""Finding guests' addresses, with libvirt's test driver and a fake xenstored."""

import asyncio
import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import IPv4Network, ip_address
from pathlib import Path
from typing import Any
from uuid import UUID

import libvirt
import pytest

from tests.fakes.xenstored import FakeXenstored
from tests.unit.hypervisor.running import clock, ended, run, until
from xenlb.hypervisor.addresses import finder, host_network
from xenlb.hypervisor.addresses.finder import AddressFinder, search_interval
from xenlb.hypervisor.addresses.host_network import HostNetworkTables
from xenlb.hypervisor.addresses.host_network_cache import MOST_PROBED, HostNetworkCache
from xenlb.hypervisor.libvirt.domain_xml import Interface
from xenlb.hypervisor.libvirt.source import LibvirtSource
from xenlb.hypervisor.libvirt.xml_text import Malformed
from xenlb.hypervisor.xenstore.source import XenstoreSource
from xenlb.ipvs.table import IPAddress
from xenlb.model.addresses import AddressSource
from xenlb.model.domain import GuestId
from xenlb.model.events import AddressesFound, HypervisorEvent
from xenlb.model.reserved_addresses import STRANGER, AddressesInUse, HostNetwork, HostNetworkChanged

URI = "test:///default"
MAC = "00:16:3e:00:00:0b"
XML = f"""
<domain type='test'>
  <name>mail1</name><memory>1024</memory><os><type>hvm</type></os>
  <devices><interface type='bridge'>
    <mac address='{MAC}'/><source bridge='br0'/>
    <ip address='10.0.0.11' family='ipv4'/><target dev='vif4.0'/>
  </interface></devices>
</domain>
"""
WITHOUT = XML.replace("<ip address='10.0.0.11' family='ipv4'/>", "")
OTHER = "00:16:3e:00:00:0c"
HOST = HostNetworkTables(
    own=frozenset({ip_address("10.0.0.1")}),
    gateways=frozenset({ip_address("10.0.0.254")}),
    networks={
        "br0": (IPv4Network("10.0.0.0/24"),),
        "eth1": (IPv4Network("10.99.0.0/24"),),  # no guest is there
    },
)


def taken(*texts: str) -> AddressesInUse:
    return AddressesInUse(services=frozenset(map(ip_address, texts)))


class Running:
    """A finder beside a libvirt and a xenstore source."""

    def __init__(self, folder: Path, domain: Any, host: HostNetworkTables = HOST) -> None:
        self.host = host
        self.guest = GuestId(uri=URI, uuid=UUID(domain.UUIDString()))
        self.found: list[AddressesFound] = []
        self.hosts: list[HostNetwork] = []
        self.nudged: list[IPAddress] = []
        self.nudge: Callable[[IPAddress], None] = self.nudged.append
        self.daemon = FakeXenstored(str(folder / "socket"))
        self.libvirt = LibvirtSource(URI, self._emit, clock)
        self.xenstore = XenstoreSource(URI, self._emit, clock, socket_path=self.daemon.path)
        self.finder = AddressFinder(
            self._emit,
            clock,
            {URI: self.libvirt},
            {URI: self.xenstore},
            read_host_network=lambda: self.host,
            probe_neighbour=self._nudge,
        )
        self.finder.set_policy(taken("10.0.0.100"), ())
        self.tasks: list[asyncio.Task[None]] = []

    def _emit(self, event: HypervisorEvent) -> None:
        match event:
            case AddressesFound():
                self.found.append(event)
            case HostNetworkChanged():
                self.hosts.append(event.host)
            case _:
                pass

    def _nudge(self, address: IPAddress) -> None:
        self.nudge(address)

    async def __aenter__(self) -> "Running":
        await self.daemon.start()
        sources = (self.libvirt, self.xenstore, self.finder)
        self.tasks = [asyncio.create_task(source.run()) for source in sources]
        await until(lambda: self.libvirt.connected and self.xenstore.connected, "connected")
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self.tasks:
            await ended(task)
        await self.daemon.stop()

    async def seen(self, number: int) -> list[tuple[str, AddressSource]]:
        await until(lambda: len(self.found) >= number, f"result number {number}")
        assert len(self.found) == number
        return [(str(each.address), each.source) for each in self.found[-1].candidates]


def _defined(xml: str) -> Iterator[Any]:
    connection = libvirt.open(URI)
    domain = connection.defineXML(xml)
    domain.create()
    yield domain
    domain.destroy()
    domain.undefine()
    connection.close()


@pytest.fixture
def domain() -> Iterator[Any]:
    yield from _defined(XML)


@pytest.fixture
def without() -> Iterator[Any]:
    yield from _defined(WITHOUT)


def test_interface_xml_comes_first_and_leases_follow(short: Path, domain: Any) -> None:
    async def main() -> None:
        async with Running(short, domain) as it:
            it.finder.search_for({it.guest: 4})
            # The test driver invents a lease, outside of the network of br0.
            assert await it.seen(1) == [("10.0.0.11", AddressSource.INTERFACE_XML)]
            (event,) = it.found
            assert (event.guest, event.incarnation) == (it.guest, 4)
            assert [r.source for r in event.rejected] == [AddressSource.LEASE]
            assert "no network" in event.rejected[0].reason
            # A network of the configuration adds none.
            (text,) = (r.text for r in event.rejected)
            it.finder.set_policy(taken("10.0.0.100"), (IPv4Network("192.168.0.0/16"),))
            it.host = replace(HOST, networks={"br0": (IPv4Network("192.168.0.0/16"),)})
            assert await it.seen(2) == [
                ("10.0.0.11", AddressSource.INTERFACE_XML),
                (text, AddressSource.LEASE),
            ]

    run(main)


def test_reported_addresses_are_checked_and_kept(short: Path, without: Any) -> None:
    async def main() -> None:
        async with Running(short, without) as it:
            path = "/local/domain/4/attr/vif/0/ipv4/0"
            it.daemon.write(path, "10.0.0.100")
            it.finder.search_for({it.guest: 4})
            assert await it.seen(1) == []
            refused = {(r.text, r.reason) for r in it.found[0].rejected}
            assert ("10.0.0.100", "it is a service address") in refused
            it.daemon.write(path, "10.0.0.11")  # found at the next look, a second later
            assert await it.seen(2) == [("10.0.0.11", AddressSource.REPORTED)]
            it.daemon.remove("/local/domain/4/attr")  # its agent restarts
            it.finder.set_policy(taken("10.0.0.99"), ())  # has everything looked at again
            await asyncio.sleep(0.5)
            assert len(it.found) == 2
            # Another incarnation starts from nothing.
            it.finder.search_for({it.guest: 5})
            assert await it.seen(3) == []
            assert it.found[-1].incarnation == 5

    run(main)


def test_flood_of_reports_is_cut(short: Path, without: Any) -> None:
    async def main() -> None:
        async with Running(short, without) as it:
            for vif in range(20):
                for number in range(20):
                    it.daemon.write(
                        f"/local/domain/4/attr/vif/{vif}/ipv4/{number}", f"\x1b[2J{vif}.{number}"
                    )
            it.finder.search_for({it.guest: 4})
            assert await it.seen(1) == []
            reported = [r for r in it.found[0].rejected if r.source is AddressSource.REPORTED]
            assert len(reported) == 16
            assert all(r.text.isprintable() for r in reported)

    run(main)


def test_neighbour_of_the_guests_mac(short: Path, without: Any) -> None:
    both = {
        MAC: (ip_address("10.0.0.11"), ip_address("fe80::1")),
        OTHER: (ip_address("10.0.0.12"),),
    }

    async def main() -> None:
        async with Running(short, without, replace(HOST, neighbours=both)) as it:
            it.finder.search_for({it.guest: 4})
            assert await it.seen(1) == [("10.0.0.11", AddressSource.NEIGHBOUR)]
            # The table forgets an idle neighbour; that is no reason to lose it.
            it.host = HOST
            it.finder.set_policy(taken(), ())
            await asyncio.sleep(0.5)
            assert len(it.found) == 1
            # Somebody else has the address now.
            it.host = HostNetworkTables(
                own=HOST.own,
                networks=HOST.networks,
                neighbours={OTHER: (ip_address("10.0.0.11"),)},
            )
            it.finder.set_policy(taken("10.0.0.98"), ())
            assert await it.seen(2) == []

    run(main)


def test_addresses_stay_while_libvirt_is_away(short: Path, domain: Any) -> None:
    async def main() -> None:
        async with Running(short, domain) as it:
            it.finder.search_for({it.guest: 4})
            await it.seen(1)
            await ended(it.tasks.pop(0))  # the libvirt source
            it.finder.set_policy(taken("10.0.0.98"), ())
            await asyncio.sleep(0.5)
            assert len(it.found) == 1

    run(main)


def test_guests_that_are_not_searched_for_are_not_reported(
    short: Path, domain: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finder, "FASTEST", 0.02)

    async def main() -> None:
        async with Running(short, domain) as it:
            it.finder.search_for({it.guest: 4})
            await it.seen(1)
            it.finder.search_for({})
            it.finder.set_policy(taken(), (IPv4Network("192.168.0.0/16"),))
            await asyncio.sleep(0.3)
            assert len(it.found) == 1
            it.finder.search_for({it.guest: 4})  # searched for again: reported again
            assert await it.seen(2) == [("10.0.0.11", AddressSource.INTERFACE_XML)]

    run(main)


def test_host_network_is_read() -> None:
    view = host_network.read_host_network()
    assert ip_address("127.0.0.1") in view.own
    assert "lo" in view.networks
    assert not any(gateway in view.own for gateway in view.gateways)


ROUTE = """\
Iface	Destination	Gateway 	Flags	RefCnt	Use	Metric	Mask		MTU	Window	IRTT
eth0	00000000	FE00000A	0003	0	0	0	00000000	0	0	0
br0	0000000A	00000000	0001	0	0	0	00FFFFFF	0	0	0
vif4.0	0B02000A	00000000	0005	0	0	0	FFFFFFFF	0	0	0
*	00000B0A	00000000	0201	0	0	0	00FFFFFF	0	0	0
"""
ROUTE_6 = """\
20010db8000000000000000000000000 40 00000000000000000000000000000000 00 \
00000000000000000000000000000000 00000100 00000001 00000000 00000001      br0
00000000000000000000000000000000 00 00000000000000000000000000000000 00 \
20010db80000000000000000000000fe 00000400 00000001 00000000 00000003     eth0
20010db8000000000000000000000001 80 00000000000000000000000000000000 00 \
00000000000000000000000000000000 00000000 00000003 00000000 80200001      br0
"""


def test_routes_are_read(tmp_path: Path) -> None:
    (tmp_path / "route").write_text(ROUTE)
    (tmp_path / "ipv6_route").write_text(ROUTE_6)
    assert [
        (name, str(network), str(hop)) for name, network, hop in host_network.read_routes(tmp_path)
    ] == [
        ("eth0", "0.0.0.0/0", "10.0.0.254"),
        ("br0", "10.0.0.0/24", "None"),
        ("vif4.0", "10.0.2.11/32", "None"),
        ("br0", "2001:db8::/64", "None"),
        ("eth0", "::/0", "2001:db8::fe"),
    ]
    (tmp_path / "ipv6_route").unlink()
    assert len(list(host_network.read_routes(tmp_path))) == 3
    line = ROUTE.splitlines(keepends=True)[2]
    (tmp_path / "route").write_text(line * (2 * host_network.MOST_ROUTES))
    assert len(list(host_network.read_routes(tmp_path))) == host_network.MOST_ROUTES


def test_carrier_interfaces_of_a_guest(tmp_path: Path) -> None:
    for name in ("br0", "vif4.0", "eth0", "host0", "eth0.99"):
        (tmp_path / name).mkdir()
    (tmp_path / "vif4.0/master").symlink_to("../br0")
    for upper, kind in (("host0", "macvlan"), ("eth0.99", "vlan")):
        (tmp_path / upper / "uevent").write_text(f"DEVTYPE={kind}\nINTERFACE={upper}\n")
        (tmp_path / f"eth0/upper_{upper}").symlink_to(f"../{upper}")
    assert host_network.carrier_interfaces(["vif4.0"], tmp_path) == {"vif4.0", "br0"}
    assert host_network.carrier_interfaces(["eth0"], tmp_path) == {"eth0", "host0"}
    assert host_network.carrier_interfaces(["gone", "../etc"], tmp_path) == {"gone"}


def test_watch_of_neighbours_and_addresses_opens_and_closes() -> None:
    async def main() -> None:
        watch = host_network.NeighbourWatch(lambda mac: None)
        watch.open()
        watch.set_macs(frozenset({MAC}))
        await asyncio.sleep(0)
        watch.close()

    run(main)


def test_reported_address_must_be_in_a_network_of_the_guest_s_interfaces(
    short: Path, without: Any
) -> None:
    """An address in another network of this host, of a machine that is no guest, of a gateway."""

    host = replace(HOST, neighbours={OTHER: (ip_address("10.0.0.77"),)})

    async def main() -> None:
        async with Running(short, without, host) as it:
            lies = ("10.99.0.5", "10.0.0.254", "10.0.0.77")
            for number, text in enumerate(lies):
                it.daemon.write(f"/local/domain/4/attr/vif/0/ipv4/{number}", text)
            it.finder.search_for({it.guest: 4})
            assert await it.seen(1) == []
            reported = [r for r in it.found[0].rejected if r.source is AddressSource.REPORTED]
            reasons = {each.text: each.reason for each in reported}
            assert set(reasons) == set(lies)
            assert "no network of this host's interfaces" in reasons["10.99.0.5"]
            assert "gateway" in reasons["10.0.0.254"]
            assert reasons["10.0.0.77"] == STRANGER
            assert set(it.nudged) == {ip_address("10.0.0.77")}  # is that machine still there?
            it.host = HOST  # it is not
            assert await it.seen(2) == [("10.0.0.77", AddressSource.REPORTED)]

    run(main)


def test_reported_address_is_probed_before_it_is_used(short: Path, without: Any) -> None:
    """A router that is not in the neighbour table yet is never used as a server."""

    async def main() -> None:
        async with Running(short, without) as it:

            def nudge(address: IPAddress) -> None:
                it.nudged.append(address)
                if address == ip_address("10.0.0.77"):
                    it.host = replace(HOST, neighbours={OTHER: (address,)})

            it.nudge = nudge
            base = "/local/domain/4/attr/vif/0/ipv4"
            it.daemon.write(f"{base}/0", "10.0.0.77")
            it.daemon.write(f"{base}/1", "10.0.0.11")
            it.finder.search_for({it.guest: 4})
            assert await it.seen(1) == [("10.0.0.11", AddressSource.REPORTED)]
            assert STRANGER in [each.reason for each in it.found[0].rejected]
            assert it.nudged.count(ip_address("10.0.0.11")) == 1

    run(main)


def test_number_of_probed_addresses_of_a_guest_is_limited() -> None:
    nudged: list[IPAddress] = []
    sight = HostNetworkCache(lambda event: None, clock, lambda: HOST, nudged.append)
    asked: set[IPAddress] = set()
    waits = [sight.probe_unknown([ip_address(f"10.0.0.{n}")], asked) for n in range(1, 200)]
    assert waits == [True] * MOST_PROBED + [False] * (199 - MOST_PROBED)
    assert len(nudged) == MOST_PROBED


def test_host_network_is_reported_to_the_model(short: Path, without: Any) -> None:
    seen = {OTHER: (ip_address("10.0.0.77"),), MAC: (ip_address("10.0.0.11"),)}

    async def main() -> None:
        async with Running(short, without, replace(HOST, neighbours=seen)) as it:
            it.finder.set_policy(taken(), (), [ip_address("10.0.0.77"), ip_address("10.0.0.11")])
            it.finder.search_for({it.guest: 4})
            stranger = frozenset({ip_address("10.0.0.77")})
            await until(lambda: bool(it.hosts) and it.hosts[-1].strangers == stranger, "told")
            assert (it.hosts[-1].own, it.hosts[-1].gateways) == (HOST.own, HOST.gateways)
            # Before the guest was looked at, none was taken for a stranger.
            assert {each.strangers for each in it.hosts} <= {frozenset(), stranger}

    run(main)


def test_malformed_xml_is_reported(short: Path, without: Any, monkeypatch: Any) -> None:
    def broken(text: str) -> tuple[Interface, ...]:
        raise Malformed("it is longer than it may be")

    monkeypatch.setattr(finder, "interfaces", broken)

    async def main() -> None:
        async with Running(short, without) as it:
            it.finder.search_for({it.guest: 4})
            assert await it.seen(1) == []
            assert [str(each) for each in it.found[0].rejected] == [
                "the domain's XML (interface xml): it is longer than it may be"
            ]

    run(main)


def test_a_guest_without_an_address_is_looked_at_ever_more_rarely() -> None:
    times = [0.0]
    while times[-1] < 86400:
        times.append(times[-1] + search_interval(times[-1]))
    assert len([at for at in times if at <= 10]) == 11, "every second while it boots"
    assert len(times) < 1550, "a look a minute, in the end"
    late = [after - before for before, after in itertools.pairwise(times)]
    assert all(pause <= max(1, at / 10) + 1e-6 for at, pause in zip(times, late, strict=False))
