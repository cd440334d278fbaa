"""Results of probes, and one-line details for errors of connect(2).

Details are stable: the same failure has the same text (no times, no source ports), because a
changed text is an event.
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
    """The outcome of one probe. `up` None: this host could not probe, so nothing is known.

    `share`: of the configured weight, as the server reports it, unchecked; None if it does not.
    `declines`: the server wants no new connections.
    """

    up: bool | None
    detail: str
    share: float | None = None
    declines: bool = False


# The probe of one type of check. It leaves nothing open, also when it is cancelled. The runner
# limits its time (`check.timeout`). Input is counted by the budget; the runner handles BudgetSpent.
Probe = Callable[[Target, Budget], Awaitable[Answer]]

# Of one answer. A body of 64 KiB in chunks of 40 bytes has 5,000 pieces. Bytes of TLS count, too.
PIECES = 6000
SIZE = 256 * 1024  # bytes
TIME = 0.2  # s of the processor

# Errors of this host: too many open files or ports in use, a local firewall. They say nothing about
# the server. If they counted as failures, they would remove every server.
_LOCAL_ERRORS = {
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOBUFS,
    errno.ENOMEM,
    errno.EADDRNOTAVAIL,
    errno.EADDRINUSE,
    errno.EACCES,
    errno.EPERM,
    errno.EAFNOSUPPORT,
    errno.EAGAIN,  # no room for a datagram
}
# Those that may come from the network as well.
_PROHIBITED = {errno.EACCES, errno.EPERM}


def answer_budget() -> Budget:
    """Return the budget of one answer."""
    return Budget(pieces=PIECES, size=SIZE, time=TIME)


def where(target: Target) -> str:
    """Return address and port of a server, for details."""
    return f"{target.address} port {target.port}"


def over_budget(target: Target, spent: BudgetSpent) -> Answer:
    """Return the answer for a server that has exceeded its budget."""
    return Answer(up=False, detail=f"expected an answer from {where(target)}, got {spent}")


def failed(target: Target, error: OSError) -> Answer:
    """Return the answer for a connection that failed."""
    code = error.errno
    if code in _PROHIBITED and isinstance(error, NetworkError):
        detail = f"{where(target)} is prohibited by a firewall, which says so by ICMP"
        return Answer(up=False, detail=detail)
    if code in _LOCAL_ERRORS:
        reason = os.strerror(code).lower() if code else str(error)
        return Answer(up=None, detail=f"this host cannot probe {where(target)}: {reason}")
    protocol = "ARP" if target.address.version == 4 else "neighbour discovery"
    reset = f"connection reset by {where(target)}"
    details = {
        errno.ECONNREFUSED: f"connection refused by {where(target)}",
        errno.ECONNRESET: reset,
        errno.ECONNABORTED: reset,
        errno.EPIPE: reset,
        errno.EHOSTUNREACH: f"no route to {target.address}: it does not answer {protocol},"
        " or a router said so",
        errno.ENETUNREACH: f"no route to the network of {target.address}",
        errno.ETIMEDOUT: f"no answer from {where(target)}",
        None: f"{where(target)}: {error}",
    }
    other = f"{where(target)}: {os.strerror(code or 0).lower()}"
    return Answer(up=False, detail=details.get(code, other))


def timed_out(target: Target, timeout: TimeoutError | None = None) -> Answer:
    """Return the answer for a probe that exceeded its timeout.

    The probe may have added a note with what it was waiting for to the CancelledError from which
    `timeout` comes.
    """
    notes: list[str] = getattr(timeout.__context__, "__notes__", []) if timeout is not None else []
    what = notes[0] if notes else "answer"
    within = f"within {target.check.timeout:g} s"
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
            detail = f"no {what} {within} from {where(target)}"
    return Answer(up=False, detail=detail)
