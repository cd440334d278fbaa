"""Addresses that a Xen guest writes of itself into xenstore.

Its tools write them below /local/domain/ID, which the guest may write as it likes:

    attr/vif/0/ipv4/0, attr/vif/0/ipv6/0    xe-guest-utilities from 6.6, Windows PV drivers
    attr/eth0/ip, attr/eth0/ipv6/0/addr     older xe-guest-utilities
    data/ip                                 home-made scripts, of many a Dom0's folklore

Only reading, in that order, and never more than a few paths. What they are worth: judge.py.
"""

from xenlb.hypervisor.xenstore_client import Refused, XenstoreClient

MOST_NAMES = 16


async def read(client: XenstoreClient, domid: int, most: int) -> tuple[str, ...]:
    """At most `most` texts. Raises Unavailable or Refused (not for what is not there)."""
    base = f"/local/domain/{domid}"
    texts: list[str] = []

    async def take(path: str) -> None:
        if len(texts) < most:
            text = await _value(client, path)
            # Every IPv6 interface has a link-local address; there is nothing to tell of it.
            if text and not text.lower().startswith("fe80:"):
                texts.append(text)

    for vif in await _names(client, f"{base}/attr/vif"):
        for family in ("ipv4", "ipv6"):
            for number in await _names(client, f"{base}/attr/vif/{vif}/{family}"):
                await take(f"{base}/attr/vif/{vif}/{family}/{number}")
    for name in await _names(client, f"{base}/attr"):
        if name.startswith("eth"):
            await take(f"{base}/attr/{name}/ip")
            for number in await _names(client, f"{base}/attr/{name}/ipv6"):
                await take(f"{base}/attr/{name}/ipv6/{number}/addr")
    await take(f"{base}/data/ip")
    return tuple(texts)


async def _names(client: XenstoreClient, path: str) -> list[str]:
    try:
        names = await client.directory(path)
    except Refused:
        return []  # more than fits into a message: not what any tool writes
    return sorted(name for name in names if name.isascii())[:MOST_NAMES]


async def _value(client: XenstoreClient, path: str) -> str | None:
    try:
        return await client.read(path)
    except Refused:
        return None
