"""Access to a guest, as its configuration and libvirt name it."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import libvirt

from xenlb.guestside.install.operations import Executor
from xenlb.guestside.target import GuestTarget
from xenlb.guestside.transport import disks, guest_agent
from xenlb.guestside.transport.channel import Channel, DeliveryError
from xenlb.guestside.transport.identity import GuardedChannel, Identity
from xenlb.guestside.transport.image import ImageFiles, RootFolder
from xenlb.guestside.transport.remote_files import RemoteFiles
from xenlb.guestside.transport.ssh import Ssh
from xenlb.hypervisor.libvirt.domain_xml import interfaces
from xenlb.hypervisor.libvirt.queries import CallFailed, libvirt_errors
from xenlb.hypervisor.libvirt.xml_text import Malformed
from xenlb.hypervisor.threads import CallTimeout, in_thread
from xenlb.model.guest_side import Delivery
from xenlb.model.settings import to_open

CALL = 30.0  # seconds

T = TypeVar("T")


class _Domain(Protocol):
    """The methods of libvirt.virDomain that are used here."""

    def isActive(self) -> int: ...
    def hasManagedSaveImage(self, flags: int = 0) -> int: ...
    def XMLDesc(self, flags: int = 0) -> str: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Access to a guest; `channel` None: it is off."""

    executor: Executor
    channel: Channel | None = None


async def open_access(target: GuestTarget, *, root: str | None = None) -> Access:
    """Open the access that the guest's configuration names. Raises DeliveryError.

    `root`: where the operator mounted its root file system, for Delivery.ROOTFS.
    """
    name = target.name
    channel: Channel
    match target.side.delivery:
        case None:
            raise DeliveryError(
                f"the configuration names no access to {name}",
                hint="add  guest-side: {delivery: ssh}  to its service (or agent, rootfs)",
            )
        case Delivery.SSH:
            channel = Ssh(_destination(target))
            place = target.side.ssh or str(target.address)
        case Delivery.AGENT:
            channel = guest_agent.of_guest(target.uri, target.uuid, name=name)
            place = "the other end of its guest agent"
        case Delivery.ROOTFS:
            storage = (
                RootFolder(path=root)
                if root is not None
                else disks.storage_of(await _definition(target), name=name, uri=target.uri)
            )
            return Access(executor=ImageFiles(storage, name=name, still_off=still_off(target)))
        case Delivery.XENSTORE:
            raise DeliveryError(
                f"{name} configures itself from xenstore; xenlb writes no files into it",
                hint="to install what reads xenstore there, use ssh, agent or rootfs once",
            )
    channel = GuardedChannel(channel, lambda: identity_of(target), name=name, place=place)
    return Access(executor=RemoteFiles(channel, name=name), channel=channel)


async def identity_of(target: GuestTarget) -> Identity:
    """The identity, from the XML of the running domain. Raises DeliveryError."""
    try:
        cards = interfaces(await _call(target, lambda domain: domain.XMLDesc(0)))
    except Malformed as error:
        raise DeliveryError(f"the XML of {target.name} is invalid: {error}") from None
    macs = frozenset(card.mac for card in cards if card.mac is not None)
    return Identity(uuid=target.uuid, macs=macs)


def _destination(target: GuestTarget) -> str:
    if target.side.ssh is not None:
        return target.side.ssh
    if target.address is None:
        raise DeliveryError(
            f"no address of {target.name} is known", hint="start it, or set guest-side: ssh:"
        )
    return f"root@{target.address}"


def still_off(target: GuestTarget) -> Callable[[], Awaitable[None]]:
    """A check that the guest is off; a guest with a saved memory image is not."""

    def state(domain: _Domain) -> tuple[bool, bool]:
        if domain.isActive():
            return True, False
        try:
            return False, bool(domain.hasManagedSaveImage(0))
        except libvirt.libvirtError as error:
            if CallFailed(error).unsupported:  # LXC has no saved images
                return False, False
            raise

    async def check() -> None:
        active, saved = await _call(target, state)
        if active:
            raise DeliveryError(
                f"{target.name} is running; its files can be changed from the host only while it "
                "is off",
                hint="shut it down first, or use delivery: ssh or agent",
            )
        if saved:
            raise DeliveryError(
                f"{target.name} is saved with open files; they must not change meanwhile",
                hint=f"start it and shut it down, or virsh managedsave-remove {target.name}",
            )

    return check


async def _definition(target: GuestTarget) -> str:
    return await _call(target, lambda domain: domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))


async def _call(target: GuestTarget, function: Callable[[_Domain], T]) -> T:
    def call() -> T:
        with libvirt_errors():
            connection = libvirt.open(to_open(target.uri))
            try:
                return function(connection.lookupByUUIDString(str(target.uuid)))
            finally:
                connection.close()

    try:
        return await in_thread(call, limit=CALL)
    except CallTimeout:
        raise DeliveryError(f"libvirt timed out on a call about {target.name}") from None
    except CallFailed as error:
        raise DeliveryError(f"the libvirt call about {target.name} failed: {error}") from None
