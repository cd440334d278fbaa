"""Guests of the Xen lab with Debian's systemd as their init (tests/lab/debian).

Their disk is one image, which the emulator gives to Dom0 and Dom0 to any number of guests; what
one of them writes is in its memory and gone with it. A persistent one has a second disk for it:
a file in Dom0, through a loop device.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tests.lab.debian import guest_files, guest_shell
from tests.lab.debian.definition import Definition
from tests.lab.host import LabError
from tests.lab.xen.guests import Guest, domain_xml

if TYPE_CHECKING:
    from tests.lab.xen.lab import XenLab

# The units' starts and stops on the console: evidence that outlives the guest.
OPTIONS = "net.ifnames=0 apparmor=0 selinux=0 systemd.show_status=yes"
INITRAMFS = "/srv/guest/initramfs-debian"
DISK = "/dev/vdc"
# $1 the file: a sparse disk with a file system that survives a guest's destruction (a journal).
# Prints its loop device.
MAKE_DISK = """
mkdir -p "${1%/*}"
rm -f "$1"
truncate -s 96M "$1"
mkfs.ext4 -q -F -m 0 -E lazy_itable_init=1,nodiscard "$1"
modprobe loop
losetup --find --show "$1"
"""
# $1 the file
FORGET_DISK = """
for device in $(losetup --noheadings --output NAME --associated "$1"); do
    losetup --detach "$device"
done
rm -f "$1"
"""
# $1 the guest's own disk, $2 an empty folder, $3 the image
MOUNT = """
mkdir -p "$2/image" "$2/own" "$2/root"
mount -t ext4 -o ro "$3" "$2/image"
mount -t ext4 "$1" "$2/own"
mount -t overlay -o "lowerdir=$2/image,upperdir=$2/own/upper,workdir=$2/own/work" guest "$2/root"
"""
# $1 the folder
UNMOUNT = 'umount "$1/root" "$1/own" "$1/image"; rmdir "$1"/* "$1"'


class DebianGuest(Guest):
    """A Debian with systemd as its init: its services stop in order when it is shut down."""

    def __init__(self, lab: XenLab, *, name: str, address: str, mac: str, port: int) -> None:
        super().__init__(lab, name=name, address=address, mac=mac, port=port)
        self.device = ""  # its own disk in Dom0, of a persistent guest
        self._file = f"/srv/guest/disks/{name}.img"

    def power_off_inside(self) -> None:
        self.run("systemctl --no-block poweroff")

    def reboot_inside(self) -> None:
        """As `reboot`, but nobody outside has asked for it."""
        self.run("systemctl --no-block reboot")

    def write(self, path: str, data: str | bytes, mode: int = 0o644) -> None:
        """Writes a file in the running guest (parents are made); after a reboot it is there only
        in a persistent one."""
        self.run(guest_shell.write(path, data, mode=mode))

    def make_disk(self) -> None:
        self.forget_disk()
        self.device = self._sh(MAKE_DISK, self._file)

    def forget_disk(self) -> None:
        self._sh(FORGET_DISK, self._file)
        self.device = ""

    @contextlib.contextmanager
    def mounted(self) -> Iterator[str]:
        """Where the files of a persistent guest, which must be shut off, are in Dom0 meanwhile.

        Before its first start there are none."""
        if not self.device:
            raise LabError(f"guest {self.name} keeps nothing: define it with persistent=True")
        folder = f"/run/lab/files-{self.name}"
        self._sh(MOUNT, self.device, folder, DISK)
        try:
            yield f"{folder}/root"
        finally:
            self._sh(UNMOUNT, folder)

    def remove(self) -> None:
        super().remove()
        if self.device:
            self.forget_disk()

    def _sh(self, script: str, *arguments: str) -> str:
        return self.lab.run(["sh", "-e", "-c", script, "sh", *arguments]).out.strip()


def define(lab: XenLab, definition: Definition, *, mac: str) -> DebianGuest:
    """Defines the domain."""
    name = definition.name
    if definition.init != "systemd":
        raise LabError(f"guest {name}: the Xen lab has no guests with {definition.init}")
    guest = DebianGuest(
        lab, name=name, address=definition.address, mac=mac, port=definition.ports[0]
    )
    if definition.persistent:
        guest.make_disk()
    initramfs = f"/run/lab/guest-{name}.initramfs"
    lab.write(initramfs + ".own", second_initramfs(guest_files.archive(definition)))
    lab.run(f"cat {INITRAMFS} {initramfs}.own >{initramfs}; rm {initramfs}.own")
    guest.define(
        domain_xml(
            name=name,
            identity=guest.uuid,
            mac=guest.mac,
            options=f"{OPTIONS} lab_persistent=1" if definition.persistent else OPTIONS,
            initramfs=initramfs,
            disks=[DISK, *([guest.device] if guest.device else [])],
            metadata=definition.metadata,
            addresses=[],
            memory_mib=definition.memory_mib,
            on_crash="destroy",
            vif_script="/usr/lib/lab/vif",
        )
    )
    return guest


def second_initramfs(files: bytes) -> bytes:
    """A cpio archive (newc, as the kernel's initramfs documentation has it) with the one file
    /files.tar, to be appended to INITRAMFS."""
    return _cpio_member("files.tar", files) + _cpio_member("TRAILER!!!", b"")


def _cpio_member(name: str, data: bytes) -> bytes:
    mode, links = (0o100644, 1) if data else (0, 1)
    numbers = [0, mode, 0, 0, links, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0]
    head = b"070701" + b"".join(b"%08x" % number for number in numbers) + name.encode() + b"\0"
    return _padded(head) + _padded(data)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
