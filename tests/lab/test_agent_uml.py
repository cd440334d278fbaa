"""The agent at work: a real kernel, a real libvirtd, containers for guests, real traffic.

Two guests, web1 and web2, are servers for every kind of service at once. libvirt's LXC driver says
nothing when a shutdown is asked for, so here a guest leaves when it has gone; the request is the
Xen lab's business. Requests may take 10 s: one sent to a guest that does not answer fails in any
case, and a machine that is busy with something else must not fail a test.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from tests.lab.host import LabError
from tests.lab.netns import NetNs
from tests.lab.uml import HERE, UmlLab
from tests.lab.uml.guests import LxcGuest, lxc_xml
from tests.lab.watched import Servers, WatchedAgent

VIP = "192.0.2.10"
# Service addresses that the guests have too, for the methods without address translation.
GATEWAYED, TUNNELLED, GATEWAYED6 = "192.0.2.11", "192.0.2.12", "fd00:2::11"
MARKED = "192.0.2.13"

CHECK = "{interval: 1s, timeout: 900ms, rise: 1, fall: 3}"
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


@pytest.fixture(scope="module")
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


def test_guests_join_when_they_serve_and_leave_when_they_go(
    lab: UmlLab, client: NetNs, agent: WatchedAgent, web1: LxcGuest, web2: LxcGuest
) -> None:
    one, two = (
        {method.service: method.servers(*numbers) for method in METHODS.values()}
        for numbers in ((11,), (11, 12))
    )
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
        lab.wait_until(
            lambda load=load: "web2" in [s for line in load.live()[-2:] for s in line["by_server"]],
            30,
            f"web2 to serve by {name}",
        )
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
