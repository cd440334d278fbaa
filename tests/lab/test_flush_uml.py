"""Connection tracking of a server that failed, on a distribution's kernel with IPVS in it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.host import CHECKOUT, venv_directory
from tests.lab.netns import NetNs
from tests.lab.uml import ServerNs, UmlLab

PYTHON = str(venv_directory() / "bin/python")
VIP = "192.0.2.61"
GONE, OTHER = "10.0.0.61", "10.0.0.62"

# Says what answers, and its port, to datagrams from these ports of its own.
ASK = """
import socket, sys
for port, to in (each.split("/") for each in sys.argv[1:]):
    family = socket.AF_INET6 if ":" in to else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as asking:
        asking.bind(("", int(port)))
        asking.settimeout(2)
        asking.connect((to, 53))
        asking.send(b"x")
        try:
            print(port, asking.recv(100).split()[0].decode())
        except OSError:
            print(port, "nobody")
"""


@pytest.fixture(scope="module")
def client(uml: UmlLab) -> Iterator[NetNs]:
    """One whose flows through this host are masqueraded, so that they are tracked."""
    uml.run("modprobe nf_conntrack_netlink; modprobe ip_vs; sysctl -q -w net.ipv4.vs.conntrack=1")
    uml.run("iptables-legacy -t nat -A POSTROUTING -s 192.0.2.0/24 -d 10.0.0.0/24 -j MASQUERADE")
    uml.run("ip6tables-legacy -A FORWARD -m conntrack --ctstate INVALID -j DROP")
    uml.add_vip(VIP)
    for name, address, address6 in (("gone", GONE, "fd00:10::61"), ("other", OTHER, "fd00:10::62")):
        made: ServerNs = uml.server_ns(name, address, address6=address6)
        made.serve("0.0.0.0:80", udp=("0.0.0.0:53", f"[{address6}]:53"))
    made_client = uml.client("asker", "192.0.2.161", address6="fd00:2::161")
    uml.write("/run/lab/ask.py", ASK)
    yield made_client
    uml.run("iptables-legacy -t nat -F; ip6tables-legacy -F")


@pytest.fixture
def service(uml: UmlLab) -> Iterator[None]:
    uml.run(f"ipvsadm -A -u {VIP}:53 -s rr")
    for address in (GONE, OTHER):
        uml.run(f"ipvsadm -a -u {VIP}:53 -r {address}:53 -m")
    yield
    uml.run(f"ipvsadm -D -u {VIP}:53")


def tracked(uml: UmlLab, address: str) -> int:
    """Entries with answers from this address."""
    return uml.out("cat /proc/net/nf_conntrack").count(f" src={address} ")


def answers(client: NetNs, *asked: str) -> dict[str, str]:
    said = client.out(["/usr/bin/python3", "/run/lab/ask.py", *asked])
    return dict(line.split() for line in said.splitlines())


def flushed(uml: UmlLab, address: str, protocol: str = "udp", port: int = 53) -> int:
    script = (
        "from ipaddress import ip_address; from xenlb.ipvs.table import Protocol;"
        "from xenlb.director.conntrack import FailedServer, flush;"
        f"address, protocol = ip_address({address!r}), Protocol({protocol!r});"
        f"print(flush([FailedServer(address=address, protocol=protocol, port={port})]))"
    )
    return int(uml.run([PYTHON, "-c", script], cwd=str(CHECKOUT)).out)


def test_the_kernel_does_it_with_expire_nodest_conn(
    uml: UmlLab, client: NetNs, service: None
) -> None:
    uml.run("sysctl -q -w net.ipv4.vs.expire_nodest_conn=1")
    flows = [f"{port}/{VIP}" for port in range(3000, 3004)]
    first = answers(client, *flows)
    assert sorted(first.values()) == ["gone", "gone", "other", "other"]
    assert tracked(uml, GONE) == 2
    uml.run(f"ipvsadm -d -u {VIP}:53 -r {GONE}:53")
    uml.wait_until(f"! ipvsadm -Lnc | grep -q {GONE}:53", 5, "IPVS to forget")
    uml.wait_until(f"! grep -q src={GONE} /proc/net/nf_conntrack", 5, "conntrack to forget")
    assert set(answers(client, *flows).values()) == {"other"}
    assert tracked(uml, OTHER) == 4
    assert flushed(uml, GONE) == 0, "nothing is left to delete"


def test_without_it_ipvs_keeps_the_flow_whatever_is_flushed(
    uml: UmlLab, client: NetNs, service: None
) -> None:
    """Why the sysctl is needed, and why `flush` is not enough."""
    uml.run("sysctl -q -w net.ipv4.vs.expire_nodest_conn=0")
    flows = [f"{port}/{VIP}" for port in range(3100, 3104)]
    first = answers(client, *flows)
    uml.run(f"ipvsadm -d -u {VIP}:53 -r {GONE}:53")
    assert tracked(uml, GONE) == 2
    assert flushed(uml, GONE) == 2
    assert tracked(uml, GONE) == 0
    again = answers(client, *flows)
    assert again == {port: "other" if who == "other" else "nobody" for port, who in first.items()}
    uml.run("sysctl -q -w net.ipv4.vs.expire_nodest_conn=1")


@pytest.mark.parametrize(("gone", "other"), [(GONE, OTHER), ("fd00:10::61", "fd00:10::62")])
def test_only_entries_of_that_server_are_deleted(
    uml: UmlLab, client: NetNs, gone: str, other: str
) -> None:
    """Flows that do not come through IPVS: those of other rules."""
    said = answers(client, f"3200/{gone}", f"3201/{gone}", f"3202/{other}")
    assert said == {"3200": "gone", "3201": "gone", "3202": "other"}
    before = int(uml.text("/proc/sys/net/netfilter/nf_conntrack_count"))
    assert flushed(uml, gone, port=54) == 0
    assert flushed(uml, gone, protocol="tcp") == 0
    assert flushed(uml, gone) == 2
    assert flushed(uml, gone) == 0
    assert int(uml.text("/proc/sys/net/netfilter/nf_conntrack_count")) <= before - 2
    assert flushed(uml, other, port=0) >= 1
