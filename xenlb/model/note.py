"""Notes: the lines of the event log, each of a kind that scripts can rely on."""

from dataclasses import KW_ONLY, dataclass
from enum import StrEnum

from xenlb.model.domain import GuestId


class NoteKind(StrEnum):
    """What a note is about. Texts may change, kinds stay."""

    GUEST_STARTED = "guest-started"
    GUEST_REQUESTED = "guest-requested"  # to shut down, reboot or suspend
    GUEST_STAYS = "guest-stays"  # the guest cancelled the request, or ignored it
    GUEST_GONE = "guest-gone"  # reported by the hypervisor
    GUEST_STOPPED = "guest-stopped"  # reported by libvirt
    GUEST_PAUSED = "guest-paused"
    GUEST_RESUMED = "guest-resumed"
    GUEST_REBOOTED = "guest-rebooted"
    GUEST_LISTED = "guest-listed"  # or not listed any more
    GUEST_METADATA = "guest-metadata"
    GUEST_INSPECTED = "guest-inspected"
    ADDRESS = "address"
    CHECK = "check"
    DRAIN_BEGUN = "drain-begun"
    DRAIN_ENDED = "drain-ended"
    DRAIN_HINDERED = "drain-hindered"
    UNDRAINED = "undrained"
    REQUEST_SENT = "request-sent"  # to libvirt, after a drain
    LIBVIRT_LOST = "libvirt-lost"
    CONFIGURATION = "configuration"
    INCONSISTENCY = "inconsistency"
    ALARM_BEGUN = "alarm-begun"
    ALARM_ENDED = "alarm-ended"
    TABLE_CHANGED = "table-changed"
    TABLE_REPAIRED = "table-repaired"
    TABLE_REFUSED = "table-refused"
    TABLE_FOREIGN = "table-foreign"
    KERNEL_FAILED = "kernel-failed"
    AGENT = "agent"  # the agent itself, and what it needs of its host
    FLUSHED = "flushed"
    HOOK = "hook"


@dataclass(frozen=True, slots=True)
class Note:
    """`at` in seconds of CLOCK_BOOTTIME; `guest`: the guest that the note is about, if any.

    `late`: the event was already known, or is of a former domain, and changed nothing.
    """

    at: float
    kind: NoteKind
    text: str
    guest: GuestId | None = None
    _: KW_ONLY
    warning: bool = False
    late: bool = False
