"""Guests of the Xen lab: libvirt domains that serve HTTP and UDP (guest/srv/server.py).

Each is a paravirtual machine with a kernel, busybox and a little Python in its initramfs
(guest/init is its whole userland), so it has no disk and starts in seconds. Its settings travel on
its kernel's command line. Those with Debian's systemd are in debian.py.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from tests.lab.debian import guest_shell
from tests.lab.host import LabError, Result

if TYPE_CHECKING:
    from tests.lab.xen.lab import XenLab

MEMORY_MIB = 128
# panic=1 alone would make Xen see a reboot; xen_legacy_crash makes it see a crash.
KERNEL_OPTIONS = (
    "console=hvc0 quiet rdinit=/init panic=1 xen_legacy_crash mitigations=off audit=0 "
    "cryptomgr.notests"
)
INITRAMFS = "/srv/guest/initramfs"
DISKS = (("xvda", "<readonly/>"), ("xvdb", ""))  # the guest's name of each, and how it is given
COMMAND_LINE_LIMIT = 1023  # Xen's MAX_GUEST_CMDLINE, less the final zero


def domain_xml(
    *,
    name: str,
    identity: str,
    mac: str,
    options: str,
    initramfs: str = INITRAMFS,
    disks: Sequence[str] = (),
    metadata: str,
    addresses: list[str],
    memory_mib: int,
    on_crash: str,
    vif_script: str | None,
) -> str:
    command_line = f"{KERNEL_OPTIONS} {options}"
    if len(command_line) > COMMAND_LINE_LIMIT:
        raise LabError(f"too many settings for guest {name}: {command_line}")
    ip = "".join(f"<ip address='{address}' family='{_family(address)}'/>" for address in addresses)
    return f"""\
<domain type='xen'>
  <name>{name}</name>
  <uuid>{identity}</uuid>
  <metadata>{metadata}</metadata>
  <memory unit='MiB'>{memory_mib}</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='xenpv'>linux</type>
    <kernel>/srv/guest/vmlinux</kernel>
    <initrd>{initramfs}</initrd>
    <cmdline>{escape(command_line)}</cmdline>
  </os>
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>restart</on_reboot>
  <on_crash>{on_crash}</on_crash>
  <devices>
    {"".join(_disk_xml(*pair) for pair in zip(disks, DISKS, strict=False))}
    <interface type='bridge'>
      <mac address='{mac}'/>
      <source bridge='br0'/>{f"<script path='{vif_script}'/>" if vif_script else ""}
      {ip}
    </interface>
    <console type='pty'/>
  </devices>
</domain>
"""


def words(settings: Mapping[str, str]) -> str:
    """Settings as guest/init reads them from the kernel's command line."""
    return " ".join(f"lab_{key}={value}" for key, value in settings.items() if value)


def _disk_xml(device: str, attributes: tuple[str, str]) -> str:
    target, mode = attributes
    return f"""<disk type='block' device='disk'>
      <driver name='phy'/>
      <source dev='{device}'/>
      <target dev='{target}' bus='xen'/>
      {mode}
    </disk>"""


def _family(address: str) -> str:
    return "ipv6" if ":" in address else "ipv4"


class Guest:
    """A defined domain. The calls are virsh's and return when virsh does.

    `Result.started` and `.ended` of what they return are Dom0's wall clock.
    """

    def __init__(self, lab: XenLab, *, name: str, address: str, mac: str, port: int) -> None:
        self.lab = lab
        self.name = name
        self.address = address
        self.mac = mac
        self.port = port  # the first one served
        # The same for a name in every boot: reports of two runs can be compared.
        self.uuid = str(uuid.uuid5(uuid.NAMESPACE_DNS, f"{name}.guest.lab"))
        self.saved = f"/var/tmp/{name}.save"  # not in /run: that is memory
        self.log_path = f"/var/log/xen/console/guest-{name}.log"

    def __repr__(self) -> str:
        return f"<Guest {self.name} {self.address}>"

    def define(self, xml: str) -> None:
        path = f"/run/lab/guest-{self.name}.xml"
        self.lab.write(path, xml)
        self.virsh("define", path)

    def virsh(self, *arguments: str, check: bool = True, timeout: float = 240) -> Result:
        return self.lab.run([*self.lab.virsh(), *arguments], check=check, timeout=timeout)

    # Life -----------------------------------------------------------------------------------

    def start(self, *, paused: bool = False) -> Result:
        """Returns before the guest serves; `wait_serving` waits for that."""
        command = ["start", self.name, *(["--paused"] if paused else [])]
        for _ in range(2):
            try:
                return self.virsh(*command)
            except LabError as error:
                # libxl gives the scripts of a device 10 s, which on a busy machine the emulator
                # may need. That is the lab's fault, and nothing that is tested.
                if "libxenlight failed to create" not in str(error):
                    raise
        return self.virsh(*command)

    def shutdown(self) -> Result:
        """Asks, and returns at once; `wait_gone` waits for the guest to follow."""
        return self.virsh("shutdown", self.name)

    def reboot(self) -> Result:
        """Asks, and returns at once; the guest comes back with another domid."""
        return self.virsh("reboot", self.name)

    def destroy(self) -> Result:
        return self.virsh("destroy", self.name)

    def crash(self) -> Result:
        """Makes the guest's kernel panic; Xen then says "crashed"."""
        return self.lab.run(["xl", "sysrq", self.name, "c"])

    @contextlib.contextmanager
    def staying(self) -> Iterator[None]:
        """Whatever it is asked for meanwhile, it serves on; afterwards it follows.

        Not a Debian: its init is its own."""
        self.run(": >/run/stay")
        try:
            yield
        finally:
            self.run("rm /run/stay")

    def power_off_inside(self) -> None:
        """The guest goes by itself; nobody outside has asked for it."""
        # In a moment: a guest that is gone does not end the connection that asked it.
        self.run("{ sleep 0.3; busybox poweroff -f; } >/dev/null 2>&1 </dev/null &")

    def suspend(self) -> Result:
        """Pauses it."""
        return self.virsh("suspend", self.name)

    def resume(self) -> Result:
        return self.virsh("resume", self.name)

    def save(self) -> Result:
        """Suspends it to a file in Dom0; returns when it is gone."""
        return self.virsh("save", self.name, self.saved)

    def restore(self) -> Result:
        return self.virsh("restore", self.saved)

    def remove(self) -> None:
        """Destroys and undefines it, whatever its state."""
        self.virsh("destroy", self.name, check=False)
        self.virsh("undefine", self.name, check=False)

    # What it is doing -----------------------------------------------------------------------

    def state(self) -> str:
        """virsh domstate: running, paused, shut off …"""
        return self.virsh("domstate", self.name).out.strip()

    def alive(self) -> bool:
        return self.state() != "shut off"

    def domid(self) -> int | None:
        """Xen's number of the running guest; each start and reboot gives another."""
        text = self.virsh("domid", self.name).out.strip()
        return int(text) if text.isdigit() else None

    def wait_serving(self, timeout: float = 180) -> None:
        """Until its first port takes a connection from Dom0."""
        if not guest_shell.answers(self.lab, self.address, self.port, timeout=timeout):
            raise LabError(
                f"guest {self.name} does not serve {self.address} port {self.port} after "
                f"{timeout * self.lab.patience:.0f} s; its console ends:\n{self.log()[-2000:]}"
            )

    def wait_gone(self, timeout: float = 120) -> None:
        """Until libvirt says that it is shut off."""
        # Seldom: each virsh takes the CPU that the guest's end needs.
        self.lab.wait_until(
            lambda: not self.alive(), timeout, f"{self.name} to be shut off", every=0.3
        )

    def wait_rebooted(self, before: int | None, timeout: float = 180) -> None:
        """Until it runs as another domain than `before`, and serves."""
        self.lab.wait_until(
            lambda: self.domid() not in (None, before), timeout, f"{self.name} anew", every=0.5
        )
        self.wait_serving(timeout)

    def log(self) -> str:
        """Its console, of all its boots."""
        return self.lab.run(["cat", self.log_path], check=False).out

    def run(self, command: str, *, timeout: float = 30, check: bool = True) -> Result:
        """Runs a shell command (busybox) in the guest; both its outputs come as `out`."""
        argv = ["/usr/lib/lab/guest-sh", self.address, command]
        return self.lab.run(argv, timeout=timeout, check=check)

    def set_sick(self, sick: bool) -> None:
        """From now on GET /health is answered 503 (or again 200)."""
        self.run("touch /run/sick" if sick else "rm -f /run/sick")

    def set_metadata(self, xml: str) -> None:
        """As an operator does, with the URI of xenlb's own element, live and in the file."""
        arguments = ["urn:xenlb:1", "--key", "xenlb", "--set", xml, "--config"]
        self.virsh("metadata", self.name, *arguments, *(["--live"] if self.alive() else []))
