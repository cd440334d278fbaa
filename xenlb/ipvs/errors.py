"""The meaning of the kernel's errors, in one sentence each, and the remedy.

IpvsError is raised if the table cannot be reached at all. explain() is for one refused operation.
Commands and the agent's log print these texts as they are.
"""

import errno
from os import strerror
from typing import Final, NamedTuple

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

PERMISSION_DENIED: Final = frozenset({errno.EPERM, errno.EACCES})


class IpvsError(Exception):
    """The kernel's table cannot be read or written; `hint` is what to do."""

    def __init__(self, message: str, hint: str, number: int = 0) -> None:
        super().__init__(f"{message} ({hint})" if hint else message)
        self.message = message
        self.hint = hint
        self.errno = number


class Explanation(NamedTuple):
    """A sentence without its full stop, and what to do; the hint may be empty."""

    message: str
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


_NOT_PERMITTED = Explanation(
    "changing or reading the IPVS table is not permitted to this process",
    "run it as root, or give it the capability CAP_NET_ADMIN",
)
_NO_IPV6 = Explanation(
    "the kernel's IPVS has no IPv6",
    "boot a kernel that has CONFIG_IP_VS_IPV6, without ipv6.disable=1",
)
_NEXT_PASS = "nothing to do: the next pass reads the table again"
_KERNEL_LOG = "see the kernel's log: dmesg"


def no_access(number: int) -> IpvsError:
    """The error for the table as a whole, from an errno of the socket or the family's look-up."""
    if number in PERMISSION_DENIED:
        return IpvsError(*_NOT_PERMITTED, number)
    if number in {errno.ENOENT, errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT}:
        message = "the kernel has no IPVS: the module ip_vs is not loaded"
        return IpvsError(message, "load it with: modprobe ip_vs", number)
    message = f"the IPVS table cannot be reached: {strerror(number)}"
    return IpvsError(message, _KERNEL_LOG, number)


def explain(failed: OpFailed) -> Explanation:
    """Why the kernel refused an operation."""
    number = failed.errno
    if number in PERMISSION_DENIED:
        return _NOT_PERMITTED
    if number == errno.ENOMEM:
        return Explanation("the kernel has no memory for it", "free memory")
    if number == errno.ENOBUFS:
        return Explanation("the kernel's answer was lost", _NEXT_PASS)
    explanation = None
    match failed.op:
        case AddService(service=service) | SetService(service=service):
            explanation = _service(service, number)
        case AddServer(service=key, server=server) | SetServer(service=key, server=server):
            explanation = _server(key, server, number)
        case DeleteService() | DeleteServer():
            pass
    return explanation or Explanation(
        f"the kernel refused {failed.op}: {strerror(number)}", _KERNEL_LOG
    )


def _service(service: Service, number: int) -> Explanation | None:
    name = text.service_key(service.key)
    scheduler, engine = service.scheduler, service.persistence_engine
    match number:
        case errno.EEXIST:
            return Explanation(f"the service {name} is in the table already", _NEXT_PASS)
        case errno.ESRCH:
            return Explanation(f"the service {name} has gone from the table", _NEXT_PASS)
        case errno.ENOENT if engine:
            return Explanation(
                f"the kernel has no scheduler «{scheduler}» or no persistence engine «{engine}»",
                f"load them with: modprobe -a ip_vs_{scheduler} ip_vs_pe_{engine}",
            )
        case errno.ENOENT:
            return Explanation(
                f"the kernel has no scheduler «{scheduler}»: the module ip_vs_{scheduler} is not"
                " loaded",
                f"load it with: modprobe ip_vs_{scheduler}",
            )
        case errno.EAFNOSUPPORT:
            return _NO_IPV6
    return None


def _server(key: ServiceKey, server: Server, number: int) -> Explanation | None:
    name, where = text.service_key(key), text.server_key(server.key)
    match number:
        case errno.EEXIST:
            return Explanation(f"the server {where} is in the service {name} already", _NEXT_PASS)
        case errno.ESRCH:
            return Explanation(f"the service {name} has gone from the table", _NEXT_PASS)
        case errno.ENOENT:
            return Explanation(f"the server {where} has gone from the service {name}", _NEXT_PASS)
        case errno.ERANGE:
            return Explanation(
                f"the lower threshold of the server {where}, {server.lower_threshold}, is above"
                f" its upper threshold, {server.upper_threshold}",
                "raise upper-threshold or lower lower-threshold",
            )
        case errno.EAFNOSUPPORT:
            return _NO_IPV6
        case errno.EINVAL:
            return _invalid_server(key, server)
    return None


def _invalid_server(key: ServiceKey, server: Server) -> Explanation:
    where = text.server_key(server.key)
    tunnel = server.tunnel
    if family_of(server.key.address) is not key.family:
        family = f"the server {where} is of the other address family than its service, which "
        if server.forwarding is not Forwarding.TUNNEL:
            return Explanation(
                f"{family}works by tunnel only",
                "set forwarding to tunnel, or give an address of the service's family",
            )
        return Explanation(
            f"{family}the kernel does not take while connections are synchronized",
            "stop it with: ipvsadm --stop-daemon master; ipvsadm --stop-daemon backup",
        )
    if tunnel is not None and tunnel.type is TunnelType.GUE and not tunnel.port:
        return Explanation(
            f"the gue tunnel to the server {where} has no port",
            "set tunnel: {type: gue, port: NUMBER}",
        )
    return Explanation(
        f"the kernel does not take the address of the server {where}",
        "give an address of one machine: no broadcast, multicast or link-local address",
    )
