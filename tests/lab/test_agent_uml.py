"""The agent at work: a real kernel, a real libvirtd, containers for guests, real traffic.

Two guests, web1 and web2, are servers for every kind of service at once. libvirt's LXC driver says
nothing when a shutdown is asked for, so here a guest leaves when it has gone; the request is the
Xen lab's business. Requests may take 10 s: one sent to a guest that does not answer fails in any
case, and a machine that is busy with something else must not fail a test.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest

from tests.lab.agent import CONFIG
from tests.lab.netns import Load, NetNs
from tests.lab.uml import HERE, UmlLab
from tests.lab.uml.guests import LxcGuest, lxc_xml
from tests.lab.watched import Servers, WatchedAgent

VIP = "192.0.2.10"
# Service addresses that the guests have too, for the methods without address translation.
GATEWAYED, TUNNELLED, GATEWAYED6 = "192.0.2.11", "192.0.2.12", "fd00:2::11"
MARKED = "192.0.2.13"

# Guests that serve are not to be taken out because the machine is busy with something else.
CHECK = "{interval: 1s, timeout: 900ms, rise: 1, fall: 20}"
GUESTS = '[{guest: "web*"}]'

# init of web1 and web2: what guest.sh does, for several service addresses; how long it takes to
# boot stands in a file, so that a test can say so for the next start.
INIT = f"""
exec >$GUEST_LOG 2>&1
ip link set lo up
trap '' TERM
read -r delay </run/lab/delay-$GUEST && sleep $delay
for vip in gatewaying:{GATEWAYED} tunnel:{TUNNELLED} gatewaying:{GATEWAYED6}; do
    sh {HERE}/vip.sh ${{vip%%:*}} ${{vip#*:}} eth0 || exit 1
done
exec TRAFFIC server --name $GUEST --udp {GATEWAYED}:53 --listen 0.0.0.0:80 --listen '[::]:80' \
    --listen 0.0.0.0:443 --listen 0.0.0.0:8080 --listen '[::]:8080'
"""


def config(services: str = "  {}", *, addresses: str = "manage") -> str:
    return f"""
libvirt: {{uris: ["lxc:///"]}}
director: {{interface: front0, addresses: {addresses}}}
defaults: {{check: {CHECK}}}
services:
{services}
"""


def web(more: str = "", *, servers: str = GUESTS, weight: int = 1, scheduler: str = "rr") -> str:
    """A service "web", port 80 of VIP masqueraded to port 8080 of its servers."""
    return f"""
  web:
    address: {VIP}
    ports: [80]
    server-port: 8080
    forwarding: masquerade
    scheduler: {scheduler}
    weight: {weight}
    servers: {servers}
    {more}
"""


WEB = f"-t {VIP}:80"


def masqueraded(**weights: int) -> Servers:
    """What "web" has in the table: web1=1, web2=3."""
    return {
        f"10.0.0.1{name.removeprefix('web')}:8080": ("-m", weight)
        for name, weight in weights.items()
    }


BOTH = masqueraded(web1=1, web2=1)


@pytest.fixture(scope="module")
def lab(uml: UmlLab) -> UmlLab:
    uml.start_libvirtd()
    uml.run(["modprobe", "-a", "ipip", "sctp"])  # for tunl0 in the guests, and for one service
    uml.accept_gatewaying_replies()
    uml.add_vip(MARKED)  # the configuration does not know the address of a firewall mark
    uml.run(
        f"iptables-legacy -t mangle -A PREROUTING -d {MARKED} -p tcp -m multiport"
        " --dports 80,443 -j MARK --set-mark 7"
    )
    return uml


@pytest.fixture(scope="module")
def client(lab: UmlLab) -> NetNs:
    made = lab.client("client", "192.0.2.100", address6="fd00:2::100")
    made.run("for n in 101 102 103 104 105 106 107; do ip addr add 192.0.2.$n/24 dev eth0; done")
    return made


@pytest.fixture(scope="module")
def web1(lab: UmlLab) -> LxcGuest:
    return define(lab, "web1", 11)


@pytest.fixture(scope="module")
def web2(lab: UmlLab) -> LxcGuest:
    return define(lab, "web2", 12)


@pytest.fixture
def both(web1: LxcGuest, web2: LxcGuest) -> tuple[LxcGuest, LxcGuest]:
    """The two guests, running."""
    for guest in (web1, web2):
        if not guest.alive():
            boot(guest)
        guest.wait_serving()
    return web1, web2


@pytest.fixture(scope="module")
def only_agent(lab: UmlLab) -> Iterator[WatchedAgent]:
    made = WatchedAgent(lab, config())
    made.start()
    yield made
    if made.process.alive():
        made.stop()


@pytest.fixture
def agent(only_agent: WatchedAgent) -> Iterator[WatchedAgent]:
    """The agent, running; the services that a test has configured are taken away after it."""
    if not only_agent.process.alive():
        only_agent.start()
    yield only_agent
    if not only_agent.process.alive():
        only_agent.start()
    only_agent.use(config())
    only_agent.lab.wait_until(lambda: not only_agent.table(), 20, "the table to be empty")


def define(lab: UmlLab, name: str, number: int) -> LxcGuest:
    guest = LxcGuest(lab, name=name, address=f"10.0.0.{number}")
    guest.define(
        lxc_xml(
            name=name,
            address=guest.address,
            address6=f"fd00:10::{number}",
            mac=f"52:54:00:00:00:{number:02x}",
            metadata=None,
            init=["/bin/sh", "-c", INIT.replace("TRAFFIC", shlex.join(lab.traffic))],
            environment={
                "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
                "GUEST": name,
                "GUEST_LOG": guest.log_path,
            },
        )
    )
    return guest


def boot(guest: LxcGuest, *, delay: float = 0) -> None:
    """Starts a guest that needs `delay` seconds until it serves."""
    guest.lab.write(f"/run/lab/delay-{guest.name}", f"{delay:g}\n")
    guest.start()


@contextmanager
def another(
    lab: UmlLab, name: str, number: int, script: str, change: Callable[[str], str]
) -> Iterator[LxcGuest]:
    """A guest for a while: its init is `script`, its XML what `change` makes of it."""
    guest = LxcGuest(lab, name=name, address=f"10.0.0.{number}")
    xml = lxc_xml(
        name=name,
        address=guest.address,
        address6=None,
        mac=f"52:54:00:00:00:{number:02x}",
        metadata=None,
        init=["/bin/sh", "-c", f"exec >{guest.log_path} 2>&1; ip link set lo up; {script}"],
        environment={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
    )
    guest.define(change(xml))
    guest.start()
    try:
        yield guest
    finally:
        if guest.alive():
            guest.destroy()
        guest.virsh("undefine", name)


def burst(client: NetNs, target: str, count: int, *options: str) -> dict[str, Any]:
    """`count` requests at 20 a second; the summary."""
    command = [*client.lab.traffic, "client", target, "--rate=20", f"--count={count}"]
    out = client.run([*command, "--timeout=10", *options]).out
    summary: dict[str, Any] = json.loads(out.partition("\n")[2])
    assert summary["failures"] == []
    return summary


def spread(client: NetNs, target: str, count: int, *options: str) -> dict[str, int]:
    """How many of `count` requests each server answered; none may fail."""
    return dict(burst(client, target, count, *options)["by_server"])


ASK = f"""
import socket
for last in range(100, 108):
    with socket.create_connection(("{VIP}", 80), 10, (f"192.0.2.{{last}}", 0)) as asking:
        asking.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
        reply = b"".join(iter(lambda: asking.recv(4096), b""))
        print("web1" if b"web1" in reply else "web2")
"""


@pytest.mark.parametrize(
    "scheduler",
    ["sh", "dh", *(pytest.param(name, marks=pytest.mark.soak) for name in ("mh", "lblc"))],
)
def test_a_drain_refuses_no_client_of_a_hash_scheduler(
    scheduler: str, lab: UmlLab, client: NetNs, agent: WatchedAgent, both: tuple[LxcGuest, ...]
) -> None:
    """Eight clients; the guest that serves more of them is drained."""
    lab.write("/run/lab/ask-from-each.py", ASK)
    ask = "/usr/bin/python3 /run/lab/ask-from-each.py"
    agent.use(config(web(scheduler=scheduler)))
    agent.wait_kernel(WEB, BOTH)
    before = client.out(ask).split()
    drained = max(("web1", "web2"), key=before.count)
    agent.xenlb("drain", drained)
    assert set(client.out(ask).split()) == {"web1", "web2"} - {drained}
    agent.xenlb("undrain", drained)
    agent.wait_kernel(WEB, BOTH)
    if scheduler != "lblc":  # that keeps a destination where it is
        assert drained in client.out(ask).split()


def test_udp_flows_leave_a_drained_guest(
    lab: UmlLab, client: NetNs, agent: WatchedAgent, both: tuple[LxcGuest, ...]
) -> None:
    """Two clients, each from a port of its own; one of them is at the guest that is drained."""

    def served_by(port: int) -> str:
        ports = f"{port}-{port}"
        command = [*lab.traffic, "client", f"{GATEWAYED}:53", "--rate=5", "--count=3", "--udp"]
        out = client.run([*command, "--bind=192.0.2.100", f"--reuse-ports={ports}"]).out
        summary = json.loads(out.partition("\n")[2])
        assert summary["failures"] == []
        (name,) = summary["by_server"]
        return str(name)

    check = CHECK.replace("interval", "port: 80, interval")
    agent.use(
        config(
            f"  names: {{address: {GATEWAYED}, ports: [53/udp], forwarding: gatewaying,"
            f" scheduler: rr, check: {check}, servers: {GUESTS}, drain: {{udp: 2s}}}}\n"
        )
    )
    service, servers = f"-u {GATEWAYED}:53", {f"10.0.0.{n}:53": ("-g", 1) for n in (11, 12)}
    agent.wait_kernel(service, servers)
    assert {served_by(port) for port in (5300, 5301)} == {"web1", "web2"}
    assert agent.xenlb("drain", "web1").out.splitlines()[-1] == "web1 is drained"
    assert {served_by(port) for port in (5300, 5301)} == {"web2"}
    assert "10.0.0.11:53" not in lab.out("ipvsadm -Lcn")
    agent.xenlb("undrain", "web1")
    agent.wait_kernel(service, servers)


LONG_REQUEST = """
import os, socket, struct, sys, time
with socket.create_connection((sys.argv[1], 80), 20) as asking:
    print("open", flush=True)
    while not os.path.exists("/run/lab/go-on"):
        time.sleep(0.05)
    asking.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
    print(b"".join(iter(lambda: asking.recv(4096), b"")).decode(), flush=True)
    # With a reset, for the kernel keeps what has ended in order for two minutes.
    asking.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
"""


def test_the_sorry_server_keeps_its_connections_to_their_end(
    lab: UmlLab, client: NetNs, agent: WatchedAgent, both: tuple[LxcGuest, ...]
) -> None:
    """web2 is the sorry server of web1. A request begins at it, and ends after web1 is back."""
    agent.use(config(web("sorry-server: 10.0.0.12:8080", servers="[{guest: web1}]")))
    sorry_left(agent)
    agent.xenlb("drain", "web1", "--force")
    agent.wait_kernel(WEB, masqueraded(web1=0, web2=1))
    lab.write("/run/lab/long-request.py", LONG_REQUEST)
    asking = client.spawn(["/usr/bin/python3", "/run/lab/long-request.py", VIP])
    lab.wait_until(lambda: "open" in asking.log(), 20, "the connection to the sorry server")
    agent.xenlb("undrain", "web1")
    agent.wait_kernel(WEB, masqueraded(web1=1, web2=0))
    agent.status()  # has the table read
    assert agent.servers_of(WEB) == masqueraded(web1=1, web2=0)
    lab.run("touch /run/lab/go-on")
    asking.wait()
    assert "web2" in asking.log()
    sorry_left(agent)


def sorry_left(agent: WatchedAgent) -> None:
    """A status has the table read, which otherwise happens every 15 seconds."""
    agent.lab.wait_until(
        lambda: agent.status() and agent.servers_of(WEB) == masqueraded(web1=1),
        60,
        "the sorry server to leave",
        every=1,
    )


# Every method, at once ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One way to serve: the service's settings, its name for ipvsadm, and what clients ask."""

    settings: str
    service: str
    target: str
    flag: str
    port: int
    six: bool = False
    udp: bool = False

    def servers(self, *numbers: int) -> Servers:
        net = "[fd00:10::{}]:{}" if self.six else "10.0.0.{}:{}"
        return {net.format(number, self.port): (self.flag, 1) for number in numbers}


METHODS = {
    "masquerade": Method(
        settings=f"address: {VIP}, ports: [80], server-port: 8080, forwarding: masquerade",
        service=WEB,
        target=f"{VIP}:80",
        flag="-m",
        port=8080,
    ),
    "gatewaying": Method(
        settings=f"address: {GATEWAYED}, ports: [80], forwarding: gatewaying",
        service=f"-t {GATEWAYED}:80",
        target=f"{GATEWAYED}:80",
        flag="-g",
        port=80,
    ),
    "tunnel": Method(
        settings=f"address: {TUNNELLED}, ports: [80], forwarding: tunnel, tunnel: {{type: ipip}}",
        service=f"-t {TUNNELLED}:80",
        target=f"{TUNNELLED}:80",
        flag="-i",
        port=80,
    ),
    "masquerade-ipv6": Method(
        settings='address: "fd00:2::10", ports: [80], server-port: 8080, forwarding: masquerade',
        service="-t [fd00:2::10]:80",
        target="[fd00:2::10]:80",
        flag="-m",
        port=8080,
        six=True,
    ),
    "gatewaying-ipv6": Method(
        settings=f'address: "{GATEWAYED6}", ports: [80], forwarding: gatewaying',
        service=f"-t [{GATEWAYED6}]:80",
        target=f"[{GATEWAYED6}]:80",
        flag="-g",
        port=80,
        six=True,
    ),
    "fwmark": Method(
        settings=f"fwmark: 7, family: inet, forwarding: masquerade, check: {CHECK}".replace(
            "interval", "port: 443, interval"
        ),
        service="-f 7",
        target=f"{MARKED}:80",
        flag="-m",
        port=0,
    ),
    "udp": Method(
        settings=f"address: {GATEWAYED}, ports: [53/udp], one-packet: true, forwarding: gatewaying,"
        f" check: {CHECK}".replace("interval", "port: 80, interval"),
        service=f"-u {GATEWAYED}:53",
        target=f"{GATEWAYED}:53",
        flag="-g",
        port=53,
        udp=True,
    ),
}
EVERY = "".join(
    f"  {name}: {{{method.settings}, scheduler: rr, servers: {GUESTS}}}\n"
    for name, method in METHODS.items()
)


@pytest.mark.smoke
def test_guests_join_when_they_serve_and_leave_when_they_go(
    lab: UmlLab, client: NetNs, agent: WatchedAgent, web1: LxcGuest, web2: LxcGuest
) -> None:
    one, two = (
        {method.service: method.servers(*numbers) for method in METHODS.values()}
        for numbers in ((11,), (11, 12))
    )
    for guest in (web1, web2):
        if guest.alive():
            guest.destroy()
            guest.wait_gone()
    agent.use(config(EVERY))
    assert agent.kernel() == {method.service: {} for method in METHODS.values()}
    boot(web1)
    lab.wait_until(lambda: agent.kernel() == one, 60, "web1 to be in the table")
    loads = {
        name: client.load(method.target, rate=5, timeout=10, udp=method.udp)
        for name, method in METHODS.items()
    }

    boot(web2, delay=2)
    agent.wait_server("web2", lambda server: server["phase"] == "starting")
    assert agent.kernel() == one
    lab.wait_until(lambda: agent.kernel() == two, 60, "web2 to be in the table")
    for name, load in loads.items():
        lab.wait_until(partial(has_served, load, "web2"), 30, f"web2 to serve by {name}")
    assert agent.agree() == two

    asked = lab.time()
    web2.shutdown()
    lab.wait_until(lambda: agent.kernel() == one, 60, "web2 to be out of the table")
    gone = lab.time()
    assert agent.servers()["web2"]["phase"] == "absent"
    assert agent.agree() == one
    counts = []
    for name, load in loads.items():
        summary = load.stop()
        failed = [each["t"] for each in summary["failures"]]
        early, late = sum(t < asked - 0.5 for t in failed), sum(t > gone for t in failed)
        counts.append((name, summary["sent"], early, len(failed) - early - late, late))
        assert set(summary["by_server"]) == {"web1", "web2"}, name
        print(f"{name:16} {summary['sent']:4} requests {summary['by_server']}")
    print("method, sent, failed while web2 booted and served, while it went, after its removal")
    print(*counts, sep="\n")
    assert [(early, late) for _, _, early, _, late in counts] == [(0, 0)] * len(METHODS)


def has_served(load: Load, name: str) -> bool:
    return any(name in line["by_server"] for line in load.live())


def test_every_server_gets_its_share(
    lab: UmlLab, client: NetNs, agent: WatchedAgent, both: tuple[LxcGuest, LxcGuest]
) -> None:
    agent.use(config(EVERY))
    two = {method.service: method.servers(11, 12) for method in METHODS.values()}
    lab.wait_until(lambda: agent.kernel() == two, 60, "both guests to be in the table")
    even = {"web1": 5, "web2": 5}
    for name, method in METHODS.items():
        assert spread(client, method.target, 10, *["--udp"] * method.udp) == even, name
    # Without one-packet, all that comes from one port is a connection, and has one server.
    one_port = ("--udp", "--bind=192.0.2.100", "--reuse-ports=5353-5353")
    command = [*lab.traffic, "client", f"{GATEWAYED}:53", "--rate=2", "--count=6", *one_port]
    summary = json.loads(client.run(command).out.partition("\n")[2])
    assert summary["by_server"] == {"web1": 3, "web2": 3}
    # A firewall mark makes one service of several ports.
    assert spread(client, f"{MARKED}:443", 10) == even


@pytest.mark.soak
def test_sctp(
    lab: UmlLab, client: NetNs, agent: WatchedAgent, both: tuple[LxcGuest, LxcGuest]
) -> None:
    inside = ["/usr/bin/python3", "-IS", "-c", SCTP_SERVER]
    servers = []
    for guest in both:
        enter = ["nsenter", f"--net=/proc/{init_pid(guest)}/ns/net"]
        log = f"/run/lab/sctp-{guest.name}.log"
        servers.append(lab.spawn([*enter, *inside, guest.name], log=log))
    try:
        for server in servers:
            lab.wait_until(f"grep -q ready {server.log_path}", 20, "the SCTP server")
        agent.use(
            config(
                f"  sctp: {{address: {GATEWAYED}, ports: [9/sctp], forwarding: gatewaying,"
                f" scheduler: rr, check: {{port: 80, interval: 1s}}, servers: {GUESTS}}}\n"
            )
        )
        service = f"--sctp-service {GATEWAYED}:9"
        agent.wait_kernel(service, {f"10.0.0.{n}:9": ("-g", 1) for n in (11, 12)})
        answers = client.run(["/usr/bin/python3", "-IS", "-c", SCTP_CLIENT, GATEWAYED]).out.split()
        assert sorted(answers) == ["web1", "web1", "web2", "web2"]
        agent.agree()
    finally:
        for server in servers:
            server.kill()


SCTP_SERVER = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 132)
s.bind(("0.0.0.0", 9))
s.listen(16)
print("ready", flush=True)
while True:
    c, _ = s.accept()
    c.sendall(sys.argv[1].encode())
    c.close()
"""
SCTP_CLIENT = """
import socket, sys
for _ in range(4):
    s = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 132)
    s.settimeout(10)
    s.connect((sys.argv[1], 9))
    print(s.recv(100).decode())
    s.close()
"""


def init_pid(guest: LxcGuest) -> int:
    """The guest's first process, as the lab sees it: the child of its controller."""
    domain = guest.virsh("domid", guest.name).out.strip()
    children = guest.lab.out(["cat", f"/proc/{domain}/task/{domain}/children"])
    return int(children.split()[0])


def test_persistence(
    lab: UmlLab, client: NetNs, agent: WatchedAgent, both: tuple[LxcGuest, LxcGuest]
) -> None:
    agent.use(
        config(
            web("persistence: 60s")
            + f"  pair: {{address: {VIP}, ports: [81], server-port: 80, scheduler: rr,"
            " forwarding: masquerade, persistence: 60s, persistence-netmask: 255.255.255.252,"
            f" servers: {GUESTS}}}\n"
            "  marked: {fwmark: 7, family: inet, scheduler: rr, forwarding: masquerade,"
            f" persistence: 60s, check: {{port: 443, interval: 1s}}, servers: {GUESTS}}}\n"
        )
    )
    services = {WEB: 8080, f"-t {VIP}:81": 80, "-f 7": 0}
    for service, port in services.items():
        agent.wait_kernel(service, {f"10.0.0.{n}:{port}": ("-m", 1) for n in (11, 12)})

    def servers(*asked: tuple[int, str]) -> list[str]:
        """For each client's last number and the place it asks, who served both its requests."""
        places = [f"192.0.2.{last} {place.replace(':', ' ')}" for last, place in asked]
        answers = client.run(["/usr/bin/python3", "-IS", "-c", ASK_TWICE, *places]).out.split()
        assert answers[::2] == answers[1::2], (asked, answers)
        return answers[::2]

    # Each client has its own server; they are taken in turns, as new clients come.
    mine, other = servers((100, f"{VIP}:80"), (101, f"{VIP}:80"))
    assert mine != other
    assert servers((101, f"{VIP}:80"), (100, f"{VIP}:80")) == [other, mine]
    # 104 to 107 are one client for the kernel, and 100 to 103 are one.
    first, *one, second = servers(*((last, f"{VIP}:81") for last in (104, 105, 107, 103)))
    assert one == [first, first]
    assert second != first
    # HTTP and HTTPS of one client: the same server.
    for last in (100, 101):
        http, https = servers((last, f"{MARKED}:80"), (last, f"{MARKED}:443"))
        assert http == https
    agent.agree()
    # A server that is drained loses its persistent clients, too.
    agent.xenlb("drain", mine, "--no-wait")
    assert servers((100, f"{VIP}:80")) == [other]
    agent.xenlb("undrain", mine)
    agent.wait_serving(mine)


ASK_TWICE = """
import socket, sys
for text in sys.argv[1:]:
    bind, address, port = text.split()
    for _ in range(2):
        s = socket.create_connection((address, int(port)), 10, (bind, 0))
        s.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
        print(s.makefile().read().split("\\n\\n")[1].split()[0])
        s.close()
"""


# The life of guests -------------------------------------------------------------------------------


def test_life_of_guests(lab: UmlLab, agent: WatchedAgent, both: tuple[LxcGuest, LxcGuest]) -> None:
    _, web2 = both
    agent.use(config(web()))
    agent.wait_kernel(WEB, BOTH)

    def expect(servers: Servers, phase: str) -> None:
        agent.wait_kernel(WEB, servers)
        agent.wait_server("web2", lambda server: server["phase"] == phase)
        assert agent.agree() == {WEB: servers}

    web2.suspend()
    expect(masqueraded(web1=1, web2=0), "paused")
    web2.resume()
    expect(BOTH, "serving")
    web2.destroy()
    expect(masqueraded(web1=1), "absent")
    boot(web2)
    expect(BOTH, "serving")
    web2.shutdown()
    expect(masqueraded(web1=1), "absent")
    boot(web2)
    expect(BOTH, "serving")
    said = agent.xenlb("why", "web2").out
    for word in ("paused", "destroyed", "shutdown"):
        assert word in said


def test_guests_join_and_leave_by_their_metadata(
    lab: UmlLab, agent: WatchedAgent, both: tuple[LxcGuest, LxcGuest]
) -> None:
    _, web2 = both
    agent.use(config(web("from-metadata: true", servers="[{guest: web1}]")))
    agent.wait_kernel(WEB, masqueraded(web1=1))
    for entry, servers in (
        ("<service name='web' weight='2'/>", masqueraded(web1=1, web2=2)),
        ("<service name='web' weight='5'/>", masqueraded(web1=1, web2=5)),
        ("<service name='web' weight='70000'/>", "70000"),
        (f"<service name='web' address='{VIP}'/>", "it is a service address"),
        ("<service name='web' address='10.0.0.1'/>", "it is an address of this host"),
        ("<service name='web' address='10.0.0.12'/>", BOTH),
        ("", masqueraded(web1=1)),
    ):
        web2.set_metadata(f"<services>{entry}</services>")
        if isinstance(servers, str):  # refused, and told
            complaint: str = servers

            def told(complaint: str = complaint) -> bool:
                return complaint in agent.xenlb("why", "web2").out

            lab.wait_until(told, 20, f"the complaint {complaint}")
            continue
        agent.wait_kernel(WEB, servers)
        assert agent.agree() == {WEB: servers}
    web2.virsh("metadata", "web2", "urn:xenlb:1", "--remove", "--live", "--config")


def test_a_changed_configuration_takes_effect_at_once(
    lab: UmlLab, client: NetNs, agent: WatchedAgent, both: tuple[LxcGuest, LxcGuest]
) -> None:
    agent.use(config(web()))
    agent.wait_kernel(WEB, BOTH)
    load = client.load(f"{VIP}:80", rate=10, timeout=10)
    each = "[{guest: web1, weight: 3}, {guest: web2, weight: 65535}]"
    for services, servers in (
        (web(weight=7), masqueraded(web1=7, web2=7)),
        (web(servers=each), masqueraded(web1=3, web2=65535)),
        (web(scheduler="wlc"), BOTH),
    ):
        agent.use_by_itself(config(services))
        agent.wait_kernel(WEB, servers)
        assert agent.agree() == {WEB: servers}
    # Broken, then whole again: the last good one goes on meanwhile.
    agent.configure(config(web(scheduler="none-such")))
    lab.wait_until(lambda: agent.status()["config"]["problems"], 30, "the problem to be told")
    assert agent.servers_of(WEB) == BOTH
    agent.use_by_itself(config(web()))
    assert agent.agree() == {WEB: BOTH}
    summary = load.stop()
    print(f"{summary['sent']} requests during 4 reloads, {summary['failed']} failed")
    assert summary["failures"] == []
    # The kernel drops the connections of a server that is removed, so this is without traffic.
    agent.use(config(web(servers="[{guest: web1}]")))
    agent.wait_kernel(WEB, masqueraded(web1=1))
    agent.use(config(web(servers="[{guest: web1}, {host: 10.0.0.12}]")))
    agent.wait_kernel(WEB, BOTH)
    assert agent.agree() == {WEB: BOTH}


# Service addresses --------------------------------------------------------------------------------


def on_front0(lab: UmlLab) -> set[str]:
    listing = json.loads(lab.out(["ip", "-j", "addr", "show", "dev", "front0"]))
    return {
        f"{each['local']}/{each['prefixlen']}"
        for each in listing[0]["addr_info"]
        if each["scope"] == "global"
    }


def test_service_addresses_are_kept(
    lab: UmlLab, client: NetNs, agent: WatchedAgent, both: tuple[LxcGuest, LxcGuest]
) -> None:
    mine = {f"{VIP}/32", "fd00:2::10/128"}
    before = on_front0(lab)
    assert not before & mine
    services = web() + (
        '  six: {address: "fd00:2::10", ports: [80], server-port: 8080, forwarding: masquerade,'
        f" scheduler: rr, servers: {GUESTS}}}\n"
    )
    agent.use(config(services))

    def there() -> bool:
        return on_front0(lab) == before | mine

    lab.wait_until(there, 20, "the service addresses")
    agent.wait_kernel(WEB, BOTH)
    for address in mine:
        lab.run(["ip", "addr", "del", address, "dev", "front0"])
        lab.wait_until(there, 20, f"{address} to come back")
    lab.run(
        "ip link set front0 down; ip link set front0 up; ip addr add fd00:2::1/64 dev front0 nodad"
    )
    lab.wait_until(there, 20, "the addresses to be back after the link")
    assert spread(client, f"{VIP}:80", 4) == spread(client, "[fd00:2::10]:80", 4)
    agent.stop()
    assert there()
    assert spread(client, f"{VIP}:80", 2) == {"web1": 1, "web2": 1}
    agent.start()
    assert there()
    agent.use(config())  # no service has them any more
    lab.wait_until(lambda: on_front0(lab) == before, 20, "the service addresses to go")


def test_service_addresses_of_others_are_left_alone(lab: UmlLab, agent: WatchedAgent) -> None:
    before = on_front0(lab)
    services = web(servers="[{host: 10.0.0.12}]")
    agent.use(config(services, addresses="leave"))
    lab.wait_until(lambda: WEB in agent.kernel(), 20, "the service")
    assert on_front0(lab) == before
    lab.add_vip(VIP)
    agent.use(config(addresses="leave"))
    assert on_front0(lab) == before | {f"{VIP}/32"}
    lab.run(["ip", "addr", "del", f"{VIP}/32", "dev", "front0"])


# What belongs to others --------------------------------------------------------------------------


def test_what_is_foreign_survives_everything(
    lab: UmlLab, agent: WatchedAgent, both: tuple[LxcGuest, LxcGuest]
) -> None:
    other, server = "-t 192.0.2.77:99", "10.0.0.77:8080"
    lab.run(f"ipvsadm -A {other} -s wlc -p 77; ipvsadm -a {other} -r 10.0.0.78:99 -m -w 7")
    foreign: list[tuple[str, str | None]] = [(other, None), (WEB, server)]

    def untouched() -> None:
        saved = agent.table()
        assert f"-A {other} -s wlc -p 77\n-a {other} -r 10.0.0.78:99 -m -w 7\n" in saved
        assert f"-a {WEB} -r {server} -m -w 5\n" in saved

    agent.use(config(web()))
    agent.wait_kernel(WEB, BOTH)
    lab.run(f"ipvsadm -a {WEB} -r {server} -m -w 5")
    untouched()
    agent.use(config(web(weight=2)))
    agent.wait_kernel(WEB, masqueraded(web1=2, web2=2) | {server: ("-m", 5)})
    untouched()
    assert agent.status()["services"][0]["foreign_servers"] == 1
    agent.agree(foreign=foreign)
    agent.kill()
    agent.start()
    untouched()
    agent.agree(foreign=foreign)
    # Its service is wanted no more: ours go, and what is another's stays, service and all.
    agent.use(config())
    agent.wait_kernel(WEB, {server: ("-m", 5)})
    untouched()
    agent.stop()
    untouched()
    agent.start()
    untouched()
    # A service that another tool has made and the configuration wants becomes ours; only then.
    lab.run(f"ipvsadm -d {WEB} -r {server}; ipvsadm -D {other}")
    agent.use(config(web()))
    agent.wait_kernel(WEB, BOTH)


# Addresses of guests ------------------------------------------------------------------------------


def without_ip(xml: str) -> str:
    """Nothing in the XML says the guest's address; it sets it itself."""
    start, end = xml.index("<ip address"), xml.index("<guest dev")
    return xml[:start] + xml[end:]


def own_address(lab: UmlLab, name: str, number: int) -> str:
    """A guest's script that sets its address, is seen by its gateway, and serves."""
    serve = shlex.join([*lab.traffic, "server", "--name", name, "--listen=0.0.0.0:8080"])
    return (
        f"ip link set eth0 up; ip addr add 10.0.0.{number}/24 dev eth0;"
        " ip route add default via 10.0.0.1;"
        # The gateway asks who we are before it answers; after that it knows our MAC address.
        " python3 -IS -c 'import socket; s = socket.socket(); s.settimeout(2);"
        f' s.connect_ex(("10.0.0.1", 9))\'; exec {serve}'
    )


def test_addresses_that_nobody_has_written_down(
    lab: UmlLab, client: NetNs, agent: WatchedAgent, both: tuple[LxcGuest, LxcGuest]
) -> None:
    agent.use(config(web(servers='[{guest: "web*"}, {guest: "shy*"}, {guest: "liar*"}]')))
    agent.wait_kernel(WEB, BOTH)
    shy_one = {"10.0.0.21:8080": ("-m", 1)}
    with another(lab, "shy", 21, own_address(lab, "shy", 21), without_ip) as shy:
        agent.wait_kernel(WEB, BOTH | shy_one)
        assert "10.0.0.21: neighbour table" in agent.xenlb("why", "shy").out
        assert spread(client, f"{VIP}:80", 6) == {"web1": 2, "web2": 2, "shy": 2}
        agent.agree()
        shy.destroy()
        agent.wait_kernel(WEB, BOTH)


NETWORK = """
<network>
  <name>leases</name>
  <forward mode='open'/>
  <bridge name='virbr9' stp='off' delay='0'/>
  <ip address='10.9.0.1' netmask='255.255.255.0'>
    <dhcp><range start='10.9.0.50' end='10.9.0.60'/></dhcp>
  </ip>
</network>
"""
# busybox's udhcpc calls this with "bound" and the lease in variables.
DHCP_SCRIPT = """#!/bin/sh
[ "$1" = bound ] || exit 0
ip addr add "$ip/$mask" dev eth0
ip route add default via "$router"
"""


def in_network(xml: str) -> str:
    """The guest's interface is on the libvirt network "leases"."""
    start, end = xml.index("<source bridge"), xml.index("<guest dev")
    xml = f"{xml[:start]}<source network='leases'/>{xml[end:]}"
    return xml.replace("<interface type='bridge'>", "<interface type='network'>")


def test_an_address_leased_by_a_libvirt_network(
    lab: UmlLab, client: NetNs, agent: WatchedAgent
) -> None:
    lab.write("/run/lab/leases.xml", NETWORK)
    lab.write("/run/lab/dhcp-script", DHCP_SCRIPT, mode=0o755)
    lab.run([*lab.virsh(), "net-create", "/run/lab/leases.xml"])
    serve = shlex.join([*lab.traffic, "server", "--name", "leased", "--listen=0.0.0.0:8080"])
    ask = "busybox udhcpc -q -n -t 20 -i eth0 -s /run/lab/dhcp-script"
    script = f"ip link set eth0 up; {ask} && exec {serve}"
    try:
        agent.use(config(web(servers="[{guest: leased}]")))
        with another(lab, "leased", 23, script, in_network):
            agent.wait_serving("leased")
            # The neighbour table may have known it a moment before the lease was written down.
            said = lab.wait_until(
                lambda: re.search(r"address (\S+): dhcp lease", agent.xenlb("why", "leased").out),
                30,
                "the lease to be seen",
            )
            assert isinstance(said, re.Match)
            assert said[1].startswith("10.9.0.")
            assert spread(client, f"{VIP}:80", 2) == {"leased": 2}
            agent.agree()
    finally:
        lab.run([*lab.virsh(), "net-destroy", "leases"])


def test_addresses_that_are_refused(
    lab: UmlLab, agent: WatchedAgent, both: tuple[LxcGuest, LxcGuest]
) -> None:
    agent.use(config(web(servers='[{guest: "web*"}, {guest: "liar*"}]')))
    agent.wait_kernel(WEB, BOTH)
    # What the neighbour table says of a guest is what the guest has said on the wire. Here it is
    # said of an interface that no packet to these addresses takes, so that they stay reachable.
    refused = {
        "203.0.113.5": "in no network of this host",
        VIP: "service address",
        "10.0.0.1": "address of this host",
        "10.0.0.11": "guest",
    }
    with another(lab, "liar", 22, "exec sleep 1000", without_ip) as liar:
        mac = "52:54:00:00:00:16"
        for address in refused:
            lab.run(["ip", "neigh", "replace", address, "lladdr", mac, "dev", "front0"])
        try:
            said = ""
            for address, reason in refused.items():

                def told(address: str = address, reason: str = reason) -> str:
                    nonlocal said
                    said = agent.xenlb("why", "liar").out
                    lines = [line for line in said.splitlines() if address in line]
                    return next((line for line in lines if reason in line), "")

                print(lab.wait_until(told, 30, f"{address} to be refused; why says {said}"))
            assert agent.servers_of(WEB) == BOTH
            liars = [s for s in agent.status()["services"][0]["servers"] if s["guest"] == "liar"]
            assert [(s["phase"], s["in_table"]) for s in liars] == [("starting", False)]
            assert "refused" in liars[0]["reason"]
        finally:
            for address in refused:
                lab.run(["ip", "neigh", "del", address, "dev", "front0"], check=False)
        assert liar.alive()


# Without a daemon ---------------------------------------------------------------------------------


def test_plan_and_apply_without_a_daemon(
    lab: UmlLab, client: NetNs, agent: WatchedAgent, both: tuple[LxcGuest, LxcGuest]
) -> None:
    agent.stop()
    lab.run("ipvsadm -C; rm -f /run/xenlb/state.json")
    lab.add_vip(VIP)
    host = lab.server_ns("host", "10.0.0.31")
    host.serve("0.0.0.0:8080")
    try:
        servers = '[{guest: "web*", weight: 4}, {host: 10.0.0.31}]'
        services = web("persistence: 90s", servers=servers) + (
            f"  names: {{address: {GATEWAYED}, ports: [53/udp], one-packet: true, scheduler: sh,"
            f" scheduler-flags: [sh-port], forwarding: gatewaying, check: none,"
            f" servers: {GUESTS}}}\n"
            '  six: {address: "fd00:2::10", ports: [80], forwarding: tunnel, check: none,'
            f" upper-threshold: 100, lower-threshold: 50, servers: {GUESTS}}}\n"
            f"  marked: {{fwmark: 7, family: inet, forwarding: masquerade, check: none,"
            f" servers: {GUESTS}}}\n"
        )
        agent.configure(config(services))
        planned = agent.xenlb("plan", check=False)
        assert planned.rc == 1
        assert agent.table() == ""
        applied = agent.xenlb("apply")
        assert applied.out == planned.out != ""
        saved = agent.table()
        assert spread(client, f"{VIP}:80", 2)
        for verb in ("plan", "apply"):
            again = agent.xenlb(verb)
            assert (again.out, again.err) == ("", "")
        assert agent.table() == saved
        # The lines are commands.
        lab.run("ipvsadm -C")
        lab.run(planned.out)
        assert agent.table() == saved
        assert agent.xenlb("plan").out == ""
        print(planned.out)
        # A guest that has gone.
        both[1].destroy()
        change = agent.xenlb("plan", check=False)
        assert change.rc == 1
        assert set(change.out.splitlines()) == {
            f"ipvsadm -d {WEB} -r 10.0.0.12:8080",
            f"ipvsadm -d -u {GATEWAYED}:53 -r 10.0.0.12:53",
            "ipvsadm -d -t [fd00:2::10]:80 -r 10.0.0.12:80",
            "ipvsadm -d -f 7 -r 10.0.0.12:0",
        }
        agent.xenlb("apply")
        assert agent.xenlb("plan").out == ""
        agent.configure(config("  web: {}"))
        refused = agent.xenlb("apply", check=False)
        assert refused.rc == 3
        assert f"{CONFIG}:6:" in refused.err
    finally:
        host.delete()
        lab.run(["ip", "addr", "del", f"{VIP}/32", "dev", "front0"])
        if not both[1].alive():
            boot(both[1])
        agent.configure(config())
        agent.start()


# What is missing ----------------------------------------------------------------------------------


def test_a_scheduler_without_its_module(
    lab: UmlLab, agent: WatchedAgent, both: tuple[LxcGuest, LxcGuest]
) -> None:
    module = "$(modinfo -n ip_vs_fo)"
    lab.run(f"rmmod ip_vs_fo 2>/dev/null; file={module}; mv $file /run/lab/ip_vs_fo.ko")
    services = web() + (
        f"  fails: {{address: {VIP}, ports: [81], server-port: 80, forwarding: masquerade,"
        f" scheduler: fo, servers: {GUESTS}}}\n"
    )
    agent.use(config(services))
    agent.wait_kernel(WEB, BOTH)

    def of_fails() -> dict[str, Any]:
        return next(s for s in agent.status()["services"] if s["name"] == "fails")

    lab.wait_until(lambda: of_fails()["reason"], 20, "the reason to be told")
    reason = of_fails()["reason"]
    print(reason)
    assert "ip_vs_fo" in reason
    assert "modprobe ip_vs_fo" in reason
    assert not of_fails()["in_table"]
    assert agent.agree() == {WEB: BOTH}
    assert "ip_vs_fo" in agent.xenlb("status").out
    lab.run("mv /run/lab/ip_vs_fo.ko $(dirname $(modinfo -n ip_vs_rr))")
    agent.wait_kernel(f"-t {VIP}:81", {f"10.0.0.{n}:80": ("-m", 1) for n in (11, 12)}, 90)
    assert of_fails()["reason"] == ""


def test_a_libvirtd_that_comes_later(
    lab: UmlLab, client: NetNs, agent: WatchedAgent, both: tuple[LxcGuest, LxcGuest]
) -> None:
    host = lab.server_ns("host", "10.0.0.31")
    host.serve("0.0.0.0:8080")
    three = BOTH | {"10.0.0.31:8080": ("-m", 1)}
    services = web(servers='[{guest: "web*"}, {host: 10.0.0.31}]')
    agent.use(config(services))
    agent.wait_kernel(WEB, three)
    agent.stop()
    lab.stop_libvirtd()
    for known in (True, False):
        if not known:  # as after a boot of this host: nothing is known of anything
            agent.stop()
            lab.run("ipvsadm -C; rm /run/xenlb/state.json")
        agent.start()
        link = agent.status()["libvirt"][0]
        assert not link["connected"]
        assert link["reason"]
        # What cannot be listed is not removed; what needs no libvirt is served.
        expected = three if known else {"10.0.0.31:8080": ("-m", 1)}
        agent.wait_kernel(WEB, expected)
        assert agent.agree() == {WEB: expected}
        assert spread(client, f"{VIP}:80", 3)
    began = lab.time()
    lab.start_libvirtd()
    agent.wait_kernel(WEB, three)
    print(f"the guests were back {lab.time() - began:.1f} s after libvirtd was started")
    assert agent.status()["libvirt"][0]["connected"]
    assert agent.agree() == {WEB: three}
    host.delete()
