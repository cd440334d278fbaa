"""Draining: what is counted, when a drain is over, and how it ended.

Theory of operation
-------------------
A drain begins with weight 0, for one of two reasons: an operator drained the guest (`xenlb drain`,
`shutdown`, `reboot`), or the guest was asked to shut down or does so by itself (`requested`). It is
over once, with an outcome:

EMPTY      none of the connections that the services' policy counts is left
DEADLINE   its time is up; the connections left are reported. Only for drains of operators: how
           long a guest that was asked to shut down still runs is up to its hold
GONE       the guest is gone, or boots again
UNDRAINED  an operator put it back into service
UNASKED    libvirt could not be reached in time for the request that follows
STAYED     the guest did not shut down after all

After EMPTY and DEADLINE the guest stays out of service, and `then` is requested from libvirt. The
request expires REQUEST_TIME after the drain's deadline: later its reason has passed and its caller
is gone.

What is counted: with `until: established` the kernel's active connections, with `all` also the
inactive ones, which may take minutes to time out. The kernel does not know when a UDP flow ends: an
entry lives 300 s after its last packet, and a client that goes on sending keeps it. So a UDP server
leaves the table `drain.udp` after weight 0, and all its entries count until then.
A connection whose handshake is under way is not active yet, so one count of zero proves nothing: it
must stay zero for SETTLED.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from xenlb.ipvs.table import AddressKey, Counters, Forwarding, Protocol, ServerKey, ServiceKey
from xenlb.model.domain import RequestKind
from xenlb.model.settings import DrainUntil, ServiceSettings

SETTLED = 1.0  # seconds
REQUEST_TIME = 30.0  # seconds after a drain's deadline in which libvirt may get the request

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
    """A guest is out of service since `since`, because of `reason`, by an operator or "".

    `requested`: it ends when the guest does not shut down after all. `then`: the request to the
    guest that follows; `asked`: libvirt has it; `failure`: why libvirt refused it. `left`:
    connections at the last count, None before it; `quiet`: since when there are none. `over`,
    `outcome`: when and how it ended; `end`: what ended the guest's time out of service. `warnings`:
    what hindered it when it began.
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
    def active(self) -> bool:
        """Whether it still waits for connections to end."""
        return self.outcome is None

    @property
    def request_due(self) -> bool:
        """Whether the request that follows has to be sent to libvirt."""
        return self.then is not None and not self.active and not self.asked

    @property
    def request_expires(self) -> float | None:
        """When the request is given up; None: there is none, or it was sent."""
        if self.then is None or self.asked:
            return None
        return (self.since if self.deadline is None else self.deadline) + REQUEST_TIME

    def text(self) -> str:
        """Return the reason in words: `drained by root`, or `asked for poweroff`."""
        return f"{self.reason} by {self.by}" if self.by else self.reason

    def progress(self, services: int) -> str:
        """Return what follows its reason in messages; "" before the first count.

        `services`: the number of the guest's kernel services, whose connections are counted
        together.
        """
        total = f" in its {services} services" if services > 1 else ""
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
    """Return the count with its noun: `1 connection`, `2 connections`."""
    return f"{count} connection{'s' * (count != 1)}"


def ended(drain: Drain, outcome: Outcome, at: float) -> Drain:
    """Return the drain with its outcome; the first outcome stays."""
    return replace(drain, outcome=outcome, over=at) if drain.active else drain


def with_count(drain: Drain, left: int, at: float, *, earliest: float) -> Drain:
    """Return the drain after a count of its connections; it is not empty before `earliest`."""
    if not drain.active:
        return drain
    if left:
        return replace(drain, left=left, quiet=None)
    quiet = at if drain.quiet is None else drain.quiet
    drain = replace(drain, left=0, quiet=quiet)
    return ended(drain, Outcome.EMPTY, at) if at >= max(quiet + SETTLED, earliest) else drain


def is_udp(key: ServiceKey) -> bool:
    """Return whether the service is UDP; False for a mark, whose protocol is not known."""
    return isinstance(key, AddressKey) and key.protocol is Protocol.UDP


def connections_left(service: ServiceSettings, key: ServiceKey, counters: Counters | None) -> int:
    """Return the connections left of one server; `counters` None: it is not in the table."""
    if counters is None:
        return 0
    if service.drain.until is DrainUntil.ALL or is_udp(key):
        return counters.active_connections + counters.inactive_connections
    return counters.active_connections


QUIESCENT = "net.ipv4.vs.expire_quiescent_template"
NODEST = "net.ipv4.vs.expire_nodest_conn"
REUSE = "net.ipv4.vs.conn_reuse_mode"


def hindrances(services: Iterable[ServiceSettings], wrong: frozenset[str]) -> tuple[str, ...]:
    """Return a sentence for each wrong sysctl that hinders a drain in these services."""
    services = tuple(services)
    sentences = []
    if QUIESCENT in wrong and any(service.persistence is not None for service in services):
        sentences.append(f"persistent clients still connect to it: {QUIESCENT} is not 1")
    direct = any(service.forwarding is not Forwarding.MASQUERADE for service in services)
    if REUSE in wrong and direct:
        sentences.append(
            "clients that reuse a port still connect to it, and fail once it is gone:"
            f" {REUSE} is not as needed"
        )
    if NODEST in wrong and services:
        sentences.append(f"connections left will hang once it is gone: {NODEST} is not 1")
    return tuple(sentences)
