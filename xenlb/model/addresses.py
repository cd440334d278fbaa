"""Addresses that are given for a guest, and by whom."""

from dataclasses import dataclass
from enum import StrEnum

from xenlb.ipvs.table import IPAddress


class AddressSource(StrEnum):
    """Where an address of a guest comes from, best first.

    The first three are written on the host. The next three are the host's own evidence: a lease or
    a neighbour with a MAC address of the domain's XML, and what the guest served with before its
    boot. A guest that ranks lower never gets such an address of another; that a guest says it is
    the least.
    """

    CONFIGURATION = "configuration"
    METADATA = "metadata"
    INTERFACE_XML = "interface xml"
    LEASE = "dhcp lease"
    NEIGHBOUR = "neighbour table"
    SERVED = "served before its boot"
    REPORTED = "reported by the guest"

    @property
    def trusted(self) -> bool:
        """Was it written on the host? What the host sees, a guest can bring about."""
        return self in {
            AddressSource.CONFIGURATION,
            AddressSource.METADATA,
            AddressSource.INTERFACE_XML,
        }


RANKS = {source: rank for rank, source in enumerate(AddressSource)}


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressCandidate:
    """An address that a source gave for a guest."""

    address: IPAddress
    source: AddressSource

    def __str__(self) -> str:
        return f"{self.address} ({self.source})"


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectedAddress:
    """An address (or what was given for one, cut to 64 characters) that is not used, and why."""

    text: str
    source: AddressSource
    reason: str

    def __str__(self) -> str:
        return f"{self.text} ({self.source}): {self.reason}"
