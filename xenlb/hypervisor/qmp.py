"""What QEMU itself reports through libvirt's monitor events, where libvirt's own come too late.

Only POWERDOWN is taken from QMP: it comes when a guest is asked to go, 17 ms after the command,
and is not told apart from a reboot at that moment. QEMU's other two are libvirt's events already,
at the same moment, and better there: SHUTDOWN as the life cycle event SHUTDOWN, which libvirt
leaves out where the SHUTDOWN is half of a `virsh reboot` (its «fake reboot»: shutdown, reset, go
on), and RESET as the event REBOOT. libvirt.py's connection carries these callbacks; session.py
registers and ends them.

The read-only connection does not get monitor events.
"""

from collections.abc import Callable
from contextlib import suppress

import libvirt
import libvirt_qemu

from xenlb.hypervisor.listing import Connection, Domain, asking

EVENTS = ("POWERDOWN",)

# domain, name of the event
Tell = Callable[[Domain, str], None]


def register(connection: Connection, tell: Tell) -> tuple[int, ...]:
    """Blocks. `tell` is called in the loop's thread. Raises CallFailed."""

    def heard(
        _connection: object,
        domain: Domain,
        event: str,
        _seconds: int,
        _microseconds: int,
        _details: str | None,
        _opaque: object,
    ) -> None:
        tell(domain, event)

    with asking():
        return tuple(
            libvirt_qemu.qemuMonitorEventRegister(connection, None, name, heard, None)
            for name in EVENTS
        )


def deregister(connection: Connection, numbers: tuple[int, ...]) -> None:
    """Blocks. Errors are of no use: the connection is being closed."""
    for number in numbers:
        with suppress(libvirt.libvirtError):
            libvirt_qemu.qemuMonitorEventDeregister(connection, number)
