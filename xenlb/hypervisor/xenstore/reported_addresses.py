"""Addresses that a Xen guest writes of itself into xenstore.

Its tools write them below /local/domain/ID, which the guest may write as it likes:

    attr/vif/0/ipv4/0, attr/vif/0/ipv6/0    xe-guest-utilities from 6.6, Windows PV drivers
    attr/eth0/ip, attr/eth0/ipv6/0/addr     older xe-guest-utilities
    data/ip                                 home-made scripts, of many a Dom0's folklore

Only reading, in that order, and never more than REQUESTS paths. What they are worth:
address_policy.py.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass

from xenlb.hypervisor.xenstore.client import XenstoreClient, XenstoreError

# Of xenstored, for one look at one guest: four interfaces, each with one address of
# IPv4 and two of IPv6, take 23.
REQUESTS = 24


async def read(client: XenstoreClient, domid: int, most: int) -> tuple[str, ...]:
    """At most `most` texts. Raises Unavailable or Refused (not for what is not there)."""
    base = f"/local/domain/{domid}"
    look = _Look(client=client, left=REQUESTS - 1)
    texts: list[str] = []
    async for path in _paths(look, f"{base}/attr"):
        if len(texts) == most:
            break
        texts += _usable(await look.value(path))
    look.left += 1  # the last one is kept for this
    if len(texts) < most:
        texts += _usable(await look.value(f"{base}/data/ip"))
    return tuple(texts)


async def _paths(look: "_Look", attr: str) -> AsyncIterator[str]:
    for vif in await look.names(f"{attr}/vif"):
        for family in ("ipv4", "ipv6"):
            for number in await look.names(f"{attr}/vif/{vif}/{family}"):
                yield f"{attr}/vif/{vif}/{family}/{number}"
    for name in await look.names(attr):
        if name.startswith("eth"):
            yield f"{attr}/{name}/ip"
            for number in await look.names(f"{attr}/{name}/ipv6"):
                yield f"{attr}/{name}/ipv6/{number}/addr"


def _usable(text: str | None) -> list[str]:
    """Every IPv6 interface has a link-local address; there is nothing to tell of it."""
    return [text] if text and not text.lower().startswith("fe80:") else []


@dataclass(slots=True, kw_only=True)
class _Look:
    """One look at one guest: it may write as many nodes as it likes, and costs no more than this.
    `left`: requests that it may still make; without any there is nothing to be found."""

    client: XenstoreClient
    left: int

    async def names(self, path: str) -> list[str]:
        if not self._may():
            return []
        try:
            names = await self.client.directory(path)
        except XenstoreError:
            return []  # more than fits into a message: not what any tool writes
        return sorted(name for name in names if name.isascii())

    async def value(self, path: str) -> str | None:
        if not self._may():
            return None
        try:
            return await self.client.read(path)
        except XenstoreError:
            return None

    def _may(self) -> bool:
        if not self.left:
            return False
        self.left -= 1
        return True
