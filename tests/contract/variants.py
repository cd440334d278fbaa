"""Every kind of service and server that IPVS knows, as values; the contract runs over all."""

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from itertools import product

from xenlb.ipvs.table import (
    AddressKey,
    Entry,
    Family,
    Forwarding,
    IPAddress,
    MarkKey,
    Protocol,
    SchedulerFlags,
    Server,
    ServerKey,
    Service,
    ServiceKey,
    Table,
    Tunnel,
    TunnelChecksum,
    TunnelType,
)

# Those of Debian 12's kernel; `none` (no scheduler at all) is in the kernel itself.
SCHEDULERS = [
    *("rr", "wrr", "lc", "wlc", "lblc", "lblcr", "dh"),
    *("sh", "sed", "nq", "fo", "ovf", "mh", "none"),
]
VIPS: dict[Family, IPAddress] = {
    Family.INET: IPv4Address("192.0.2.10"),
    Family.INET6: IPv6Address("2001:db8::10"),
}
SERVERS: dict[Family, IPAddress] = {
    Family.INET: IPv4Address("10.0.0.11"),
    Family.INET6: IPv6Address("2001:db8:1::11"),
}


def keys() -> list[ServiceKey]:
    found: list[ServiceKey] = [
        AddressKey(protocol=protocol, address=VIPS[family], port=25)
        for family, protocol in product(Family, Protocol)
    ]
    found += [
        MarkKey(family=family, mark=mark)
        for family, mark in product(Family, (1, 7, 2**31, 2**32 - 1))
    ]
    return found


def services() -> Iterator[Service]:
    """Each is its own service, but for those of one key, which differ in what can be set."""
    for key, scheduler in product(keys(), SCHEDULERS):
        yield Service(key=key, scheduler=scheduler, prefix=key.family.bits)
    for key, scheduler, flags in product(keys()[:4:3], ("sh", "mh", "wrr"), range(1, 8)):
        # ipvsadm prints no third flag of sh and mh; they have none.
        if flags < 4 or scheduler == "wrr":
            some = SchedulerFlags(flags << 3)
            yield Service(key=key, scheduler=scheduler, flags=some, prefix=key.family.bits)
    for key in keys():
        prefixes = (0, 1, 24, 31, 32) if key.family is Family.INET else (1, 48, 64, 127, 128)
        for prefix in prefixes:
            yield Service(key=key, persistence=300, prefix=prefix)
        for persistence in (1, 31 * 86400):
            yield Service(key=key, persistence=persistence, prefix=key.family.bits)
        yield Service(key=key, persistence=60, prefix=key.family.bits, persistence_engine="sip")
        if isinstance(key, MarkKey) or key.protocol is Protocol.UDP:
            yield Service(key=key, one_packet=True, prefix=key.family.bits)
            yield Service(
                key=key,
                scheduler="mh",
                flags=SchedulerFlags.ONE | SchedulerFlags.TWO,
                one_packet=True,
                persistence=20,
                prefix=8,
                persistence_engine="sip",
            )
        if isinstance(key, AddressKey):
            every_port = AddressKey(protocol=key.protocol, address=key.address, port=0)
            yield Service(key=every_port, persistence=300, prefix=key.family.bits)
            last = AddressKey(protocol=key.protocol, address=key.address, port=65535)
            yield Service(key=last, prefix=key.family.bits)
    # A mask with holes, which only IPv4 has and no prefix length says.
    yield Service(key=keys()[0], persistence=30, prefix=-0xFF00FF00)


def tunnels() -> Iterator[Tunnel]:
    yield Tunnel()
    for checksum in TunnelChecksum:
        yield Tunnel(type=TunnelType.GUE, port=5555, checksum=checksum)
    for checksum in (TunnelChecksum.NONE, TunnelChecksum.CHECKSUM):
        yield Tunnel(type=TunnelType.GRE, checksum=checksum)
    yield Tunnel(type=TunnelType.GUE, port=65535)


def servers(key: ServiceKey) -> Iterator[Server]:
    """All are server 11 of the service's family, but the last: that of the other family."""
    port = key.port if isinstance(key, AddressKey) else 0
    here = ServerKey(address=SERVERS[key.family], port=port)
    for forwarding in (Forwarding.MASQUERADE, Forwarding.GATEWAYING):
        for weight in (0, 1, 65535):
            yield Server(key=here, forwarding=forwarding, weight=weight)
        for upper, lower in ((0, 0), (10, 0), (10, 5), (65535, 65535)):
            yield Server(
                key=here,
                forwarding=forwarding,
                weight=1,
                upper_threshold=upper,
                lower_threshold=lower,
            )
    other_port = ServerKey(address=here.address, port=26)
    yield Server(key=other_port, forwarding=Forwarding.MASQUERADE, weight=1)
    for tunnel in tunnels():
        for weight in (0, 1, 65535):
            yield Server(key=here, forwarding=Forwarding.TUNNEL, weight=weight, tunnel=tunnel)
    yield Server(
        key=here,
        forwarding=Forwarding.TUNNEL,
        weight=1,
        upper_threshold=7,
        lower_threshold=3,
        tunnel=Tunnel(type=TunnelType.GUE, port=1, checksum=TunnelChecksum.CHECKSUM),
    )
    other = Family.INET6 if key.family is Family.INET else Family.INET
    there = ServerKey(address=SERVERS[other], port=port)
    yield Server(key=there, forwarding=Forwarding.TUNNEL, weight=1, tunnel=Tunnel())


def side_by_side() -> Table:
    """All services at addresses and marks of their own, so that they fit one table."""
    found = []
    for number, service in enumerate(services()):
        key = service.key
        if isinstance(key, AddressKey):
            own: ServiceKey = replace(key, address=key.address + number)
        else:
            own = replace(
                key, mark=key.mark - number if key.mark == 2**32 - 1 else key.mark + number
            )
        found.append(Entry(service=replace(service, key=own)))
    assert len({entry.service.key for entry in found}) == len(found)
    return Table(entries={entry.service.key: entry for entry in found})


def servers_side_by_side() -> Table:
    """A service for each kind of key with all its servers, each at an address of its own."""
    entries = {}
    for key in keys():
        own = [
            replace(server, key=replace(server.key, address=server.key.address + number))
            for number, server in enumerate(servers(key))
        ]
        service = Service(key=key, prefix=key.family.bits)
        entries[key] = Entry(service=service, servers={server.key: server for server in own})
    return Table(entries=entries)
