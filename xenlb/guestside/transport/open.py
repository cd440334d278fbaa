"""Which way leads into a guest: from what the configuration and libvirt say to an executor."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar
from uuid import UUID

import libvirt

from xenlb.guestside.install.operations import Executor
from xenlb.guestside.transport import disks, guest_agent
from xenlb.guestside.transport.channel import Channel, DeliveryError
from xenlb.guestside.transport.identity import Identity, OfGuest
from xenlb.guestside.transport.image import ImageFiles, RootFolder
from xenlb.guestside.transport.remote_files import RemoteFiles
from xenlb.guestside.transport.ssh import Ssh
from xenlb.hypervisor.libvirt.domain_xml import interfaces
from xenlb.hypervisor.libvirt.queries import CallFailed, libvirt_errors
from xenlb.hypervisor.libvirt.xml_text import Malformed
from xenlb.hypervisor.threads import CallTimeout, in_thread
from xenlb.ipvs.table import IPAddress
from xenlb.model.guest_side import Delivery, GuestSide
from xenlb.model.settings import to_open

CALL = 30.0  # seconds

T = TypeVar("T")


class Domain(Protocol):
    """libvirt.virDomain."""

    def isActive(self) -> int: ...
    def hasManagedSaveImage(self, flags: int = 0) -> int: ...
    def XMLDesc(self, flags: int = 0) -> str: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestLocation:
    """A guest to reach. `address`: for ssh, where the configuration names no destination. `root`:
    where the operator mounted its root file system; only for Delivery.ROOTFS."""

    uri: str
    uuid: UUID
    name: str
    side: GuestSide
    address: IPAddress | None = None
    root: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """`channel`: into a guest that runs; None: it is off."""

    executor: Executor
    channel: Channel | None = None


async def open_transport(where: GuestLocation) -> Access:
    """The way into the guest that its configuration names. Raises DeliveryError."""
    channel: Channel
    match where.side.delivery:
        case None:
            raise DeliveryError(
                f"the configuration does not say how to reach into {where.name}",
                hint="add  guest-side: {delivery: ssh}  to its service (or agent, rootfs)",
            )
        case Delivery.SSH:
            place = str(where.address) if where.side.ssh is None else where.side.ssh
            channel = _of_guest(Ssh(_destination(where)), where, place=place)
            return Access(executor=RemoteFiles(channel, name=where.name), channel=channel)
        case Delivery.AGENT:
            agent = guest_agent.of_guest(where.uri, where.uuid, name=where.name)
            channel = _of_guest(agent, where, place="the other end of its guest agent")
            return Access(executor=RemoteFiles(channel, name=where.name), channel=channel)
        case Delivery.ROOTFS:
            files = (
                RootFolder(path=where.root)
                if where.root is not None
                else disks.place(await _definition(where), name=where.name, uri=where.uri)
            )
            off = ImageFiles(files, name=where.name, still_off=still_off(where))
            return Access(executor=off)
        case Delivery.XENSTORE:
            raise DeliveryError(
                f"{where.name} configures itself from the xenstore; nothing is brought into it",
                hint="use ssh, agent or rootfs once, to install what reads the xenstore there",
            )


def _of_guest(channel: Channel, where: GuestLocation, *, place: str) -> Channel:
    async def ask() -> Identity:
        return await identity_of(where)

    return OfGuest(channel, ask, name=where.name, place=place)


async def identity_of(where: GuestLocation) -> Identity:
    """By the XML of the domain as it runs. Raises DeliveryError."""

    def ask(domain: Domain) -> Identity:
        found = interfaces(domain.XMLDesc(0))
        macs = frozenset(each.mac for each in found if each.mac is not None)
        return Identity(uuid=where.uuid, macs=macs)

    try:
        return await _asked(where, ask)
    except Malformed as error:
        raise DeliveryError(f"the XML of {where.name} cannot be used: {error}") from None


def _destination(where: GuestLocation) -> str:
    if where.side.ssh is not None:
        return where.side.ssh
    if where.address is None:
        raise DeliveryError(
            f"no address of {where.name} is known", hint="start it, or set guest-side: ssh:"
        )
    return f"root@{where.address}"


def still_off(where: GuestLocation) -> Callable[[], Awaitable[None]]:
    """Asks libvirt now. What was saved to disk in the middle of its work is not off either."""

    def ask(domain: Domain) -> tuple[bool, bool]:
        if domain.isActive():
            return True, False
        try:
            return False, bool(domain.hasManagedSaveImage(0))
        except libvirt.libvirtError as error:
            if CallFailed(error).unsupported:  # LXC saves nothing
                return False, False
            raise

    async def check() -> None:
        active, saved = await _asked(where, ask)
        if active:
            raise DeliveryError(
                f"{where.name} runs; its files can be changed from outside only while it is off",
                hint="shut it down first, or use delivery: ssh or agent",
            )
        if saved:
            raise DeliveryError(
                f"{where.name} is saved with its files open; they must not change meanwhile",
                hint=f"start it and shut it down, or virsh managedsave-remove {where.name}",
            )

    return check


async def _definition(where: GuestLocation) -> str:
    return await _asked(where, lambda domain: domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))


async def _asked(where: GuestLocation, question: Callable[[Domain], T]) -> T:
    def ask() -> T:
        with libvirt_errors():
            connection = libvirt.open(to_open(where.uri))
            try:
                return question(connection.lookupByUUIDString(str(where.uuid)))
            finally:
                connection.close()

    try:
        return await in_thread(ask, limit=CALL)
    except CallTimeout:
        raise DeliveryError(f"libvirt does not answer about {where.name}") from None
    except CallFailed as error:
        raise DeliveryError(f"libvirt was asked about {where.name}: {error}") from None
