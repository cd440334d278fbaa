"""Identity and state of a guest's domain, as libvirt reports them."""

from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID

from xenlb.ipvs.table import IPAddress


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class GuestId:
    """The identity of a guest: names are used again and domain ids change."""

    uri: str
    uuid: UUID

    def __hash__(self) -> int:
        """Cheap, as every server looks up its guest by it."""
        return hash(self.uuid.int)

    def __str__(self) -> str:
        return f"{self.uuid} at {self.uri}"


class DomainState(StrEnum):
    """The state of a domain, as far as it matters here."""

    OFF = "off"
    RUNNING = "running"
    PAUSED = "paused"
    CRASHED = "crashed"  # dead, but kept by on_crash=preserve


class RequestKind(StrEnum):
    """What was requested of a guest."""

    POWEROFF = "poweroff"
    REBOOT = "reboot"
    SUSPEND = "suspend"  # save, or migration to another host
    POWERDOWN = "powerdown"  # QEMU: its event does not tell power-off from reboot
    INSIDE = "inside"  # a shutdown begun in the guest, which its hold reports


class StopReason(StrEnum):
    """Why a domain stopped, in libvirt's terms."""

    SHUTDOWN = "shutdown"
    DESTROYED = "destroyed"
    CRASHED = "crashed"
    MIGRATED = "migrated"
    SAVED = "saved"
    FAILED = "failed"
    FROM_SNAPSHOT = "from snapshot"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class MetadataService:
    """A service that a guest joins by its domain's <metadata>."""

    name: str
    weight: int | None = None
    address: IPAddress | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainDescription:
    """One domain of libvirt's list. `incarnation` is its domain id, None while it is off."""

    guest: GuestId
    name: str
    domain_state: DomainState
    incarnation: int | None = None
    metadata: tuple[MetadataService, ...] = ()
    metadata_problems: tuple[str, ...] = ()
