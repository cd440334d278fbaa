"""Blocking calls of libvirt: the list of domains, one domain, shutdown and reboot.

They run in threads. libvirt-python has no types; the protocols declare the part of it that is used.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol
from uuid import UUID

import libvirt

from xenlb.hypervisor.libvirt.metadata import NAMESPACE, NOTHING, Metadata, read_metadata
from xenlb.model.domain import DomainDescription, DomainState, GuestId
from xenlb.untrusted.printable import printable

LONGEST_ERROR = 500  # characters; errors may contain text of a guest agent
LONGEST_NAME = 255  # characters; the limit of libvirt's drivers

# Without a handler of its own libvirt prints every error to stderr, caught or not.
libvirt.registerErrorHandler(lambda _context, _error: None, None)


class Domain(Protocol):
    """libvirt.virDomain. ID, name and UUIDString are local; the others call the daemon."""

    def ID(self) -> int:
        """Return the id, a new one at each start; -1: it is off."""

    def name(self) -> str:
        """Return the name, unchecked."""

    def UUIDString(self) -> str:
        """Return the UUID in lower case, with hyphens."""

    def state(self, flags: int = 0) -> list[int]:
        """Return the state, VIR_DOMAIN_RUNNING and so on, and its reason."""

    def metadata(self, kind: int, uri: str | None, flags: int = 0) -> str:
        """Return the XML element of the namespace `uri`; `kind`: VIR_DOMAIN_METADATA_ELEMENT."""

    def XMLDesc(self, flags: int = 0) -> str:
        """Return the XML of the running domain; of the definition if off, or by `flags`."""

    def interfaceAddresses(self, source: int, flags: int = 0) -> dict[str, dict[str, object]]:
        """Return a dict with `addrs` for each interface; `source`: leases, agent or ARP."""

    def shutdownFlags(self, flags: int = 0) -> int:
        """Request a power-off without waiting for it; `flags` 0: the driver chooses the way."""

    def reboot(self, flags: int = 0) -> int:
        """Request a reboot without waiting for it; `flags` as for a power-off."""

    def agentSetResponseTimeout(self, timeout: int, flags: int = 0) -> int:
        """Set the limit, in seconds, for the agent's answers to all programs."""


def domain_name(domain: Domain) -> str:
    """Return the domain's name, made printable: any user who may define domains chooses it."""
    return printable(domain.name(), LONGEST_NAME)


class Network(Protocol):
    """libvirt.virNetwork."""

    def DHCPLeases(self, mac: str | None = None, flags: int = 0) -> list[dict[str, object]]:
        """Return the leases, one dict each, of all MAC addresses or of one."""


class Connection(Protocol):
    """libvirt.virConnect."""

    def getType(self) -> str:
        """Return the driver's name: Xen, QEMU, LXC or TEST."""

    def isAlive(self) -> int:
        """Return 1 as long as the connection is usable; makes no call to the daemon."""

    def setKeepAlive(self, interval: int, count: int) -> int:
        """Ping each `interval` seconds; end the connection after `count` unanswered pings."""

    def close(self) -> int:
        """Release the connection; return the number of its other references."""

    def listAllDomains(self, flags: int = 0) -> list[Domain]:
        """Return the domains of these states (VIR_CONNECT_LIST_DOMAINS_…); 0: all."""

    def lookupByUUIDString(self, uuid: str) -> Domain:
        """Return a domain, running or off; the error for none is VIR_ERR_NO_DOMAIN."""

    def networkLookupByName(self, name: str) -> Network:
        """Return a virtual network; the error for none is VIR_ERR_NO_NETWORK."""

    def registerCloseCallback(self, call: object, opaque: object) -> int:
        """Have call(connection, reason, opaque) called when the connection ends by itself."""

    def unregisterCloseCallback(self) -> int:
        """Remove the callback for the end of the connection."""

    def domainEventRegisterAny(
        self, domain: Domain | None, event: int, call: object, opaque: object
    ) -> int:
        """Register a callback for an event of one domain, or of all (None); return its number."""

    def domainEventDeregisterAny(self, number: int) -> int:
        """Remove the callback with that number."""


class Unreachable(Exception):
    """There is no connection to this libvirt."""


class CallFailed(Exception):
    """libvirt returned an error; the message is libvirt's, in one line."""

    def __init__(self, error: "libvirt.libvirtError") -> None:
        super().__init__(printable(" ".join(str(error).split()), LONGEST_ERROR))
        self.code: int = error.get_error_code() or 0

    @property
    def gone(self) -> bool:
        """Whether the domain does not exist (any more)."""
        return bool(self.code == libvirt.VIR_ERR_NO_DOMAIN)

    @property
    def unsupported(self) -> bool:
        """Whether the driver does not support the call or its arguments."""
        return self.code in {
            libvirt.VIR_ERR_NO_SUPPORT,
            libvirt.VIR_ERR_OPERATION_UNSUPPORTED,
            libvirt.VIR_ERR_CONFIG_UNSUPPORTED,
            libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED,
        }


@contextmanager
def libvirt_errors() -> Iterator[None]:
    """Raise libvirt's errors as CallFailed."""
    try:
        yield
    except libvirt.libvirtError as error:
        raise CallFailed(error) from None


_DOMAIN_STATES = {
    # libxl: between two other states; the domain has an id.
    libvirt.VIR_DOMAIN_NOSTATE: DomainState.RUNNING,
    libvirt.VIR_DOMAIN_RUNNING: DomainState.RUNNING,
    libvirt.VIR_DOMAIN_BLOCKED: DomainState.RUNNING,
    libvirt.VIR_DOMAIN_PAUSED: DomainState.PAUSED,
    libvirt.VIR_DOMAIN_SHUTDOWN: DomainState.OFF,  # QEMU: the guest has ended, its process has not
    libvirt.VIR_DOMAIN_SHUTOFF: DomainState.OFF,
    libvirt.VIR_DOMAIN_CRASHED: DomainState.CRASHED,
    libvirt.VIR_DOMAIN_PMSUSPENDED: DomainState.PAUSED,
}


DOM0 = UUID(int=0)  # as Xen gives it; no other domain can have it


def list_domains(connection: Connection, uri: str) -> tuple[DomainDescription, ...]:
    """Return every domain, running or not; raises CallFailed.

    A domain that goes away meanwhile is left out. So is Dom0, which libxl lists as a domain: a
    pattern like "*" must not make the director its own server.
    """
    with libvirt_errors():
        domains = connection.listAllDomains(0)
    descriptions = []
    for domain in domains:
        if UUID(domain.UUIDString()) == DOM0:
            continue
        try:
            descriptions.append(_describe(domain, uri))
        except CallFailed as error:
            if not error.gone:
                raise
    return tuple(descriptions)


def describe_domain(connection: Connection, guest: GuestId) -> DomainDescription:
    """Return one domain; raises CallFailed."""
    with libvirt_errors():
        domain = connection.lookupByUUIDString(str(guest.uuid))
    return _describe(domain, guest.uri)


def live_ids(connection: Connection) -> frozenset[int]:
    """Return the ids of running and paused domains, in one call; raises CallFailed.

    On Xen a domain that has shut down keeps its id for seconds, until libvirt has cleaned up, but
    is «shut off» at once. So domains are selected by state.
    """
    flags = (
        libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE
        | libvirt.VIR_CONNECT_LIST_DOMAINS_RUNNING
        | libvirt.VIR_CONNECT_LIST_DOMAINS_PAUSED
    )
    with libvirt_errors():
        return frozenset(domain.ID() for domain in connection.listAllDomains(flags))


def request_shutdown(
    connection: Connection, uuid: UUID, *, reboot: bool, cancelled: Callable[[], bool]
) -> None:
    """Request a power-off or reboot, unless `cancelled()` by then; raises CallFailed."""
    with libvirt_errors():
        domain = connection.lookupByUUIDString(str(uuid))
        flags = 0
        if connection.getType() == "LXC":
            # The flags of reboots have the same values.
            initctl = has_initctl(domain.ID())
            signal = libvirt.VIR_DOMAIN_SHUTDOWN_SIGNAL
            flags = libvirt.VIR_DOMAIN_SHUTDOWN_INITCTL if initctl else signal
        if not cancelled():
            (domain.reboot if reboot else domain.shutdownFlags)(flags)


def has_initctl(controller: int) -> bool:
    """Whether a container is stopped by its initctl fifo, rather than by SIGTERM to its init.

    libvirt cannot tell: it reports success for the fifo even if there is none, and SIGTERM makes
    systemd re-execute itself. The name of the init decides. It is the child of libvirt's
    controller, whose process id is the domain's id.
    """
    try:
        children = Path(f"/proc/{controller}/task/{controller}/children").read_text().split()
        init = Path(f"/proc/{children[0]}/comm").read_text().strip()
    except (OSError, IndexError):
        return False  # another host's, or ended; most containers expect SIGTERM
    return init in {"systemd", "init"}


def _describe(domain: Domain, uri: str) -> DomainDescription:
    with libvirt_errors():
        state = _DOMAIN_STATES.get(domain.state(0)[0], DomainState.RUNNING)
        domid = domain.ID()
    if domid < 0 and state in {DomainState.RUNNING, DomainState.PAUSED}:
        # It was off when it was listed and has been started since: an event STARTED follows.
        state = DomainState.OFF
    services, problems = _metadata(domain)
    return DomainDescription(
        guest=GuestId(uri=uri, uuid=UUID(domain.UUIDString())),
        name=domain_name(domain),
        domain_state=state,
        incarnation=domid if domid >= 0 and state is not DomainState.OFF else None,
        metadata=services,
        metadata_problems=problems,
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
