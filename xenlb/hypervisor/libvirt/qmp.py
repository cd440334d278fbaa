"""What QEMU itself reports through libvirt's monitor events, where libvirt's own come too late.

POWERDOWN
    A guest is asked to go; 17 ms after the command, and not told apart from a reboot.
VSERPORT_CHANGE
    The guest has opened or closed a virtio port. The hold in a guest (guestside/) opens the port
    with the alias ua-xenlb when it is stopped, at the beginning of the guest's shutdown: then the
    guest goes. Nothing is ever read from it. It is closed when the hold is started again, but also
    by the end of the guest, 15 ms and more before SHUTDOWN tells of that (seen with QEMU 7.2): so
    the guest stays only if it is still there CLOSED seconds later.
MIGRATION
    A migration, or a save, begins (setup, active), is over (completed) or has come to nothing
    (failed, cancelled). libvirt tells of the first not at all, and of the last only where the guest
    stood still meanwhile. The host that a guest comes to hears the same words while the guest is
    paused there.

QEMU's others are libvirt's events already, at the same moment, and better there: SHUTDOWN as the
life cycle event SHUTDOWN, which libvirt leaves out where the SHUTDOWN is half of a `virsh reboot`
(its «fake reboot»: shutdown, reset, go on), and RESET as the event REBOOT. source.py's connection
carries these callbacks; session.py registers and ends them.

The read-only connection does not get monitor events.
"""

from collections.abc import Callable
from contextlib import suppress

import libvirt
import libvirt_qemu

from xenlb.hypervisor.libvirt.queries import Connection, Domain, libvirt_errors
from xenlb.model.domain import GuestId, RequestKind
from xenlb.model.events import HypervisorEvent, Resumed, ShutdownCancelled, ShutdownRequested
from xenlb.untrusted.budget import Budget, BudgetSpent
from xenlb.untrusted.json_text import json_value

EVENTS = ("POWERDOWN", "VSERPORT_CHANGE", "MIGRATION")
PORT = "ua-xenlb"  # libvirt takes aliases of its users that begin with ua-
CLOSED = 5.0
# Of the details of an event, which have a handful of values.
VALUES, LONGEST = 100, 1 << 16

# domain, name of the event, its details as JSON
Tell = Callable[[Domain, str, str | None], None]


def register(connection: Connection, tell: Tell) -> tuple[int, ...]:
    """Blocks. `tell` is called in the loop's thread. Raises CallFailed."""

    def heard(
        _connection: object,
        domain: Domain,
        event: str,
        _seconds: int,
        _microseconds: int,
        details: str | None,
        _opaque: object,
    ) -> None:
        tell(domain, event, details)

    with libvirt_errors():
        return tuple(
            libvirt_qemu.qemuMonitorEventRegister(connection, None, name, heard, None)
            for name in EVENTS
        )


def deregister(connection: Connection, numbers: tuple[int, ...]) -> None:
    """Blocks. Errors are of no use: the connection is being closed."""
    for number in numbers:
        with suppress(libvirt.libvirtError):
            libvirt_qemu.qemuMonitorEventDeregister(connection, number)


def read(
    event: str, details: str | None, *, guest: GuestId, incarnation: int | None, at: float
) -> HypervisorEvent | None:
    """What a monitor event says of a guest; None: nothing of interest."""
    told = _details(details)
    match event, told:
        case "POWERDOWN", _:
            return ShutdownRequested(
                at=at, guest=guest, incarnation=incarnation, kind=RequestKind.POWERDOWN
            )
        case "VSERPORT_CHANGE", {"id": str(port), "open": True} if port == PORT:
            return ShutdownRequested(
                at=at, guest=guest, incarnation=incarnation, kind=RequestKind.INSIDE
            )
        case "VSERPORT_CHANGE", {"id": str(port), "open": False} if port == PORT:
            return ShutdownCancelled(at=at, guest=guest, incarnation=incarnation)
        case "MIGRATION", {"status": "setup" | "active"}:
            return ShutdownRequested(
                at=at, guest=guest, incarnation=incarnation, kind=RequestKind.SUSPEND
            )
        case "MIGRATION", {"status": "failed" | "cancelled"}:
            return Resumed(at=at, guest=guest, incarnation=incarnation)
    return None


def _details(text: str | None) -> dict[str, object]:
    try:
        told = json_value(text or "{}", Budget(pieces=VALUES, size=LONGEST))
    except (ValueError, BudgetSpent):
        return {}
    return told if isinstance(told, dict) else {}
