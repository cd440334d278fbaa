"""Which probe asks for which type of check.

A probe's module is loaded when the first check of its type is there, in a thread: some bring large
libraries along, and nothing may hold up the agent's loop.
"""

import asyncio
from collections.abc import Mapping
from importlib import import_module

from xenlb.health.transport.result import Answer, Probe, answer_budget
from xenlb.model.checks import (
    Agent,
    Asks,
    Dns,
    Exec,
    Http,
    Icmp,
    Imap,
    Ldap,
    Mysql,
    Pgsql,
    Pop3,
    Redis,
    Smtp,
    Tcp,
    TlsHandshake,
    Udp,
)
from xenlb.model.target import Target
from xenlb.untrusted.budget import Budget

# Each has a function `probe`, a Probe.
MODULES: Mapping[type[Asks], str] = {
    Tcp: "probes.tcp",
    TlsHandshake: "probes.tls",
    Http: "probes.http",
    Smtp: "probes.smtp",
    Imap: "probes.imap",
    Pop3: "probes.pop3",
    Ldap: "probes.ldap",
    Mysql: "probes.mysql",
    Pgsql: "probes.pgsql",
    Redis: "probes.redis",
    Dns: "probes.dns",
    Udp: "probes.udp",
    Icmp: "probes.icmp",
    Exec: "probes.program",
    Agent: "probes.agent",
}
# Of a check that goes to the service address, through the server.
VIA_VIP = "via_vip.vip"

_loaded: dict[str, Probe] = {}


async def run_probe(target: Target, budget: Budget | None = None) -> Answer:
    """One probe; how long it may take is the caller's business. `budget`: what its answer may cost,
    where the caller measures that; without one it has that of any answer. Raises BudgetSpent."""
    return await (await load_probe(target))(target, budget or answer_budget())


async def load_probe(target: Target) -> Probe:
    """What asks this target. Loading it the first time may take a second on a busy host, which is
    not the server's delay."""
    module = MODULES[type(target.check.asks)] if target.vip is None else VIA_VIP
    # Not by sys.modules: it has a module already while another thread is still executing it.
    if module not in _loaded:
        name = f"{__package__}.{module}"
        _loaded[module] = (await asyncio.to_thread(import_module, name)).probe
    return _loaded[module]
