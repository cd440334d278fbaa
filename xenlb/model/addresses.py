"""Addresses of guests and their sources."""

from dataclasses import dataclass
from enum import StrEnum

from xenlb.ipvs.table import IPAddress


class AddressSource(StrEnum):
    """The source of a guest's address, best first.

    The first three are written on the host. The next three are evidence of the host: a lease or a
    neighbour entry with a MAC address of the domain's XML, and the address that the guest served
    with before its boot. A report of the guest itself ranks last, so that no guest can report an
    address for which there is evidence of another guest.
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
        """Whether the address was written on the host. A guest can forge the host's evidence."""
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
    """An address that is not used, as text of at most 64 characters, with the reason."""

    text: str
    source: AddressSource
    reason: str

    def __str__(self) -> str:
        return f"{self.text} ({self.source}): {self.reason}"
