"""Which probe asks for which type of check.

A probe's module is loaded when the first check of its type is there, in a thread: some bring large
libraries along, and nothing may hold up the agent's loop.
"""

import asyncio
import sys
from collections.abc import Mapping
from importlib import import_module

from xenlb.health.answer import Answer, Probe
from xenlb.model.checks import Agent, Asks, Dns, Exec, Icmp, Tcp, Udp
from xenlb.model.events import Target

# Each has a function `probe`, a Probe.
MODULES: Mapping[type[Asks], str] = {
    Tcp: "tcp",
    Dns: "dns",
    Udp: "udp",
    Icmp: "icmp",
    Exec: "program",
    Agent: "agent",
}
# Of a check that goes to the service address, through the server.
VIA_VIP = "vip"


async def ask(target: Target) -> Answer:
    """One probe; how long it may take is the caller's business."""
    module = MODULES[type(target.check.asks)] if target.vip is None else VIA_VIP
    probe = await _probe_of(f"{__package__}.{module}")
    return await probe(target)


async def _probe_of(module: str) -> Probe:
    if module not in sys.modules:
        await asyncio.to_thread(import_module, module)
    probe: Probe = sys.modules[module].probe
    return probe
