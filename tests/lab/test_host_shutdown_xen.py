"""A Dom0 that goes down: xenlb-drain.service drains its guests before anybody shuts them down.

The real units under Dom0's systemd, with libvirt's own libvirt-guests.service behind them; what is
left of it is Dom0's console.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.lab.agent import ServiceAgent
from tests.lab.xen import XenLab

CONFIG = """
libvirt: {uris: ["xen:///system"], keepalive: 3m}
director: {interface: front0}
services:
  web:
    address: 192.0.2.10
    ports: [80]
    scheduler: rr
    forwarding: masquerade
    keep-in-service: 50%
    drain: {timeout: 60s}
    servers:
      - {guest: web1, address: 10.0.0.11}
      - {guest: web2, address: 10.0.0.12}
"""
# What stands in the table, on the console, when each of the two units has stopped.
# Out of the sandbox of the unit, which has no network, no devices and none of root's powers.
TELL = """
[Service]
ExecStopPost=+/usr/bin/nsenter --target=1 --net --mount /bin/sh -c ' \\
    n=$$(ipvsadm -Sn | grep -c -e "-w 0"); \\
    echo "== %p: $$n at weight 0 =="'
"""
SAY = """
[Service]
StandardOutput=journal+console
StandardError=journal+console
"""


@pytest.fixture
def lab(xen: XenLab) -> Iterator[XenLab]:
    xen.reset()
    yield xen
    xen.close()  # the next test boots it anew


def test_guests_are_drained_before_they_are_shut_down(lab: XenLab) -> None:
    guests = [lab.define_guest(f"web{n}", f"10.0.0.1{n}", stop_delay=2) for n in (1, 2)]
    agent = ServiceAgent(lab, CONFIG)
    agent.start(ready=120)
    lab.start(*guests)
    agent.wait_serving("web1", "web2", timeout=180)
    units = "/etc/systemd/system"
    lab.write(f"{units}/xenlb-drain.service.d/tell.conf", TELL + SAY)
    lab.write(f"{units}/libvirt-guests.service.d/tell.conf", TELL + SAY)
    lab.write("/etc/default/libvirt-guests", "ON_SHUTDOWN=shutdown\nSHUTDOWN_TIMEOUT=60\n")
    lab.run("systemctl unmask libvirt-guests; systemctl daemon-reload")
    lab.run("systemctl start libvirt-guests xenlb-drain", timeout=120)

    # Stopped by itself, while the host stays up, it drains nobody.
    lab.run("systemctl restart xenlb-drain", timeout=60)
    assert {server["weight"] for server in agent.servers().values()} == {1}

    client = lab.client("client", "192.0.2.100")
    # Some of them are open whenever one looks, until the host goes down.
    client.load("192.0.2.10:80", rate=1, timeout=120, path="/slow?seconds=5")
    agent.wait_server("web1", lambda server: server["active_connections"] > 0)
    lab.power_off(timeout=300)
    console = lab.console
    told = re.findall(r"== ([a-z-]+): (\d+) at weight 0 ==", console)
    restarted = ("xenlb-drain", "0")
    assert told == [restarted, ("xenlb-drain", "2"), ("libvirt-guests", "0")], console[-4000:]
    drained = [line for line in console.splitlines() if "drained" in line or "keep-in" in line]
    first = next(n for n, line in enumerate(drained) if "in service until then" in line)
    last = next(n for n, line in enumerate(drained) if "every guest of this host" in line)
    assert first < last, "\n".join(drained)
