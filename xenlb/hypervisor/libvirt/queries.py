"""What is read from libvirt by calls: the list of domains, one domain, its metadata.

Every function here blocks and is made in a thread (threads.py). The protocols name what is used
of libvirt-python, which has no types of its own. Events and connections: source.py.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from uuid import UUID

import libvirt

from xenlb.hypervisor.libvirt.metadata import NAMESPACE, NOTHING, Metadata, read_metadata
from xenlb.model.domain import DomainDescription, DomainState, GuestId
from xenlb.untrusted.printable import printable

log = logging.getLogger(__name__)

LONGEST_ERROR = 500  # characters; what a guest agent says comes in errors, too
LONGEST_NAME = 255  # characters; libvirt's drivers take no longer one

# Without a handler of its own libvirt prints every error to stderr, caught or not.
libvirt.registerErrorHandler(lambda _context, _error: None, None)


class Domain(Protocol):
    """libvirt.virDomain. ID, name and UUIDString are local; all else asks the daemon."""

    def ID(self) -> int: ...  # -1: off
    def name(self) -> str: ...
    def UUIDString(self) -> str: ...
    def state(self, flags: int = 0) -> list[int]: ...
    def metadata(self, kind: int, uri: str | None, flags: int = 0) -> str: ...
    def XMLDesc(self, flags: int = 0) -> str: ...
    def interfaceAddresses(self, source: int, flags: int = 0) -> dict[str, dict[str, object]]: ...
    def shutdownFlags(self, flags: int = 0) -> int: ...
    def reboot(self, flags: int = 0) -> int: ...
    def agentSetResponseTimeout(self, timeout: int, flags: int = 0) -> int: ...


def name_of(domain: Domain) -> str:
    """Its name, printable: whoever may define domains writes it."""
    return printable(domain.name(), LONGEST_NAME)


class Network(Protocol):
    """libvirt.virNetwork."""

    def DHCPLeases(self, mac: str | None = None, flags: int = 0) -> list[dict[str, object]]: ...


class Connection(Protocol):
    """libvirt.virConnect."""

    def getType(self) -> str: ...
    def isAlive(self) -> int: ...
    def setKeepAlive(self, interval: int, count: int) -> int: ...
    def close(self) -> int: ...
    def listAllDomains(self, flags: int = 0) -> list[Domain]: ...
    def lookupByUUIDString(self, uuid: str) -> Domain: ...
    def networkLookupByName(self, name: str) -> Network: ...
    def registerCloseCallback(self, call: object, opaque: object) -> int: ...
    def unregisterCloseCallback(self) -> int: ...
    def domainEventRegisterAny(
        self, domain: Domain | None, event: int, call: object, opaque: object
    ) -> int: ...
    def domainEventDeregisterAny(self, number: int) -> int: ...


class Unreachable(Exception):
    """There is no connection to this libvirt now."""


class CallFailed(Exception):
    """libvirt refused a call or could not make it; the message is one sentence of libvirt's."""

    def __init__(self, error: "libvirt.libvirtError") -> None:
        super().__init__(printable(" ".join(str(error).split()), LONGEST_ERROR))
        self.code: int = error.get_error_code() or 0

    @property
    def gone(self) -> bool:
        """Is it only that the domain is not there (any more)?"""
        return bool(self.code == libvirt.VIR_ERR_NO_DOMAIN)

    @property
    def unsupported(self) -> bool:
        return self.code in {
            libvirt.VIR_ERR_NO_SUPPORT,
            libvirt.VIR_ERR_OPERATION_UNSUPPORTED,
            libvirt.VIR_ERR_CONFIG_UNSUPPORTED,
            libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED,
        }


@contextmanager
def libvirt_errors() -> Iterator[None]:
    """libvirt's errors as CallFailed."""
    try:
        yield
    except libvirt.libvirtError as error:
        raise CallFailed(error) from None


_POWER = {
    # libxl: between two other states; it has an id.
    libvirt.VIR_DOMAIN_NOSTATE: DomainState.RUNNING,
    libvirt.VIR_DOMAIN_RUNNING: DomainState.RUNNING,
    libvirt.VIR_DOMAIN_BLOCKED: DomainState.RUNNING,
    libvirt.VIR_DOMAIN_PAUSED: DomainState.PAUSED,
    libvirt.VIR_DOMAIN_SHUTDOWN: DomainState.OFF,  # QEMU: the guest is gone, its process is not
    libvirt.VIR_DOMAIN_SHUTOFF: DomainState.OFF,
    libvirt.VIR_DOMAIN_CRASHED: DomainState.CRASHED,
    libvirt.VIR_DOMAIN_PMSUSPENDED: DomainState.PAUSED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What one domain was like when it was asked."""

    power: DomainState
    incarnation: int | None
    metadata: Metadata


def is_alive(connection: Connection) -> bool:
    """Asks nobody. A connection that another thread has closed meanwhile raises in libvirt."""
    try:
        return bool(connection.isAlive())
    except libvirt.libvirtError:
        return False


DOM0 = UUID(int=0)  # as Xen gives it; no other domain can have it


def list_domains(connection: Connection, uri: str) -> tuple[DomainDescription, ...]:
    """Every domain, running or not. One that goes away meanwhile is left out, and so is Dom0, which
    libxl lists as one more: a pattern like "*" must not make the director its own server."""
    with libvirt_errors():
        domains = connection.listAllDomains(0)
    described = []
    for domain in domains:
        if UUID(domain.UUIDString()) == DOM0:
            continue
        try:
            snapshot = _snapshot(domain)
        except CallFailed as error:
            if not error.gone:
                raise
            continue
        services, problems = snapshot.metadata
        described.append(
            DomainDescription(
                guest=GuestId(uri=uri, uuid=UUID(domain.UUIDString())),
                name=name_of(domain),
                domain_state=snapshot.power,
                incarnation=snapshot.incarnation,
                metadata=services,
                metadata_problems=problems,
            )
        )
    return tuple(described)


def describe_domain(connection: Connection, uuid: UUID) -> Snapshot:
    """One domain, now; raises CallFailed."""
    with libvirt_errors():
        domain = connection.lookupByUUIDString(str(uuid))
    return _snapshot(domain)


def live_ids(connection: Connection) -> frozenset[int]:
    """Ids of the domains that libvirt takes for running or paused; one call, raises CallFailed.

    On Xen a domain that has shut down keeps its id for seconds, until libvirt has cleaned up
    behind it, but is «shut off» at once: so the state is asked for, not the list of ids.
    """
    flags = (
        libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE
        | libvirt.VIR_CONNECT_LIST_DOMAINS_RUNNING
        | libvirt.VIR_CONNECT_LIST_DOMAINS_PAUSED
    )
    with libvirt_errors():
        return frozenset(domain.ID() for domain in connection.listAllDomains(flags))


def request_shutdown(connection: Connection, uuid: UUID, given_up: Callable[[], bool]) -> None:
    """Asks the guest to power off, unless that was `given_up`; raises CallFailed."""
    with libvirt_errors():
        domain = connection.lookupByUUIDString(str(uuid))
        flags = 0
        if connection.getType() == "LXC":
            initctl = listens_to_initctl(domain.ID())
            signal = libvirt.VIR_DOMAIN_SHUTDOWN_SIGNAL
            flags = libvirt.VIR_DOMAIN_SHUTDOWN_INITCTL if initctl else signal
        if not given_up():
            domain.shutdownFlags(flags)


def request_reboot(connection: Connection, uuid: UUID, given_up: Callable[[], bool]) -> None:
    """Asks the guest to reboot, unless that was `given_up`; raises CallFailed."""
    with libvirt_errors():
        domain = connection.lookupByUUIDString(str(uuid))
        flags = 0
        if connection.getType() == "LXC":
            initctl = listens_to_initctl(domain.ID())
            signal = libvirt.VIR_DOMAIN_REBOOT_SIGNAL
            flags = libvirt.VIR_DOMAIN_REBOOT_INITCTL if initctl else signal
        if not given_up():
            domain.reboot(flags)


def listens_to_initctl(controller: int) -> bool:
    """How is a container asked to go, by its initctl fifo or by SIGTERM to its init?

    libvirt cannot tell: it says that the first was done though there is no fifo, and the second
    makes systemd execute itself anew. So the init decides; it is the child of libvirt's controller,
    whose process id is the domain's.
    """
    try:
        children = Path(f"/proc/{controller}/task/{controller}/children").read_text().split()
        init = Path(f"/proc/{children[0]}/comm").read_text().strip()
    except (OSError, IndexError):
        return False  # another host's, or gone: SIGTERM is what most containers expect
    return init in {"systemd", "init"}


def _snapshot(domain: Domain) -> Snapshot:
    with libvirt_errors():
        state = domain.state(0)[0]
        power = _POWER.get(state, DomainState.RUNNING)
        number = domain.ID()
    if number < 0 and power in {DomainState.RUNNING, DomainState.PAUSED}:
        # It was off when it was listed and has been started since: its STARTED is on the way.
        power = DomainState.OFF
    return Snapshot(
        power=power,
        incarnation=number if number >= 0 and power is not DomainState.OFF else None,
        metadata=_metadata(domain),
    )


def _metadata(domain: Domain) -> Metadata:
    try:
        with libvirt_errors():
            text = domain.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, NAMESPACE, 0)
    except CallFailed as error:
        if error.code == libvirt.VIR_ERR_NO_DOMAIN_METADATA or error.unsupported:
            return NOTHING
        raise
    return read_metadata(text)
