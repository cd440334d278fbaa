"""Addresses that a Xen guest's tools write into xenstore.

They are below /local/domain/ID, where the guest may write what it likes:

    attr/vif/0/ipv4/0, attr/vif/0/ipv6/0    xe-guest-utilities from 6.6, Windows PV drivers
    attr/eth0/ip, attr/eth0/ipv6/0/addr     older xe-guest-utilities
    data/ip                                 scripts of administrators

They are read in that order, with at most REQUESTS requests, as a guest may write any number of
nodes. Nothing is checked here.
"""

from collections.abc import AsyncIterator
from contextlib import suppress

from xenlb.hypervisor.xenstore.client import XenstoreClient, XenstoreError
from xenlb.untrusted.budget import Budget, BudgetSpent

# For one guest: four interfaces, each with one address of IPv4 and two of IPv6, take 23.
REQUESTS = 24


async def read_reported_addresses(client: XenstoreClient, domid: int, most: int) -> tuple[str, ...]:
    """Read at most `most` texts. Raises XenstoreUnavailable."""
    base = f"/local/domain/{domid}"
    budget = Budget(pieces=REQUESTS - 1)
    texts: list[str] = []
    with suppress(BudgetSpent):
        async for path in _paths(client, budget, f"{base}/attr"):
            if len(texts) == most:
                break
            texts += await _value(client, budget, path)
    if len(texts) < most:
        texts += await _value(client, Budget(pieces=1), f"{base}/data/ip")
    return tuple(texts)


async def _paths(client: XenstoreClient, budget: Budget, attr: str) -> AsyncIterator[str]:
    for vif in await _names(client, budget, f"{attr}/vif"):
        for family in ("ipv4", "ipv6"):
            for number in await _names(client, budget, f"{attr}/vif/{vif}/{family}"):
                yield f"{attr}/vif/{vif}/{family}/{number}"
    for name in await _names(client, budget, attr):
        if name.startswith("eth"):
            yield f"{attr}/{name}/ip"
            for number in await _names(client, budget, f"{attr}/{name}/ipv6"):
                yield f"{attr}/{name}/ipv6/{number}/addr"


async def _names(client: XenstoreClient, budget: Budget, path: str) -> list[str]:
    budget.take()
    try:
        names = await client.directory(path)
    except XenstoreError:
        return []  # more than fits into a message, which no tool writes
    return sorted(name for name in names if name.isascii())


async def _value(client: XenstoreClient, budget: Budget, path: str) -> list[str]:
    """Return the value, unless it is empty or link-local, as one address of each IPv6 interface."""
    budget.take()
    try:
        text = await client.read(path)
    except XenstoreError:
        return []
    return [text] if text and not text.lower().startswith("fe80:") else []
