"""What Kernel wrote, as two readers that share no code with it see it: ipvsadm and pyroute2.

Real kernel only. Of pyroute2 0.9.7 its decoder is used, attribute by attribute, and not its
IPVSService and IPVSDest, which put defaults in place of what the kernel said.
"""

import subprocess
import sys
from collections.abc import Iterator
from ipaddress import IPv4Address, ip_address
from typing import Any

import pytest
from pyroute2 import IPVS
from pyroute2.netlink import NLM_F_DUMP, NLM_F_REQUEST
from pyroute2.netlink.generic.ipvs import IPVS_CMD_GET_DEST, IPVS_CMD_GET_SERVICE, ipvsmsg

from tests.contract import variants
from tests.ipvsadm.parse import parse, parse_op
from xenlb.ipvs import text
from xenlb.ipvs.diff import Owned, diff
from xenlb.ipvs.kernel import KernelTable
from xenlb.ipvs.op import AddServer, AddService, DeleteService
from xenlb.ipvs.table import (
    AddressKey,
    Entry,
    Forwarding,
    MarkKey,
    Server,
    ServerKey,
    Service,
    Table,
    Tunnel,
    TunnelChecksum,
    TunnelType,
    mask_of,
)

FLAG_PERSISTENT, FLAG_HASHED, FLAG_ONE_PACKET = 1, 2, 4
FORWARDING = {Forwarding.MASQUERADE: 0, Forwarding.TUNNEL: 2, Forwarding.GATEWAYING: 3}
TUNNELS = {TunnelType.IPIP: 0, TunnelType.GUE: 1, TunnelType.GRE: 2}
CHECKSUMS = {TunnelChecksum.NONE: 0, TunnelChecksum.CHECKSUM: 1, TunnelChecksum.REMOTE: 2}


@pytest.fixture(scope="module")
def pyroute2() -> Iterator[Any]:
    with IPVS() as ipvs:
        yield ipvs


@pytest.fixture(params=["services", "servers"])
def table(request: pytest.FixtureRequest, kernel: KernelTable) -> Table:
    """Every variant, in the kernel."""
    made = {"services": variants.side_by_side, "servers": variants.servers_side_by_side}
    table: Table = made[request.param]()
    assert kernel.apply(diff(table, Table(), Owned())) == ()
    return table


def ipvsadm(*words: str) -> str:
    return subprocess.run(
        ["/usr/sbin/ipvsadm", *words], stdout=subprocess.PIPE, text=True, check=True, timeout=60
    ).stdout


def without_thresholds(table: Table) -> Table:
    """What is left of a table that ipvsadm 1.31 saved."""
    entries = {}
    for key, entry in table.entries.items():
        servers = [
            Server(key=each.key, forwarding=each.forwarding, weight=each.weight, tunnel=each.tunnel)
            for each in entry.servers.values()
        ]
        entries[key] = Entry(service=entry.service, servers={each.key: each for each in servers})
    return Table(entries=entries)


def test_ipvsadm_prints_what_we_would(table: Table) -> None:
    printed = ipvsadm("-S", "-n")
    assert len(printed) > 1000
    assert sorted(printed.splitlines(True)) == sorted(text.dump(table).splitlines(True))
    assert parse(printed) == without_thresholds(table)


def test_ipvsadm_prints_in_our_order(kernel: KernelTable, table: Table) -> None:
    """But for marks more than 2**31 apart, whose difference overflows in ipvsadm."""
    far = [key for key in table.entries if isinstance(key, MarkKey) and key.mark >= 2**31]
    near = {key: entry for key, entry in table.entries.items() if key not in far}
    assert len(near) > 5
    assert kernel.apply([DeleteService(key=key) for key in far]) == ()
    assert ipvsadm("-S", "-n") == text.dump(Table(entries=near))


def test_ipvsadm_shows_the_thresholds(table: Table) -> None:
    shown = ipvsadm("-L", "-n", "--thresholds")
    want = sorted(
        (str(each.upper_threshold), str(each.lower_threshold))
        for entry in table.entries.values()
        for each in entry.servers.values()
    )
    lines = [line.split() for line in shown.splitlines() if line.startswith("  -> ")][1:]
    assert sorted((line[2], line[3]) for line in lines) == want


def test_ipvsadm_takes_the_lines_of_our_operations(kernel: KernelTable, table: Table) -> None:
    """And what it makes of them is the same table, thresholds and marks included."""
    lines = [str(op) for op in diff(table, Table(), Owned())]
    ipvsadm("-C")
    assert kernel.read().table == Table()
    restored = subprocess.run(
        ["/usr/sbin/ipvsadm", "-R"],
        input="".join(f"{line}\n" for line in lines),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=300,
    )
    assert restored.stdout == ""
    assert restored.returncode == 0
    assert kernel.read().table == table


def test_methods_that_only_other_tools_set(kernel: KernelTable) -> None:
    """The kernel's interface has two more forwarding methods; ipvsadm has no words for them."""
    service = parse_op("-A -t 192.0.2.10:25")
    assert isinstance(service, AddService)
    servers = {}
    for number, method in enumerate(Forwarding, 1):
        key = ServerKey(address=IPv4Address("10.0.0.0") + number, port=25)
        tunnel = Tunnel() if method is Forwarding.TUNNEL else None
        servers[key] = Server(key=key, forwarding=method, weight=1, tunnel=tunnel)
    added = [AddServer(service=service.service.key, server=each) for each in servers.values()]
    assert kernel.apply([service, *added]) == ()
    table = kernel.read().table
    [entry] = table.entries.values()
    assert entry.servers == servers
    assert ipvsadm("-S", "-n") == text.dump(table)


def test_what_ipvsadm_spells_otherwise(kernel: KernelTable) -> None:
    """Rules as people write them: ipvsadm and parse.py make the same of each line."""
    rules = """
        -A -t 192.0.2.1:80
        --add-service --tcp-service=192.0.2.2:80 --scheduler rr --persistent
        -At 192.0.2.3:80 -srr -p200
        -A -t=192.0.2.4:80 -s=lc -p 30 -M 255.255.0.0
        -A --sctp-service 192.0.2.5:80 --sched-flags flag-1,flag-2 --scheduler wrr
        -A -u 192.0.2.6:53 --ops
        -A -f 9 -6 -p 30 -M 48
        -A -t [2001:db8::1]:80
        -A -t 2001:db8::2 -p
        -a -t 192.0.2.1:80 -r 10.0.0.1
        -a -t 192.0.2.1:80 -r 10.0.0.2:81 -m --weight=0
        --add-server --tcp-service 192.0.2.1:80 --real-server 10.0.0.3 --ipip --u-threshold 9 -y 3
        -a -t 192.0.2.1:80 -r 10.0.0.4 -i --tun-type gue --tun-port 6080 --tun-remcsum
        -a -f 9 -6 -r 2001:db8::9 -w 7
        -a -t [2001:db8::1]:80 -r [2001:db8::3]:8080 --masquerading
        -a -t [2001:db8::1]:80 -r 10.0.0.4 -i --tun-type gre --tun-csum
        ipvsadm -e -t 192.0.2.1:80 -r 10.0.0.2:81 --masquerading -w 44
        -E -t 192.0.2.1:80 -s sh -b sh-port
        -d -t 192.0.2.1:80 -r 10.0.0.1:80
        -D -f 9 -6
    """
    rules = "".join(f"{line.strip()}\n" for line in rules.strip().splitlines())
    done = subprocess.run(
        ["/usr/sbin/ipvsadm", "-R"], input=rules, text=True, capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert kernel.read().table == parse(rules)


def test_pyroute2_reads_what_we_wrote(pyroute2: Any, table: Table) -> None:
    entries: dict[Any, Entry] = {}
    for message in dump(pyroute2, IPVS_CMD_GET_SERVICE):
        found = dict(message.get("attrs"))["IPVS_CMD_ATTR_SERVICE"]
        key = tuple(identity(found))
        assert key not in entries
        [entry] = [each for each in table.entries.values() if tuple(wanted_identity(each)) == key]
        entries[key] = entry
        assert service_numbers(found) == wanted_service(entry.service)
        servers = {server_key(each): server_numbers(each) for each in servers_of(pyroute2, found)}
        assert servers == {
            (s.address, s.port): wanted_server(entry.servers[s]) for s in entry.servers
        }
    assert len(entries) == len(table.entries)


def dump(pyroute2: Any, command: int, attributes: Any = None) -> list[Any]:
    message = ipvsmsg()
    message["cmd"] = command
    message["version"] = 1
    if attributes is not None:
        message["attrs"] = attributes
    found = pyroute2.nlm_request(
        message, msg_type=pyroute2.prid, msg_flags=NLM_F_REQUEST | NLM_F_DUMP
    )
    return list(found)


def servers_of(pyroute2: Any, service: Any) -> Iterator[Any]:
    attributes = [
        (f"IPVS_SVC_ATTR_{name}", service.get_attr(f"IPVS_SVC_ATTR_{name}"))
        for name in ("AF", "PROTOCOL", "ADDR", "PORT", "FWMARK")
        if service.get_attr(f"IPVS_SVC_ATTR_{name}") is not None
    ]
    nested = {"attrs": attributes}
    for message in dump(pyroute2, IPVS_CMD_GET_DEST, [("IPVS_CMD_ATTR_SERVICE", nested)]):
        yield dict(message.get("attrs"))["IPVS_CMD_ATTR_DEST"]


def identity(found: Any) -> Iterator[object]:
    yield found.get_attr("IPVS_SVC_ATTR_AF")
    mark = found.get_attr("IPVS_SVC_ATTR_FWMARK")
    if mark is not None:
        yield mark
    else:
        yield found.get_attr("IPVS_SVC_ATTR_PROTOCOL")
        yield ip_address(found.get_attr("IPVS_SVC_ATTR_ADDR"))
        yield found.get_attr("IPVS_SVC_ATTR_PORT")


def wanted_identity(entry: Entry) -> Iterator[object]:
    key = entry.service.key
    yield {"inet": 2, "inet6": 10}[key.family]
    if isinstance(key, AddressKey):
        yield {"tcp": 6, "udp": 17, "sctp": 132}[key.protocol]
        yield key.address
        yield key.port
    else:
        yield key.mark


def service_numbers(found: Any) -> dict[str, object]:
    flags = found.get_attr("IPVS_SVC_ATTR_FLAGS")
    # pyroute2 takes every netmask for an IPv4 address; in an IPv6 service it is a number.
    netmask = int(IPv4Address(found.get_attr("IPVS_SVC_ATTR_NETMASK")))
    if found.get_attr("IPVS_SVC_ATTR_AF") == 10:
        netmask = int.from_bytes(netmask.to_bytes(4, "big"), sys.byteorder)
    return {
        "scheduler": found.get_attr("IPVS_SVC_ATTR_SCHED_NAME"),
        "flags": flags["flags"] & ~FLAG_HASHED,
        "timeout": found.get_attr("IPVS_SVC_ATTR_TIMEOUT"),
        "netmask": netmask,
        "engine": found.get_attr("IPVS_SVC_ATTR_PE_NAME"),
    }


def wanted_service(service: Service) -> dict[str, object]:
    flags = int(service.flags)
    flags |= FLAG_PERSISTENT if service.persistence is not None else 0
    flags |= FLAG_ONE_PACKET if service.one_packet else 0
    inet = service.key.family == "inet"
    return {
        "scheduler": service.scheduler,
        "flags": flags,
        "timeout": service.persistence or 0,
        "netmask": mask_of(service.prefix) if inet else service.prefix,
        "engine": service.persistence_engine or None,
    }


def server_key(found: Any) -> tuple[object, object]:
    return ip_address(found.get_attr("IPVS_DEST_ATTR_ADDR")), found.get_attr("IPVS_DEST_ATTR_PORT")


def server_numbers(found: Any) -> dict[str, object]:
    names = ["FWD_METHOD", "WEIGHT", "U_THRESH", "L_THRESH", "ADDR_FAMILY"]
    names += ["TUN_TYPE", "TUN_PORT", "TUN_FLAGS"]
    numbers = {name: found.get_attr(f"IPVS_DEST_ATTR_{name}") for name in names}
    # pyroute2 takes the port of a tunnel for a number in host order; it is in network order.
    numbers["TUN_PORT"] = int.from_bytes(numbers["TUN_PORT"].to_bytes(2, sys.byteorder), "big")
    return numbers


def wanted_server(server: Server) -> dict[str, object]:
    tunnel = server.tunnel
    key: ServerKey = server.key
    return {
        "FWD_METHOD": FORWARDING[server.forwarding],
        "WEIGHT": server.weight,
        "U_THRESH": server.upper_threshold,
        "L_THRESH": server.lower_threshold,
        "ADDR_FAMILY": 2 if key.address.version == 4 else 10,
        "TUN_TYPE": TUNNELS[tunnel.type] if tunnel else 0,
        "TUN_PORT": tunnel.port if tunnel else 0,
        "TUN_FLAGS": CHECKSUMS[tunnel.checksum] if tunnel else 0,
    }
