"""Guests of the User-mode Linux lab: libvirt domains that serve HTTP.

A container shares the lab's files and runs guest.sh as its init, which ends in a
`traffic.py server`. libvirt's LXC driver fires no event when a shutdown is asked for; init gets a
SIGTERM, and only with `--mode signal` (the default mode wants an initctl fifo, finds none, and
returns success without doing anything).

Containers with a real init are in debian.py.

A QEMU guest is a Debian kernel with a busybox (qemu_image.py) in an emulator inside the lab's one
CPU: it serves about 10 s after its start. It reacts to the power button as any machine does, so
it is for what only QEMU has: the event POWERDOWN at the moment a shutdown is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape, quoteattr

from tests.lab.debian import guest_shell
from tests.lab.host import LabError, Result
from tests.lab.uml.qemu_image import QemuImage

if TYPE_CHECKING:
    from tests.lab.uml import UmlLab


def lxc_xml(
    *,
    name: str,
    address: str | None,
    address6: str | None = None,
    mac: str,
    metadata: str | None,
    root: str | None = None,
    memory_mib: int = 128,
    init: Sequence[str],
    environment: Mapping[str, str],
) -> str:
    """`address`: None for a guest that sets its own; `root`: None for one that shares the lab's
    files."""
    arguments = "".join(f"<initarg>{escape(argument)}</initarg>" for argument in init[1:])
    variables = "".join(
        f"<initenv name={quoteattr(key)}>{escape(value)}</initenv>"
        for key, value in environment.items()
        if value  # libvirt takes no empty one
    )
    files = ""
    if root:
        files = f"<filesystem type='mount'><source dir='{root}'/><target dir='/'/></filesystem>"
    ip = route = ""
    if address:
        ip = f"<ip address='{address}' family='ipv4' prefix='24'/>"
        route = "<route family='ipv4' address='0.0.0.0' prefix='0' gateway='10.0.0.1'/>"
    if address6:
        ip += f"<ip address='{address6}' family='ipv6' prefix='64'/>"
        route += "<route family='ipv6' address='::' prefix='0' gateway='fd00:10::1'/>"
    return f"""\
<domain type='lxc'>
  <name>{name}</name>
  <metadata>{metadata or ""}</metadata>
  <memory unit='MiB'>{memory_mib}</memory>
  <vcpu>1</vcpu>
  <os><type>exe</type><init>{init[0]}</init>{arguments}{variables}</os>
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>restart</on_reboot>
  <on_crash>destroy</on_crash>
  <devices>
    <emulator>/usr/lib/libvirt/libvirt_lxc</emulator>
    {files}
    <interface type='bridge'>
      <mac address='{mac}'/>
      <source bridge='br0'/>{ip}{route}
      <guest dev='eth0'/>
    </interface>
    <console type='pty'/>
  </devices>
</domain>
"""


def qemu_xml(
    *,
    name: str,
    mac: str,
    metadata: str | None,
    image: QemuImage,
    settings: Mapping[str, str],
    guest_agent: bool = False,
) -> str:
    channel = ""
    if guest_agent:
        target = "<target type='virtio' name='org.qemu.guest_agent.0'/>"
        channel = f"<channel type='unix'>{target}</channel>"
    arguments = " ".join(f"lab_{key}={value}" for key, value in settings.items())
    return f"""\
<domain type='qemu'>
  <name>{name}</name>
  <metadata>{metadata or ""}</metadata>
  <memory unit='MiB'>{128 if guest_agent else 96}</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='pc'>hvm</type>
    <kernel>{image.kernel}</kernel>
    <initrd>{image.initramfs}</initrd>
    <cmdline>console=ttyS0 quiet panic=1 mitigations=off {escape(arguments)}</cmdline>
  </os>
  <features><acpi/></features>
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>restart</on_reboot>
  <on_crash>destroy</on_crash>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <interface type='bridge'>
      <mac address='{mac}'/>
      <source bridge='br0'/>
      <model type='virtio'/>
      <rom enabled='no'/>
    </interface>
    <serial type='file'><source path='/run/lab/guest-{name}.log'/></serial>
    <channel type='null'>
      <target type='virtio' name='org.xenlb.0'/><alias name='ua-xenlb'/>
    </channel>
    {channel}
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
  </devices>
</domain>
"""


class Guest:
    """A defined domain. The calls are virsh's and return when virsh does."""

    uri = ""

    def __init__(self, lab: UmlLab, *, name: str, address: str) -> None:
        self.lab = lab
        self.name = name
        self.address = address
        self.uuid = ""
        self.log_path = f"/run/lab/guest-{name}.log"
        self.sick_file = f"/run/lab/sick-{name}"  # GET /health is 503 while it exists

    def define(self, xml: str) -> None:
        self.lab.write(f"/run/lab/guest-{self.name}.xml", xml)
        self.virsh("define", f"/run/lab/guest-{self.name}.xml")
        self.uuid = self.virsh("domuuid", self.name).out.strip()

    def virsh(self, *arguments: str, check: bool = True, timeout: float = 60) -> Result:
        return self.lab.run([*self.lab.virsh(self.uri), *arguments], check=check, timeout=timeout)

    def start(self) -> Result:
        """Returns before the guest serves; `wait_serving` waits for that."""
        # The guest before it must not be taken for this one.
        self.lab.run(["rm", "-f", self.log_path])
        return self.virsh("start", self.name)

    def destroy(self) -> Result:
        return self.virsh("destroy", self.name)

    def suspend(self) -> Result:
        return self.virsh("suspend", self.name)

    def resume(self) -> Result:
        return self.virsh("resume", self.name)

    def state(self) -> str:
        """virsh domstate: running, paused, shut off …"""
        return self.virsh("domstate", self.name).out.strip()

    def alive(self) -> bool:
        return self.state() != "shut off"

    def wait_gone(self, timeout: float = 30) -> None:
        self.lab.wait_until(lambda: not self.alive(), timeout, f"{self.name} to be shut off")

    def wait_serving(self, timeout: float = 60) -> None:
        """Since its last start."""
        self.lab.wait_until(
            f"grep -q 'serving on' {self.log_path}", timeout, f"{self.name} to serve"
        )

    def log(self) -> str:
        """What its init and its server have said since its last start."""
        try:
            return self.lab.text(self.log_path)
        except LabError:
            return ""

    def set_metadata(self, xml: str) -> None:
        """As an operator does, with the URI of xenlb's own element, live and in the file."""
        arguments = ["urn:xenlb:1", "--key", "xenlb", "--set", xml, "--config"]
        self.virsh("metadata", self.name, *arguments, *(["--live"] if self.alive() else []))


class LxcGuest(Guest):
    uri = "lxc:///"

    def shutdown(self) -> Result:
        return self.virsh("shutdown", self.name, "--mode", "signal")


class QemuGuest(Guest):
    """Its kernel hears the power button of the emulated board; until init reads its events, after
    some seconds of booting, a shutdown is asked for and ignored."""

    uri = "qemu:///system"

    def run(self, command: str, *, timeout: float = 60, check: bool = True) -> Result:
        """Runs a shell command (busybox) in the guest; both its outputs come as `out`."""
        argv = ["bash", guest_shell.GUEST_SH, self.address, command]
        return self.lab.run(argv, timeout=timeout, check=check)

    def shutdown(self) -> Result:
        return self.virsh("shutdown", self.name, "--mode", "acpi")

    def reboot(self) -> Result:
        return self.virsh("reboot", self.name, "--mode", "acpi")
