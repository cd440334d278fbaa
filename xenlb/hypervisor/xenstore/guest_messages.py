"""Nodes of xenstore that a Xen guest may write: watches and reads.

Toolstacks write shutdown requests to control/shutdown, which the guest clears. The hold in a guest
writes `leaving` to data/xenlb when it is stopped, at the beginning of the guest's shutdown, and
`staying` when it is started. A node is read when it is written, and once when the domain is first
seen: a value written while the agent was away still counts.

A guest may write anything at any rate, but only below its own path. Unknown values are ignored. To
limit the agent's work, a node is not watched for MUTED seconds after BURST firings, with RATE more
a second, and then read once.
"""

import asyncio
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from xenlb.hypervisor.xenstore.client import XenstoreClient, XenstoreError, XenstoreUnavailable
from xenlb.hypervisor.xenstore.wire import Type
from xenlb.model.domain import GuestId
from xenlb.untrusted.rate import TokenBucket

log = logging.getLogger(__name__)

LONGEST = 64  # bytes of a value that are used
BURST, RATE = 50, 5.0  # firings of a node that are read at once, then per second
MUTED = 10.0  # seconds


@dataclass(slots=True, kw_only=True)
class _WatchedDomain:
    domid: int
    guest: GuestId
    value: str = ""
    rate: TokenBucket = field(default_factory=lambda: TokenBucket(BURST, RATE))
    muted: bool = False
    warned: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestNode:
    """A node of every domain.

    `name`: path below the domain's; `token`: prefix of its watches' tokens; `pattern`: of values
    that are reported if they have changed; without one each value is reported at each firing.
    """

    name: str
    token: str
    pattern: re.Pattern[str] | None = None

    def path(self, domid: int) -> str:
        """The absolute path of the node in xenstore."""
        return f"/local/domain/{domid}/{self.name}"


SHUTDOWN = GuestNode(name="control/shutdown", token="shutdown-")
HOLD = GuestNode(name="data/xenlb", token="says-", pattern=re.compile("leaving|staying"))


class GuestNodeWatch:
    """Watches one node of all domains over one connection.

    `on_value(domid, guest, value)` is called in the loop's thread. `values`, by domain id: those
    reported over earlier connections; updated here.
    """

    def __init__(
        self,
        client: XenstoreClient,
        node: GuestNode,
        on_value: Callable[[int, GuestId, str], None],
        clock: Callable[[], float],
        values: dict[int, str],
    ) -> None:
        self._client = client
        self.node = node
        self._on_value = on_value
        self._clock = clock
        self._values = values
        self._domains: dict[int, _WatchedDomain] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Stop, after the connection has ended."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def add(self, domid: int, guest: GuestId) -> None:
        """Watch the node of a domain. Raises XenstoreUnavailable or XenstoreError."""
        value = self._values.get(domid, "")
        self._domains[domid] = _WatchedDomain(domid=domid, guest=guest, value=value)
        await self._watch(domid)

    async def remove(self, domid: int) -> None:
        """Forget a domain that has ended. Raises XenstoreUnavailable."""
        self._values.pop(domid, None)
        domain = self._domains.pop(domid, None)
        if domain is not None and not domain.muted:
            await self._unwatch(domid)

    async def _watch(self, domid: int) -> None:
        await self._client.watch(self.node.path(domid), f"{self.node.token}{domid}")

    async def _unwatch(self, domid: int) -> None:
        try:
            path = self.node.path(domid)
            await self._client.call(Type.UNWATCH, path, f"{self.node.token}{domid}")
        except XenstoreError as error:
            log.debug("xenstore: unwatch of %s: %s", path, error)

    def fired(self, token: str) -> None:
        """Read the node whose watch has fired."""
        number = token.removeprefix(self.node.token)
        domain = self._domains.get(int(number)) if number.isdecimal() else None
        if domain is None or domain.muted:
            return
        if not domain.rate.take(self._clock()):
            domain.muted = True
            log.log(
                logging.DEBUG if domain.warned else logging.WARNING,
                "xenstore: domain %d writes %s too often; it is not watched for %g s",
                domain.domid,
                self.node.path(domain.domid),
                MUTED,
            )
            domain.warned = True
            task = asyncio.get_running_loop().create_task(self._mute(domain))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            return
        try:
            reply = self._client.request(Type.READ, self.node.path(domain.domid))
        except XenstoreUnavailable:
            return  # read again after the next connection
        reply.add_done_callback(partial(self._on_reply, domain))

    async def _mute(self, domain: _WatchedDomain) -> None:
        try:
            await self._unwatch(domain.domid)
            await asyncio.sleep(MUTED)
            if self._domains.get(domain.domid) is domain:
                domain.muted, domain.rate = False, TokenBucket(BURST, RATE)
                await self._watch(domain.domid)
        except (XenstoreUnavailable, XenstoreError) as error:
            log.debug("xenstore: %s: %s", self.node.path(domain.domid), error)

    def _on_reply(self, domain: _WatchedDomain, reply: "asyncio.Future[bytes]") -> None:
        if reply.cancelled() or reply.exception() is not None:
            return  # the node does not exist
        value = reply.result()[:LONGEST].decode("ascii", errors="replace")
        if self.node.pattern is not None:
            if not self.node.pattern.fullmatch(value) or value == domain.value:
                return
            domain.value = self._values[domain.domid] = value
        self._on_value(domain.domid, domain.guest, value)
