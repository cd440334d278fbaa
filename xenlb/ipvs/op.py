"""Operations on the IPVS table. str(op) is the ipvsadm line."""

from dataclasses import dataclass

from xenlb.ipvs import text
from xenlb.ipvs.table import Server, ServerKey, Service, ServiceKey


@dataclass(frozen=True, slots=True, kw_only=True)
class AddService:
    """Add a service without servers. The kernel refuses a key that exists (EEXIST)."""

    service: Service

    def __str__(self) -> str:
        return "-A " + text.service(self.service)


@dataclass(frozen=True, slots=True, kw_only=True)
class SetService:
    """Set scheduler and options of a service; its servers stay. ESRCH: it does not exist."""

    service: Service

    def __str__(self) -> str:
        return "-E " + text.service(self.service)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteService:
    """Delete a service with its servers. ESRCH: it does not exist."""

    key: ServiceKey

    def __str__(self) -> str:
        return "-D " + text.service_key(self.key)


@dataclass(frozen=True, slots=True, kw_only=True)
class AddServer:
    """Add a server to a service. EEXIST: the service has it already."""

    service: ServiceKey
    server: Server

    def __str__(self) -> str:
        return f"-a {text.service_key(self.service)} {text.server(self.server)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SetServer:
    """Set weight, forwarding method and thresholds. ENOENT: the service has no such server."""

    service: ServiceKey
    server: Server

    def __str__(self) -> str:
        return f"-e {text.service_key(self.service)} {text.server(self.server)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteServer:
    """Delete a server from a service. ENOENT: the service has no such server."""

    service: ServiceKey
    key: ServerKey

    def __str__(self) -> str:
        return f"-d {text.service_key(self.service)} {text.server_key(self.key)}"


Op = AddService | SetService | DeleteService | AddServer | SetServer | DeleteServer


@dataclass(frozen=True, slots=True, kw_only=True)
class OpFailed:
    """An operation that the kernel refused, with its errno (positive)."""

    op: Op
    errno: int
