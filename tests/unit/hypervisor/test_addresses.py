"""Finding guests' addresses, with libvirt's test driver and a fake xenstored."""

import asyncio
import itertools
from collections.abc import Iterator
from ipaddress import IPv4Network, ip_address
from pathlib import Path
from typing import Any
from uuid import UUID

import libvirt
import pytest

from tests.fakes.xenstored import FakeXenstored
from tests.unit.hypervisor.running import clock, ended, run, until
from xenlb.hypervisor import hostnet
from xenlb.hypervisor.addresses import AddressFinder, searching
from xenlb.hypervisor.hostnet import HostView
from xenlb.hypervisor.libvirt import LibvirtSource
from xenlb.hypervisor.xenstore import XenstoreSource
from xenlb.model.events import AddressesFound, GuestId, HypervisorEvent
from xenlb.model.found import Source

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
HOST = HostView(own=frozenset({ip_address("10.0.0.1")}), networks=(IPv4Network("10.0.0.0/24"),))


class Running:
    """A finder beside a libvirt and a xenstore source."""

    def __init__(self, folder: Path, domain: Any) -> None:
        self.host = HOST
        self.guest = GuestId(uri=URI, uuid=UUID(domain.UUIDString()))
        self.found: list[AddressesFound] = []
        self.daemon = FakeXenstored(str(folder / "socket"))
        self.libvirt = LibvirtSource(URI, self._emit, clock)
        self.xenstore = XenstoreSource(URI, self._emit, clock, socket_path=self.daemon.path)
        self.finder = AddressFinder(
            self._emit,
            clock,
            {URI: self.libvirt},
            {URI: self.xenstore},
            look=lambda: self.host,
        )
        self.finder.context({ip_address("10.0.0.100")}, ())
        self.tasks: list[asyncio.Task[None]] = []

    def _emit(self, event: HypervisorEvent) -> None:
        if isinstance(event, AddressesFound):
            self.found.append(event)

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

    async def seen(self, number: int) -> list[tuple[str, Source]]:
        await until(lambda: len(self.found) >= number, f"result number {number}")
        assert len(self.found) == number
        return [(str(each.address), each.source) for each in self.found[-1].found]


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
            it.finder.interest({it.guest: 4})
            # The test driver invents a lease, outside of this host's networks.
            assert await it.seen(1) == [("10.0.0.11", Source.INTERFACE_XML)]
            (event,) = it.found
            assert (event.guest, event.incarnation) == (it.guest, 4)
            assert [r.source for r in event.refused] == [Source.LEASE]
            assert "no network" in event.refused[0].reason
            # A network of the configuration lets it in.
            it.finder.context({ip_address("10.0.0.100")}, (IPv4Network("192.168.0.0/16"),))
            (_, second) = await it.seen(2)
            assert second[1] is Source.LEASE

    run(main)


def test_what_a_guest_reports_is_judged_and_kept(short: Path, without: Any) -> None:
    async def main() -> None:
        async with Running(short, without) as it:
            path = "/local/domain/4/attr/vif/0/ipv4/0"
            it.daemon.write(path, "10.0.0.100")
            it.finder.interest({it.guest: 4})
            assert await it.seen(1) == []
            refused = {(r.text, r.reason) for r in it.found[0].refused}
            assert ("10.0.0.100", "it is a service address") in refused
            it.daemon.write(path, "10.0.0.11")  # found at the next look, a second later
            assert await it.seen(2) == [("10.0.0.11", Source.REPORTED)]
            it.daemon.remove("/local/domain/4/attr")  # its agent restarts
            it.finder.context({ip_address("10.0.0.99")}, ())  # has everything looked at again
            await asyncio.sleep(0.5)
            assert len(it.found) == 2
            # Another incarnation starts from nothing.
            it.finder.interest({it.guest: 5})
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
            it.finder.interest({it.guest: 4})
            assert await it.seen(1) == []
            reported = [r for r in it.found[0].refused if r.source is Source.REPORTED]
            assert len(reported) == 16
            assert all(r.text.isprintable() for r in reported)

    run(main)


def test_neighbour_of_the_guests_mac(short: Path, without: Any) -> None:
    async def main() -> None:
        async with Running(short, without) as it:
            it.host = HostView(
                own=HOST.own,
                networks=HOST.networks,
                neighbours={
                    MAC: (ip_address("10.0.0.11"), ip_address("fe80::1")),
                    "00:16:3e:00:00:0c": (ip_address("10.0.0.12"),),
                },
            )
            it.finder.interest({it.guest: 4})
            assert await it.seen(1) == [("10.0.0.11", Source.NEIGHBOUR)]
            # The table forgets an idle neighbour; that is no reason to lose it.
            it.host = HOST
            it.finder.context((), ())
            await asyncio.sleep(0.5)
            assert len(it.found) == 1
            # Somebody else has the address now.
            it.host = HostView(
                own=HOST.own,
                networks=HOST.networks,
                neighbours={"00:16:3e:00:00:0c": (ip_address("10.0.0.11"),)},
            )
            it.finder.context({ip_address("10.0.0.98")}, ())
            assert await it.seen(2) == []

    run(main)


def test_a_libvirt_that_goes_away_takes_no_address_with_it(short: Path, domain: Any) -> None:
    async def main() -> None:
        async with Running(short, domain) as it:
            it.finder.interest({it.guest: 4})
            await it.seen(1)
            await ended(it.tasks.pop(0))  # the libvirt source
            it.finder.context({ip_address("10.0.0.98")}, ())
            await asyncio.sleep(0.5)
            assert len(it.found) == 1

    run(main)


def test_guests_of_no_interest_are_left_alone(short: Path, domain: Any) -> None:
    async def main() -> None:
        async with Running(short, domain) as it:
            it.finder.interest({it.guest: 4})
            await it.seen(1)
            it.finder.interest({})
            it.finder.context((), (IPv4Network("192.168.0.0/16"),))
            await asyncio.sleep(1.5)
            assert len(it.found) == 1
            it.finder.interest({it.guest: 4})  # of interest again: told anew
            assert len(await it.seen(2)) == 2

    run(main)


def test_this_host_is_read() -> None:
    view = hostnet.look()
    assert ip_address("127.0.0.1") in view.own
    assert all(network.num_addresses > 1 for network in view.networks)


def test_watch_of_neighbours_and_addresses_opens_and_closes() -> None:
    async def main() -> None:
        watch = hostnet.NeighbourWatch(lambda mac: None)
        watch.open()
        watch.follow(frozenset({MAC}))
        await asyncio.sleep(0)
        watch.close()

    run(main)


def test_a_guest_without_an_address_is_looked_at_ever_more_rarely() -> None:
    times = [0.0]
    while times[-1] < 86400:
        times.append(times[-1] + searching(times[-1]))
    assert len([at for at in times if at <= 10]) == 11, "every second while it boots"
    assert len(times) < 1550, "a look a minute, in the end"
    late = [after - before for before, after in itertools.pairwise(times)]
    assert all(pause <= max(1, at / 10) + 1e-6 for at, pause in zip(times, late, strict=False))
