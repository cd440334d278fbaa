"""Which probe asks for which type of check.

A probe's module is loaded when the first check of its type is there, in a thread: some bring large
libraries along, and nothing may hold up the agent's loop.
"""

import asyncio
from collections.abc import Mapping
from importlib import import_module

from xenlb.health.answer import Answer, Probe
from xenlb.model.checks import (
    Asks,
    Http,
    Imap,
    Ldap,
    Mysql,
    Pgsql,
    Pop3,
    Redis,
    Smtp,
    Tcp,
    TlsHandshake,
)
from xenlb.model.events import Target

# Each has a function `probe`, a Probe.
MODULES: Mapping[type[Asks], str] = {
    Tcp: "tcp",
    TlsHandshake: "tls",
    Http: "http",
    Smtp: "smtp",
    Imap: "imap",
    Pop3: "pop3",
    Ldap: "ldap",
    Mysql: "mysql",
    Pgsql: "pgsql",
    Redis: "redis",
}


# Those that are loaded. Not sys.modules: while a thread still runs a module's code, it is in there.
_loaded: dict[type[Asks], Probe] = {}


async def ask(target: Target) -> Answer:
    """One probe; how long it may take is the caller's business."""
    asks = type(target.check.asks)
    probe = _loaded.get(asks) or await _load(asks)
    return await probe(target)


async def _load(asks: type[Asks]) -> Probe:
    """The import's own lock makes whoever asks meanwhile wait in a thread of his."""
    module = await asyncio.to_thread(import_module, f"{__package__}.{MODULES[asks]}")
    return _loaded.setdefault(asks, module.probe)
