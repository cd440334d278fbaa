"""Draining: what is counted, when it is over, and how it ended.

Theory of operation
-------------------
A drain begins with weight 0, for one of two reasons: somebody drained the guest (`xenlb drain`,
`shutdown`, `reboot`), or the guest was asked to go or goes by itself (`requested`). It is over,
once and for all, with an outcome:

EMPTY      none of the connections that the services' policy counts is left
DEADLINE   its time is up; what is left is told. Only where somebody drained it: how long a guest
           that was asked to go still runs is the guest's own business (its hold, guestside/)
GONE       the guest has gone, or boots anew
UNDRAINED  an operator put it back into service
UNASKED    libvirt could not be asked for what follows before the order's time was up
STAYED     the guest did not go after all

After EMPTY and DEADLINE the guest stays out of service, and `then` is asked of libvirt. An order
has an end, ASKING after its deadline: it is not carried out any later, when its reason has passed
and its caller has gone.

What is counted: with `until: established` the kernel's active connections, with `all` the inactive
ones too (they may take minutes to time out). Of UDP the kernel has no notion of an end: an entry
lives 300 s after its last packet, and a client that goes on sending keeps it. A UDP server leaves
the table `drain.udp` after weight 0 (desired.py), and all its entries count until then.
A connection whose handshake is under way is not active yet, so a first look that finds none proves
nothing: it must be so for SETTLED.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from xenlb.ipvs.table import AddressKey, Counters, Forwarding, Protocol, ServerKey, ServiceKey
from xenlb.model.domain import RequestKind
from xenlb.model.settings import DrainUntil, ServiceSettings

SETTLED = 1.0  # seconds
ASKING = (
    30.0  # seconds after the deadline of a drain in which libvirt may be asked for what follows
)

Counts = Mapping[ServiceKey, Mapping[ServerKey, Counters]]


class Outcome(StrEnum):
    """How a drain ended."""

    EMPTY = "empty"
    DEADLINE = "deadline"
    GONE = "guest gone"
    UNDRAINED = "undrained"
    STAYED = "guest stayed"
    UNASKED = "not asked"


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """A guest is out of service since `since`, because of `reason`, by whom.

    `deadline`: when its time is up. `requested`: it ends when the guest does not go after all.
    `then`: what is asked of the guest when it is over; `asked`, when libvirt has been told, and
    `failure`, why it could not be. `left`: connections at the last count, None before it; `quiet`:
    since when there are none. `over`, `outcome`: when and how it ended; `end`: what has put the
    guest back, or away, after all. `warnings`: what stood in the way of it when it began.
    """

    reason: str
    by: str
    since: float
    deadline: float | None = None
    requested: bool = False
    then: RequestKind | None = None
    asked: bool = False
    failure: str = ""
    left: int | None = None
    quiet: float | None = None
    over: float | None = None
    outcome: Outcome | None = None
    end: Outcome | None = None
    warnings: tuple[str, ...] = ()

    @property
    def lasts(self) -> bool:
        """Is it still waited for connections to end?"""
        return self.outcome is None

    @property
    def due(self) -> bool:
        """Is it time to ask libvirt for what comes then?"""
        return self.then is not None and not self.lasts and not self.asked

    @property
    def expires(self) -> float | None:
        """When what comes then is not asked any more; None: nothing is, or it was asked."""
        if self.then is None or self.asked:
            return None
        return (self.since if self.deadline is None else self.deadline) + ASKING

    def text(self) -> str:
        """`drained by root`; `asked for poweroff` is nobody's in particular."""
        return f"{self.reason} by {self.by}" if self.by else self.reason

    def progress(self, places: int) -> str:
        """What is said behind its reason; "" before the first count. `places`: in how many kernel
        services its guest serves; what is counted is the guest's connections in all of them."""
        total = f" in its {places} services" if places > 1 else ""
        if self.failure:
            return f"; libvirt refuses: {self.failure}"
        match self.outcome:
            case Outcome.EMPTY:
                return ", empty"
            case Outcome.DEADLINE:
                with_left = f" with {connections(self.left)} left{total}" if self.left else ""
                return f", timed out{with_left}"
        if not self.left:
            return ""
        why = f"; {self.warnings[0]}" if self.warnings else ""
        return f", {connections(self.left)} left{total}{why}"


def connections(count: int) -> str:
    """`1 connection`, `2 connections`"""
    return f"{count} connection{'s' * (count != 1)}"


def ended(drain: Drain, outcome: Outcome, at: float) -> Drain:
    """The drain with its outcome; one that has one keeps it."""
    return drain if drain.outcome is not None else replace(drain, outcome=outcome, over=at)


def counted(drain: Drain, left: int, at: float, *, earliest: float) -> Drain:
    """The drain after a count of what is left; it is not empty before `earliest`."""
    if not drain.lasts:
        return drain
    if left:
        return replace(drain, left=left, quiet=None)
    quiet = at if drain.quiet is None else drain.quiet
    drain = replace(drain, left=0, quiet=quiet)
    return ended(drain, Outcome.EMPTY, at) if at >= max(quiet + SETTLED, earliest) else drain


def is_udp(key: ServiceKey) -> bool:
    return isinstance(key, AddressKey) and key.protocol is Protocol.UDP


def left_of(service: ServiceSettings, key: ServiceKey, counters: Counters | None) -> int:
    """The connections that are left of one server; `counters` None: it is not in the table."""
    if counters is None:
        return 0
    if service.drain.until is DrainUntil.ALL or is_udp(key):
        return counters.active_connections + counters.inactive_connections
    return counters.active_connections


# What a drain misses where a sysctl is not as the director wants it (director/sysctls.py).
QUIESCENT = "net.ipv4.vs.expire_quiescent_template"
NODEST = "net.ipv4.vs.expire_nodest_conn"
REUSE = "net.ipv4.vs.conn_reuse_mode"


def hindrances(services: Iterable[ServiceSettings], amiss: frozenset[str]) -> tuple[str, ...]:
    """One sentence for each sysctl that is amiss and stands in the way of a drain."""
    services = tuple(services)
    said = []
    if QUIESCENT in amiss and any(service.persistence is not None for service in services):
        said.append(f"its persistent clients still come: {QUIESCENT} is not 1")
    direct = any(service.forwarding is not Forwarding.MASQUERADE for service in services)
    if REUSE in amiss and direct:
        said.append(
            f"clients that use a port again still come, and fail once it has gone: {REUSE} is"
            " not as needed"
        )
    if NODEST in amiss and services:
        said.append(f"connections that are left hang once it has gone: {NODEST} is not 1")
    return tuple(said)
