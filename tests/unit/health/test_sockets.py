"""Errors of this host and errors from the network: the same numbers at different times."""

import asyncio

import pytest

from tests.unit.director.netns import in_own_network, sh
from tests.unit.health.datagrams import target
from tests.unit.health.peer import PEER6, peer
from xenlb.health.registry import run_probe
from xenlb.health.transport.result import Answer, answer_budget
from xenlb.model.checks import Agent, Asks, Dns, Http, Icmp, Tcp, Udp

BEHIND = "fd00:10::7"
ASKS = [Tcp(), Http(), Agent(), Udp(expect="x"), Udp(), Dns()]


@pytest.mark.parametrize("asks", ASKS, ids=repr)
@in_own_network
def test_a_firewall_that_answers_for_the_server_is_down(asks: Asks) -> None:
    """ICMPv6 “administratively prohibited”, which is EACCES."""
    with peer() as there:
        sh(f"ip route add fd00:10::/64 via {PEER6}")
        there("""
        sysctl -qw net.ipv6.conf.all.forwarding=1
        ip -6 route add prohibit fd00:10::/64
        """)
        assert asyncio.run(
            run_probe(target(asks, 53, BEHIND, timeout=20), answer_budget())
        ) == Answer(
            up=False, detail=f"{BEHIND} port 53 is prohibited by a firewall, which says so by ICMP"
        )


@pytest.mark.parametrize("asks", [*ASKS, Icmp()], ids=repr)
@in_own_network
def test_a_prohibition_of_this_host_is_no_verdict(asks: Asks) -> None:
    sh("""
    ip link set lo up
    ip -6 route add prohibit fd00:10::/64
    """)
    assert asyncio.run(run_probe(target(asks, 53, BEHIND, timeout=20), answer_budget())) == Answer(
        up=None, detail=f"this host cannot probe {BEHIND} port 53: permission denied"
    )
