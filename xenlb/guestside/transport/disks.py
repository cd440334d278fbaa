"""The place of the files of a powered-off guest, from the XML of its domain."""

import re
from urllib.parse import urlsplit
from xml.etree.ElementTree import Element

from xenlb.guestside.transport.channel import DeliveryError
from xenlb.guestside.transport.image import Disk, GuestStorage, RootFolder
from xenlb.hypervisor.libvirt.xml_text import Malformed, parse_xml

MOST_DISKS = 16
MOUNT = "mount its root file system and give --root DIR"
_FORMAT = re.compile(r"[a-z0-9-]{1,16}", re.ASCII)


def storage_of(text: str, *, name: str, uri: str) -> GuestStorage:
    """The root folder of a container, or the disks of a virtual machine. Raises DeliveryError."""
    if urlsplit(uri).netloc:
        raise DeliveryError(
            f"{name} is a guest of another host, where its files are",
            hint="use delivery: ssh or agent, or run xenlb on that host",
        )
    try:
        root = parse_xml(text, wanted=[("devices", "filesystem"), ("devices", "disk")])
    except Malformed as error:
        raise DeliveryError(f"the XML of {name} is invalid: {error}") from None
    for filesystem in root.findall("./devices/filesystem"):
        if _attribute(filesystem, "target", "dir") == "/":
            return _folder(filesystem, name)
    disks = [
        _disk(element, name)
        for element in root.findall("./devices/disk")
        if element.get("device", "disk") == "disk" and element.find("readonly") is None
    ]
    if not 1 <= len(disks) <= MOST_DISKS:
        raise DeliveryError(f"{name} has no disks that xenlb can open", hint=MOUNT)
    return tuple(disks)


def _folder(filesystem: Element, name: str) -> RootFolder:
    path = _attribute(filesystem, "source", "dir")
    if filesystem.get("type", "mount") != "mount" or path is None or not path.startswith("/"):
        raise DeliveryError(f"the root of {name} is not a folder of this host", hint=MOUNT)
    return RootFolder(path=path)


def _disk(disk: Element, name: str) -> Disk:
    path = _attribute(disk, "source", "file") or _attribute(disk, "source", "dev")
    if path is None or not path.startswith("/"):
        raise DeliveryError(
            f"{name} has a disk that is neither a file nor a device of this host", hint=MOUNT
        )
    if disk.find("shareable") is not None:
        raise DeliveryError(f"{name} has a disk that others may write to", hint=MOUNT)
    # libvirt treats a disk without a format as raw, too.
    kind = _attribute(disk, "driver", "type") or "raw"
    if not _FORMAT.fullmatch(kind):
        raise DeliveryError(f"{name} has a disk of an unknown format", hint=MOUNT)
    return Disk(path=path, format=kind)


def _attribute(element: Element, child: str, name: str) -> str | None:
    node = element.find(child)
    return None if node is None else node.get(name)
