"""Events of QEMU's monitor, for what libvirt's own events report too late or not at all.

POWERDOWN
    A shutdown or reboot of the guest was requested, 17 ms after the command. The event does not
    distinguish the two.
VSERPORT_CHANGE
    The guest has opened or closed a virtio port. The hold in a guest opens the port with the alias
    ua-xenlb when it is stopped, at the beginning of the guest's shutdown. No data is read from it.
    The port is closed when the hold is started again, but also by the end of the guest, 15 ms and
    more before its event SHUTDOWN (seen with QEMU 7.2). So a closed port counts as a cancelled
    shutdown only if the guest still runs CLOSED seconds later.
MIGRATION
    A migration or a save begins (setup, active), ends (completed) or fails (failed, cancelled).
    libvirt has no event for its beginning, and one for its failure only if the guest was paused.
    The destination host gets the same events while the guest is paused there.

QEMU's other events are libvirt's at the same moment, and better there. Its SHUTDOWN is the life
cycle event SHUTDOWN, which libvirt omits for the first half of a `virsh reboot` (its «fake reboot»:
shutdown, reset, continue). RESET is the event REBOOT.

A read-only connection gets no monitor events.
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
PORT = "ua-xenlb"  # libvirt accepts a user's alias if it begins with ua-
CLOSED = 5.0  # seconds
VALUES, LONGEST = 100, 1 << 16  # of an event's details, which have a handful of values

# domain, name of the event, its details as JSON
OnEvent = Callable[[Domain, str, str | None], None]


def register(connection: Connection, on_event: OnEvent) -> tuple[int, ...]:
    """Register callbacks; `on_event` is called in the loop's thread. Blocks; raises CallFailed.

    Returns their numbers, for deregister().
    """

    def callback(
        _connection: object,
        domain: Domain,
        event: str,
        _seconds: int,
        _microseconds: int,
        details: str | None,
        _opaque: object,
    ) -> None:
        on_event(domain, event, details)

    with libvirt_errors():
        return tuple(
            libvirt_qemu.qemuMonitorEventRegister(connection, None, name, callback, None)
            for name in EVENTS
        )


def deregister(connection: Connection, numbers: tuple[int, ...]) -> None:
    """Remove callbacks. Blocks; ignores errors, as the connection is being closed."""
    for number in numbers:
        with suppress(libvirt.libvirtError):
            libvirt_qemu.qemuMonitorEventDeregister(connection, number)


def hypervisor_event(
    name: str, details: str | None, *, guest: GuestId, incarnation: int | None, at: float
) -> HypervisorEvent | None:
    """Translate a monitor event; None for one without meaning here."""
    match name, _details(details):
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
        value = json_value(text or "{}", Budget(pieces=VALUES, size=LONGEST))
    except (ValueError, BudgetSpent):
        return {}
    return value if isinstance(value, dict) else {}
