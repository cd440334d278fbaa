"""What a probe brings back, and how an errno of connect(2) is said in one line.

Details are stable: the same trouble gives the same words (no times, no source ports), as a
result whose words did not change is not worth an event.
"""

import errno
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from xenlb.health.transport.sockets import NetworkError
from xenlb.model.checks import Exec, Icmp
from xenlb.model.target import Target
from xenlb.untrusted.budget import Budget, BudgetSpent


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The outcome of one probe. `up` None: this host could not ask, so nothing is known.

    `share`: of the configured weight, where the server says one; as it says it, health.bounded is
    what holds. `away`: the server wants none of its weight."""

    up: bool | None
    detail: str
    share: float | None = None
    away: bool = False


# A probe of one type of check, of whose class `target.check.asks` is: asks once, and leaves nothing
# open, also when it is cancelled. How long it may take (`check.timeout`) is the runner's business.
# What the server says is taken out of the budget; a BudgetSpent is the runner's, too.
Probe = Callable[[Target, Budget], Awaitable[Answer]]

# Of the answer to one probe. A body of 64 KiB in chunks of 40 bytes has 5,000 pieces. TLS's own
# bytes count, too.
PIECES = 6000
SIZE = 256 * 1024  # bytes
TIME = 0.2  # s of the processor


def answer_budget() -> Budget:
    return Budget(pieces=PIECES, size=SIZE, time=TIME)


def too_much(target: Target, spent: BudgetSpent) -> Answer:
    """The answer for a probe whose server has said more than its budget."""
    where = f"{target.address} port {target.port}"
    return Answer(up=False, detail=f"expected an answer from {where}, got {spent}")


# Trouble of this host: too many open files or ports in use, a local firewall. It says nothing
# about the server, and taking every server out for it would turn a nuisance into an outage.
_OURS = {
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOBUFS,
    errno.ENOMEM,
    errno.EADDRNOTAVAIL,
    errno.EADDRINUSE,
    errno.EACCES,
    errno.EPERM,
    errno.EAFNOSUPPORT,
    errno.EAGAIN,  # a datagram for which there is no room
}


# Of these, what may come from the network as well.
_PROHIBITED = {errno.EACCES, errno.EPERM}


def failed(target: Target, error: OSError) -> Answer:
    """The answer for a connection that could not be made or broke."""
    where = f"{target.address} port {target.port}"
    code = error.errno
    if code in _PROHIBITED and isinstance(error, NetworkError):
        detail = f"{where} is prohibited by a firewall, which says so by ICMP"
        return Answer(up=False, detail=detail)
    if code in _OURS:
        reason = os.strerror(code).lower() if code else str(error)
        return Answer(up=None, detail=f"this host cannot probe {where}: {reason}")
    match code:
        case errno.ECONNREFUSED:
            detail = f"connection refused by {where}"
        case errno.ECONNRESET | errno.ECONNABORTED | errno.EPIPE:
            detail = f"connection reset by {where}"
        case errno.EHOSTUNREACH:
            what = "ARP" if target.address.version == 4 else "neighbour discovery"
            detail = f"no route to {target.address}: it does not answer {what}, or a router said so"
        case errno.ENETUNREACH:
            detail = f"no route to the network of {target.address}"
        case errno.ETIMEDOUT:
            detail = f"no answer from {where}"
        case None:
            detail = f"{where}: {error}"
        case _:
            detail = f"{where}: {os.strerror(code).lower()}"
    return Answer(up=False, detail=detail)


def too_late(target: Target, late: TimeoutError | None = None) -> Answer:
    """The answer for a probe that its timeout ended. What the probe was waiting for it may have
    left as a note of the cancellation, from which the timeout came."""
    notes: list[str] = getattr(late.__context__, "__notes__", []) if late is not None else []
    what = notes[0] if notes else "answer"
    within = f"within {target.check.timeout:g} s"
    where = f"{target.address} port {target.port}"
    match target.check.asks:
        case Exec(command=(program, *_)):
            detail = f"{program} did not end {within}"
        case Icmp():
            detail = f"no echo reply {within} from {target.address}"
        case _ if target.vip is not None:
            detail = (
                f"no answer {within} from {target.vip} port {target.port} via {target.address}"
                f" (does it have {target.vip}?)"
            )
        case _:
            detail = f"no {what} {within} from {where}"
    return Answer(up=False, detail=detail)
