"""The agent with checks that are no connections: through a server, by a program, and with flush."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.agent import LabAgent
from tests.lab.uml import ServerNs, UmlLab

WEB, NAMES = "192.0.2.71", "192.0.2.72"
ADDRESS, OTHER = "10.0.0.71", "10.0.0.72"
BAD = "/run/lab/bad"
CONFIG = f"""
director: {{interface: front0}}
services:
  web:
    address: {WEB}
    ports: [80]
    forwarding: gatewaying
    check: {{via: vip, interval: 3s, timeout: 2s, fall: 2}}
    servers: [{{host: {ADDRESS}}}]
  names:
    address: {NAMES}
    ports: [53/udp]
    forwarding: masquerade
    flush: true
    check:
      type: exec
      command: [/bin/sh, -c, '[ ! -e {BAD} ] || [ "$XENLB_ADDRESS" != {OTHER} ] || exit 2']
      interval: 5s
      timeout: 4s
      fall: 2
    servers: [{{host: {ADDRESS}}}, {{host: {OTHER}}}]
"""


@pytest.fixture(scope="module")
def server(uml: UmlLab) -> ServerNs:
    made = uml.server_ns("server71", ADDRESS)
    made.add_vip(WEB, forwarding="gatewaying")
    made.serve("0.0.0.0:80", udp=("0.0.0.0:53",))
    return made


@pytest.fixture(scope="module")
def agent(uml: UmlLab, server: ServerNs) -> Iterator[LabAgent]:
    uml.run("modprobe ip_vs; modprobe nf_conntrack_netlink")
    agent = LabAgent(uml, CONFIG)
    agent.start()
    yield agent
    agent.stop()


def in_table(agent: LabAgent, service: str, address: str) -> bool:
    return any(
        f"{service}:" in line and f"-r {address}:" in line for line in agent.table().split("\n")
    )


def test_a_server_without_the_service_address_leaves(
    uml: UmlLab, agent: LabAgent, server: ServerNs
) -> None:
    uml.wait_until(lambda: in_table(agent, WEB, ADDRESS), 30, "the server to be let in")
    server.run(f"ip addr del {WEB}/32 dev lo")
    uml.wait_until(lambda: not in_table(agent, WEB, ADDRESS), 30, "the server to be taken out")
    assert f"(does it have {WEB}?)" in agent.xenlb("status", "web").out
    server.run(f"ip addr add {WEB}/32 dev lo")
    uml.wait_until(lambda: in_table(agent, WEB, ADDRESS), 120, "the server to return")


def test_what_a_program_says_and_the_flush(uml: UmlLab, agent: LabAgent, server: ServerNs) -> None:
    uml.wait_until(lambda: in_table(agent, NAMES, OTHER), 30, "the server to be let in")
    # A flow that did not come through IPVS: the kernel keeps its entry.
    uml.run("iptables-legacy -A OUTPUT -m conntrack --ctstate INVALID -j DROP")
    uml.run(["/bin/bash", "-c", f"echo x >/dev/udp/{OTHER}/53"])
    assert f" src={OTHER} " in uml.text("/proc/net/nf_conntrack")
    uml.run(["touch", BAD])
    uml.wait_until(lambda: not in_table(agent, NAMES, OTHER), 30, "the server to be taken out")
    assert in_table(agent, NAMES, ADDRESS)
    assert "/bin/sh says CRITICAL" in agent.xenlb("status", "names").out
    uml.wait_until(
        lambda: any("flushed" in each["text"] for each in agent.events()), 20, "the flush"
    )
