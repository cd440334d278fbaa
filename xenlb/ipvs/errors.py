"""What the kernel's refusals mean, in one sentence each, and what cures them.

Raised for a table that cannot be reached at all (`IpvsError`); for one refused operation,
`explain` says why. Other rooms show these texts as they are.
"""

import errno
from dataclasses import dataclass
from os import strerror

from xenlb.ipvs import text
from xenlb.ipvs.op import (
    AddServer,
    AddService,
    DeleteServer,
    DeleteService,
    OpFailed,
    SetServer,
    SetService,
)
from xenlb.ipvs.table import Forwarding, Server, Service, ServiceKey, TunnelType, family_of


class IpvsError(Exception):
    """The kernel's table cannot be read or written; `hint` is what to do."""

    def __init__(self, message: str, hint: str, number: int = 0) -> None:
        super().__init__(f"{message} ({hint})" if hint else message)
        self.message = message
        self.hint = hint
        self.errno = number


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """A sentence without its full stop, and what to do; the hint may be empty."""

    message: str
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


_NOT_PERMITTED = Explanation(
    message="changing or reading the IPVS table is not permitted to this process",
    hint="run it as root, or give it the capability CAP_NET_ADMIN",
)
_NEXT_PASS = "nothing to do: the next pass reads the table again"


def no_access(number: int) -> IpvsError:
    """The error for a table as a whole, from an errno of the socket or the family's look-up."""
    match number:
        case errno.ENOENT | errno.EPROTONOSUPPORT | errno.EAFNOSUPPORT:
            return IpvsError(
                "the kernel has no IPVS: the module ip_vs is not loaded",
                "load it with: modprobe ip_vs",
                number,
            )
        case errno.EPERM | errno.EACCES:
            return IpvsError(_NOT_PERMITTED.message, _NOT_PERMITTED.hint, number)
    return IpvsError(
        f"the IPVS table cannot be reached: {strerror(number)}",
        "see the kernel's log: dmesg",
        number,
    )


def explain(failed: OpFailed) -> Explanation:
    """Why the kernel refused an operation."""
    number = failed.errno
    if number in {errno.EPERM, errno.EACCES}:
        return _NOT_PERMITTED
    if number == errno.ENOMEM:
        return Explanation(message="the kernel has no memory for it", hint="free memory")
    if number == errno.ENOBUFS:
        return Explanation(message="the kernel's answer was lost", hint=_NEXT_PASS)
    match failed.op:
        case AddService(service=service) | SetService(service=service):
            found = _service(service, number)
        case AddServer(service=key, server=server) | SetServer(service=key, server=server):
            found = _server(key, server, number)
        case DeleteService(key=key) | DeleteServer(service=key):
            found = None
    return found or Explanation(
        message=f"the kernel refused {failed.op}: {strerror(number)}",
        hint="see the kernel's log: dmesg",
    )


def _service(service: Service, number: int) -> Explanation | None:
    name = text.service_key(service.key)
    match number:
        case errno.EEXIST:
            return Explanation(
                message=f"the service {name} is in the table already", hint=_NEXT_PASS
            )
        case errno.ESRCH:
            return Explanation(
                message=f"the service {name} has gone from the table", hint=_NEXT_PASS
            )
        case errno.ENOENT if service.persistence_engine:
            engine = service.persistence_engine
            return Explanation(
                message=f"the kernel has no scheduler «{service.scheduler}» or no persistence "
                f"engine «{engine}»",
                hint=f"load them with: modprobe -a ip_vs_{service.scheduler} ip_vs_pe_{engine}",
            )
        case errno.ENOENT:
            return Explanation(
                message=f"the kernel has no scheduler «{service.scheduler}»: the module "
                f"ip_vs_{service.scheduler} is not loaded",
                hint=f"load it with: modprobe ip_vs_{service.scheduler}",
            )
        case errno.EAFNOSUPPORT:
            return Explanation(
                message="the kernel's IPVS has no IPv6",
                hint="boot a kernel that has CONFIG_IP_VS_IPV6, without ipv6.disable=1",
            )
    return None


def _server(key: ServiceKey, server: Server, number: int) -> Explanation | None:
    name = text.service_key(key)
    where = text.server_key(server.key)
    match number:
        case errno.EEXIST:
            return Explanation(
                message=f"the server {where} is in the service {name} already", hint=_NEXT_PASS
            )
        case errno.ESRCH:
            return Explanation(
                message=f"the service {name} has gone from the table", hint=_NEXT_PASS
            )
        case errno.ENOENT:
            return Explanation(
                message=f"the server {where} has gone from the service {name}", hint=_NEXT_PASS
            )
        case errno.ERANGE:
            return Explanation(
                message=f"the lower threshold of the server {where}, {server.lower_threshold}, is "
                f"above its upper threshold, {server.upper_threshold}",
                hint="raise upper-threshold or lower lower-threshold",
            )
        case errno.EAFNOSUPPORT:
            return Explanation(
                message="the kernel's IPVS has no IPv6",
                hint="boot a kernel that has CONFIG_IP_VS_IPV6, without ipv6.disable=1",
            )
        case errno.EINVAL:
            return _invalid_server(key, server)
    return None


def _invalid_server(key: ServiceKey, server: Server) -> Explanation:
    where = text.server_key(server.key)
    tunnel = server.tunnel
    if family_of(server.key.address) is not key.family:
        if server.forwarding is not Forwarding.TUNNEL:
            return Explanation(
                message=f"the server {where} is of the other address family than its service, "
                "which works by tunnel only",
                hint="set forwarding to tunnel, or give an address of the service's family",
            )
        return Explanation(
            message=f"the server {where} is of the other address family than its service, which "
            "the kernel does not take while connections are synchronized",
            hint="stop it with: ipvsadm --stop-daemon master; ipvsadm --stop-daemon backup",
        )
    if tunnel is not None and tunnel.type is TunnelType.GUE and not tunnel.port:
        return Explanation(
            message=f"the gue tunnel to the server {where} has no port",
            hint="set tunnel: {type: gue, port: NUMBER}",
        )
    return Explanation(
        message=f"the kernel does not take the address of the server {where}",
        hint="give an address of one machine: no broadcast, multicast or link-local address",
    )
