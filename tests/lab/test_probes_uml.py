"""Probes made of bare packets, and dns, on a distribution's kernel with IPVS in it."""

from __future__ import annotations

import json
import shlex
import signal
from typing import Any

import pytest

from tests.lab.host import CHECKOUT, LabError, venv_directory
from tests.lab.needed import lacking
from tests.lab.uml import ServerNs, UmlLab
from tests.lab.unpacked import program
from xenlb.model.checks import Asks, Dns, Icmp, Tcp, Udp
from xenlb.model.settings import Check
from xenlb.store.json_codec import dumps

PYTHON = str(venv_directory() / "bin/python")

Said = tuple[bool | None, str, float | None]


def asked(uml: UmlLab, *targets: dict[str, Any], rounds: int = 1) -> list[Said]:
    """The answers to the director's probes; with several rounds all have to be the same."""
    question = dumps({"targets": targets, "rounds": rounds})
    command = f"echo {shlex.quote(question)} | {PYTHON} -m tests.lab.probes_inside"
    told = json.loads(uml.run(command, cwd=str(CHECKOUT), timeout=120).out)
    assert told["others"] == []
    return [(up, detail, share) for up, detail, share in told["answers"]]


def target(
    asks: Asks, address: str, port: int = 80, timeout: float = 1.0, **more: Any
) -> dict[str, Any]:
    check = Check(type=type(asks).__name__.lower(), asks=asks, timeout=timeout)
    return {"check": check, "address": address, "port": port, **more}


@pytest.fixture(scope="module")
def server(uml: UmlLab) -> ServerNs:
    """A server with nothing but its own address, which serves on all that it may get."""
    made = uml.server_ns("server51", "10.0.0.51", address6="fd00:10::51")
    made.serve("0.0.0.0:80", "[::]:80")
    # It would send on to its gateway, which is the director, what is not for an address of its own.
    made.run("sysctl -q -w net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
    uml.run(["modprobe", "ip_vs"])
    return made


WAYS = {
    # service address, the server's, how ipvsadm writes the method, the tunnel, where the server has
    # the address, and what makes that
    "gatewaying": ("192.0.2.51", "10.0.0.51", "-g", None, "lo", "true"),
    "gatewaying6": ("fd00:2::51", "fd00:10::51", "-g", None, "lo", "true"),
    "ipip": ("192.0.2.52", "10.0.0.51", "-i", "ipip", "tunl0", "true"),
    "ipip6": ("fd00:2::52", "fd00:10::51", "-i", "ipip", "ip6tnl0", "true"),
    "gre": (
        *("192.0.2.53", "10.0.0.51", "-i --tun-type gre", "gre", "gre1"),
        "ip link add gre1 type gre local 10.0.0.51",
    ),
    "gue": (
        *("192.0.2.54", "10.0.0.51", "-i --tun-type gue --tun-port 6080", "gue", "tunl0"),
        "ip fou add port 6080 gue",
    ),
}


@pytest.mark.parametrize(
    ("way", "accept_local"),
    [
        *(("gatewaying", 0), ("gatewaying", 1), ("gatewaying6", 0)),
        *(("ipip", 1), ("ipip6", 0), ("gre", 0), ("gue", 0)),
    ],
)
def test_a_service_address_through_a_server(
    uml: UmlLab, server: ServerNs, way: str, accept_local: int
) -> None:
    vip, address, method, tunnel, device, made_by = WAYS[way]
    six = ":" in vip
    length = 128 if six else 32
    where, own = (f"[{vip}]:80", f"[{address}]:80") if six else (f"{vip}:80", f"{address}:80")
    uml.run(
        f"sysctl -q -w net.ipv4.conf.all.accept_local={accept_local} net.ipv4.conf.all.rp_filter=0 "
        "net.ipv4.conf.br0.rp_filter=0; ip neigh flush all"
    )
    uml.add_vip(vip)
    uml.run(f"ipvsadm -A -t {where} -s rr && ipvsadm -a -t {where} -r {own} {method}")
    if tunnel is not None:
        uml.run("modprobe -a ipip ip6_tunnel ip_gre fou")
        server.run(
            f"{made_by}; ip link set {device} up; sysctl -q -w net.ipv4.conf.all.rp_filter=0 "
            f"net.ipv4.conf.eth0.rp_filter=0; sysctl -q -w net.ipv4.conf.{device}.rp_filter=0"
        )
    has = f"addr add {vip}/{length} dev {device} {'nodad' if six else ''}"
    more: dict[str, Any] = {
        "vip": vip,
        "tunnel": tunnel,
        "tunnel_port": 6080 if tunnel == "gue" else 0,
    }
    probe = target(Tcp(), address, **more)
    try:
        server.run(f"ip {has}")
        up = (True, f"{vip} port 80 via {address} accepts connections", None)
        refused = (False, f"connection refused by {vip} port 81 via {address}", None)
        closed = target(Tcp(), address, 81, **more)
        # More rounds than the probes have ports: also when one is used again.
        assert asked(uml, probe, closed, rounds=20) == [up, refused]
        # Nothing half open: neither there (SYN-RECV) nor an entry of IPVS here.
        assert server.out("ss -Htan | grep -v LISTEN || true") == ""
        assert uml.out("ipvsadm -Lnc | tail -n +3") == ""

        server.run(f"ip addr del {vip}/{length} dev {device}")
        gone = f"no answer within 1 s from {vip} port 80 via {address} (does it have {vip}?)"
        assert asked(uml, probe) == [(False, gone, None)]
        # The kernel counts late: long enough after, as no other traffic was.
        uml.run("sleep 2.5")
        counted = uml.out(f"ipvsadm -Ln --stats --exact -t {where} | tail -n +4").split()
        assert counted[1:] == [own, *["0"] * 5]
    finally:
        uml.run(f"ipvsadm -D -t {where}; ip addr del {vip}/{length} dev front0")
        server.run(f"ip addr del {vip}/{length} dev {device}", check=False)


def test_nobody_there(uml: UmlLab) -> None:
    gone = "no answer within 1 s from {0} port 80 via {1} (does it have {0}?)"
    ways = [("192.0.2.59", "10.0.0.59"), ("fd00:2::59", "fd00:10::59")]
    answers = asked(uml, *(target(Tcp(), address, vip=vip) for vip, address in ways))
    assert answers == [(False, gone.format(*way), None) for way in ways]


def test_echoes(uml: UmlLab, server: ServerNs) -> None:
    there = ["10.0.0.51", "fd00:10::51"]
    gone = ["10.0.0.59", "fd00:10::59"]
    probes = [target(Icmp(), address) for address in there + gone]
    assert asked(uml, *probes) == [
        *((True, f"{address} answers echo requests", None) for address in there),
        *((False, f"no echo reply within 1 s from {address}", None) for address in gone),
    ]
    many = [target(Icmp(), address, timeout=5.0, copies=250) for address in there]
    assert all(up for up, _, _ in asked(uml, *many, rounds=3))


UNBOUND = """
server:
    interface: 10.0.0.51
    interface: fd00:10::51
    access-control: 0.0.0.0/0 allow
    access-control: ::/0 allow
    username: ""
    chroot: ""
    directory: "/run/lab"
    pidfile: "/run/lab/unbound.pid"
    do-daemonize: no
    use-syslog: no
    verbosity: 1
    module-config: "iterator"
    local-zone: "example.org." static
    local-data: "example.org. SOA ns.example.org. hostmaster.example.org. 7 3600 600 86400 300"
    local-data: "www.example.org. A 192.0.2.7"
    local-data: "www.example.org. A 192.0.2.8"
    local-data: 'example.org. MX 10 mx1.example.org.'
    local-zone: "refused.example." refuse
remote-control:
    control-enable: no
"""


def test_dns_of_unbound(uml: UmlLab, server: ServerNs) -> None:
    try:
        unbound = program("unbound", "/usr/sbin/unbound")
    except LabError as error:
        lacking(str(error))
    uml.write("/run/lab/unbound.conf", UNBOUND)
    log = "/run/lab/unbound.log"
    running = server.spawn([str(unbound), "-d", "-c", "/run/lab/unbound.conf"], log=log)
    uml.wait_until(f"grep -q 'start of service' {log}", 30, "unbound to serve")
    mail = Dns(query="example.org", record="MX", expect="10 MX1.example.org.")
    web = Dns(query="www.example.org", record="A", expect="192.0.2.9")
    asks = [Dns(query="example.org"), mail, web, Dns(query="no.example.org", record="A")]
    asks.append(Dns(query="refused.example", record="A"))
    there = [target(each, "10.0.0.51", 53) for each in asks]
    there.append(target(mail, "fd00:10::51", 53))
    where = "10.0.0.51 port 53"
    # 40 rounds: unbound turns the records round, and the words stay.
    assert asked(uml, *there, rounds=40) == [
        (True, f"{where} answers with SOA of example.org", None),
        (True, f"{where} answers with MX of example.org", None),
        (
            False,
            f"expected 192.0.2.9 as A of www.example.org from {where}, got 192.0.2.7, 192.0.2.8",
            None,
        ),
        (False, f"expected A of no.example.org from {where}, got NXDOMAIN", None),
        (False, f"expected A of refused.example from {where}, got REFUSED", None),
        (True, "fd00:10::51 port 53 answers with MX of example.org", None),
    ]
    # 240 queries later the log has what unbound says when it starts, and no more.
    assert [
        line
        for line in uml.text(log).splitlines()
        if "start of service" not in line and " notice: init module" not in line
    ] == []

    running.signal(signal.SIGSTOP)
    assert asked(uml, there[0]) == [(False, f"no answer within 1 s from {where}", None)]
    running.signal(signal.SIGCONT)
    running.terminate()
    udp = target(Udp(send="x"), "10.0.0.51", 53)
    refused = (False, f"connection refused by {where}", None)
    assert asked(uml, there[0], udp) == [refused, refused]


def test_a_program_is_not_favoured_as_the_agent_is(uml: UmlLab) -> None:
    """The unit test, where root may give itself the niceness and the score of the unit."""
    test = "tests/unit/health/test_program.py::test_niceness_and_oom_score_are_reset"
    command = [PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider", test]
    done = uml.run(command, cwd=str(CHECKOUT), timeout=120)
    assert "1 passed" in done.out
