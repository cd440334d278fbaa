"""Operations on the IPVS table. str(op) is the ipvsadm line."""

from dataclasses import dataclass

from xenlb.ipvs import text
from xenlb.ipvs.table import Server, ServerKey, Service, ServiceKey


@dataclass(frozen=True, slots=True, kw_only=True)
class AddService:
    service: Service

    def __str__(self) -> str:
        return "-A " + text.service(self.service)


@dataclass(frozen=True, slots=True, kw_only=True)
class SetService:
    service: Service

    def __str__(self) -> str:
        return "-E " + text.service(self.service)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteService:
    key: ServiceKey

    def __str__(self) -> str:
        return "-D " + text.service_key(self.key)


@dataclass(frozen=True, slots=True, kw_only=True)
class AddServer:
    service: ServiceKey
    server: Server

    def __str__(self) -> str:
        return f"-a {text.service_key(self.service)} {text.server(self.server)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SetServer:
    service: ServiceKey
    server: Server

    def __str__(self) -> str:
        return f"-e {text.service_key(self.service)} {text.server(self.server)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteServer:
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
