"""What is probed."""

from dataclasses import dataclass

from xenlb.ipvs.table import IPAddress, Tunnel
from xenlb.model.settings import Check


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What is probed: one address and port by one check, however many services use it. Port 0: the
    check has none (icmp), or need not have one (exec). `vip`: the service address that the probe is
    sent to, through the server; `tunnel`: in it."""

    check: Check
    address: IPAddress
    port: int
    vip: IPAddress | None = None
    tunnel: Tunnel | None = None

    def __hash__(self) -> int:
        """Cheap: the check is seldom what tells two of them apart."""
        return hash((int(self.address), self.port))

    def __str__(self) -> str:
        through = "" if self.vip is None else f" via {self.vip}"
        if not self.port:  # an echo request has none
            return f"{self.check.type} {self.address}{through}"
        host = f"[{self.address}]" if self.address.version == 6 else str(self.address)
        return f"{self.check.type} {host}:{self.port}{through}"
