"""The probe of each type of check.

A probe's module is loaded for the first check of its type, in a thread: some import large
libraries, which would block the agent's loop.
"""

import asyncio
from collections.abc import Mapping
from importlib import import_module

from xenlb.health.transport.result import Answer, Probe, answer_budget
from xenlb.model import checks
from xenlb.model.target import Target
from xenlb.untrusted.budget import Budget

# Each has a function `probe`, a Probe.
MODULES: Mapping[type[checks.Asks], str] = {
    checks.Tcp: "probes.tcp",
    checks.TlsHandshake: "probes.tls",
    checks.Http: "probes.http",
    checks.Smtp: "probes.smtp",
    checks.Imap: "probes.imap",
    checks.Pop3: "probes.pop3",
    checks.Ldap: "probes.ldap",
    checks.Mysql: "probes.mysql",
    checks.Pgsql: "probes.pgsql",
    checks.Redis: "probes.redis",
    checks.Dns: "probes.dns",
    checks.Udp: "probes.udp",
    checks.Icmp: "probes.icmp",
    checks.Exec: "probes.program",
    checks.Agent: "probes.agent",
}
# For checks of the service address through one server.
VIA_VIP = "via_vip.vip"

_loaded: dict[str, Probe] = {}


async def run_probe(target: Target, budget: Budget | None = None) -> Answer:
    """Run one probe, without a time limit.

    `budget`: by default answer_budget(). Raises BudgetSpent.
    """
    return await (await load_probe(target))(target, budget or answer_budget())


async def load_probe(target: Target) -> Probe:
    """Return the probe for a target.

    The first of its type may take a second on a busy host, which is not to be counted as the
    server's delay.
    """
    module = MODULES[type(target.check.asks)] if target.vip is None else VIA_VIP
    # sys.modules has a module already while another thread is still executing it.
    if module not in _loaded:
        name = f"{__package__}.{module}"
        _loaded[module] = (await asyncio.to_thread(import_module, name)).probe
    return _loaded[module]
