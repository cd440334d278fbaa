"""Targets of probes."""

from dataclasses import dataclass

from xenlb.ipvs.table import IPAddress, Tunnel
from xenlb.model.settings import Check


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One address and port that a check probes, however many services use it.

    Port 0: the check has none (icmp), or needs none (exec). `vip`: the service address that the
    probe is sent to, through the server; `tunnel`: how the probe is encapsulated.
    """

    check: Check
    address: IPAddress
    port: int
    vip: IPAddress | None = None
    tunnel: Tunnel | None = None

    def __hash__(self) -> int:
        """Cheap: two targets seldom differ in their check alone."""
        return hash((int(self.address), self.port))

    def __str__(self) -> str:
        through = "" if self.vip is None else f" via {self.vip}"
        if not self.port:
            return f"{self.check.type} {self.address}{through}"
        host = f"[{self.address}]" if self.address.version == 6 else str(self.address)
        return f"{self.check.type} {host}:{self.port}{through}"
