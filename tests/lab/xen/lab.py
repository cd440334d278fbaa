"""XenLab: boots the image in QEMU, defines guests and clients, powers off."""

from __future__ import annotations

import concurrent.futures
import contextlib
import ipaddress
import itertools
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from tests.lab import preflight
from tests.lab.debian import definition as definitions
from tests.lab.debian import guest_image, packages, releases
from tests.lab.debian.definition import DebianGuests, Definition, prefixed, vips_of
from tests.lab.debian.releases import Release
from tests.lab.host import CHECKOUT, LabError, Result, cache_directory, last_lines
from tests.lab.netns import NetNs
from tests.lab.xen import debian
from tests.lab.xen import image as images
from tests.lab.xen import payload as payloads
from tests.lab.xen.debian import DebianGuest
from tests.lab.xen.guests import MEMORY_MIB, Guest, domain_xml, words

# Measured: 11-14 s on an idle machine of two slow cores, 120 s with seven other jobs on them.
BOOT_TIMEOUT = 400.0
# With two, a boot and a guest's life took as long, and 62 s of the machine's processors in place of
# 45; beside another lab, three times as long, since they wait for each other's locks. Linux 6.12 as
# Dom0 with two ended now and then with "Oops: int3" in the scheduler: it patches its own code while
# QEMU's other thread still runs the old.
PROCESSORS = 1
XEN_OPTIONS = (
    "dom0_mem=1G,max:1G console=com1 com1=115200,8n1 noreboot=1 spec-ctrl=no "
    "xpti=0 ucode=no no-watchdog loglvl=warning guest_loglvl=warning"
)
DOM0_OPTIONS = (
    "root=/dev/vda console=hvc0 quiet mitigations=off clocksource=xen tsc=unstable "
    "net.ifnames=0 audit=0 apparmor=0 selinux=0 systemd.unified_cgroup_hierarchy=1 "
    "systemd.show_status=no"
)
# What the console says when there is no point in waiting any longer.
FATAL = ("Kernel panic", "Panic on CPU", "lab: cannot", "lab: no ", "You are in emergency mode")
NETWORK_UP = "lab: the network is up"


def mac_of(address: str) -> str:
    """From the address, in the range that is Xen's: a guest keeps it from boot to boot."""
    packed = ipaddress.ip_address(address).packed
    return "00:16:3e:" + ":".join(f"{byte:02x}" for byte in packed[-3:])


class Client(NetNs):
    """A name space in Dom0; one request costs it a tenth of what starting Python would."""

    def fetch(self, target: str, *, timeout: float = 30, udp: bool = False) -> str:
        """One request to ADDRESS:PORT; the name of the server that answered.

        A request that fails raises AssertionError with the reason.
        """
        result = self.run(
            ["/usr/lib/lab/fetch", "udp" if udp else "tcp", target, f"{timeout:g}"], check=False
        )
        if result.rc != 0:
            raise AssertionError(f"{self.name} → {target}: {result.err.strip() or 'timeout'}")
        return result.out.strip()


class XenLab(DebianGuests[DebianGuest]):
    """See the package's docstring. One needs about 3 GiB of memory and a core of its own."""

    patience = 4.0

    def __init__(
        self,
        name: str = "xen",
        *,
        release: Release | None = None,
        payload: Path | None = None,
        install: bool = True,
        debian_guests: bool = True,
        memory_mib: int = 3072,
        progress: packages.Progress = packages.report,
    ) -> None:
        """`release`: Dom0's Debian, and that of Debian guests; the default of releases.py without
        one. `payload`: a folder whose content is laid over Dom0's /. Without one the checkout is
        installed (`make install`), or, with `install=False`, nothing but the lab's own programs.
        `debian_guests`: with the disk that `define_debian_guest` needs (a minute to make, once).
        `progress` is told what a long step is doing."""
        super().__init__(name)
        self.release = release or releases.default()
        self.payload = payload
        self.install = install
        self.debian_guests = debian_guests
        self.memory_mib = memory_mib
        self.progress = progress
        self.traffic = ["/usr/bin/python3", "/usr/lib/lab/traffic.py"]
        self.boot_seconds = 0.0
        self.image: images.Image | None = None
        self._guest_disk: Path | None = None
        self._directory: Path | None = None
        self._qemu: subprocess.Popen[bytes] | None = None
        self._port = 0
        self._guests: dict[str, Guest] = {}
        self._spaces: dict[str, Client] = {}
        self._numbers = itertools.count(1)
        self._last_console = ""

    # How it lives -------------------------------------------------------------------------

    def needs(self) -> preflight.Needs:
        """What this machine must have for the lab to be built and to boot."""
        return preflight.Needs(
            lab="The Xen lab",
            missing_packages=tuple(images.missing_packages()),
            memory_mib=self.memory_mib + 512,  # QEMU's own, most of it for translated code
            # Measured: 1.7 GiB for the images and what they are made from.
            cache_mib=256 if any(cache_directory().glob("xen-*/dom0.img")) else 4096,
            temporary_mib=1024,  # what is written to Dom0's disk
        )

    def boot(self) -> None:
        """Builds the image if it has to, and returns when libvirt answers in Dom0."""
        preflight.require(self.needs())
        self.image = images.build(self.release, self.progress)
        self._guest_disk = (
            guest_image.build(self.progress, release=self.release) if self.debian_guests else None
        )
        self._directory = Path(tempfile.mkdtemp(prefix="xenlb-xen-"))
        staging = self.payload
        if staging is None and self.install:
            staging = payloads.installed(
                self._directory / "staging",
                self.progress,
                release=self.release,
                userland=self.image.userland,
            )
        payloads.write(self._directory / "payload.tar", payload=staging)
        self.progress(f"Xen lab: booting a Dom0 of {self.release} (about 20 s) …")
        began = time.monotonic()
        self._start_qemu()
        self._wait_for_network()
        self.attach_tcp("127.0.0.1", self._port, timeout=60, running=self._runs)
        self._wait_for_libvirt(began + BOOT_TIMEOUT)
        self.boot_seconds = time.monotonic() - began
        self.progress(f"Xen lab: Dom0 is up after {self.boot_seconds:.0f} s")

    def _start_qemu(self) -> None:
        # The port is free now and may not be in a moment: then QEMU ends at once.
        for attempt in range(5):
            self._port = _free_port()
            assert self._directory
            log = self._directory / "qemu.log"
            with log.open("wb") as output:
                self._qemu = subprocess.Popen(
                    self._qemu_command(),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    # A Ctrl-C is pytest's to handle; it would take the lab away before the
                    # capture. If pytest is killed, setpriv sees to it that QEMU goes, too.
                    start_new_session=True,
                )
            time.sleep(0.5)
            if self._runs():
                return
            said = log.read_text(errors="replace")
            if "forwarding rule" not in said or attempt == 4:
                raise LabError(f"QEMU ended with {self._qemu.returncode} and said:\n{said}")

    def _qemu_command(self) -> list[str]:
        assert self._directory
        assert self.image

        def comma(path: Path) -> str:
            return str(path).replace(",", ",,")  # how QEMU's options write a comma

        disk = "format=raw,if=none,cache=unsafe"
        guest_disk: list[str] = []
        if self._guest_disk:
            guest_disk = [
                *("-drive", f"file={comma(self._guest_disk)},id=d2,readonly=on,{disk}"),
                *("-device", "virtio-blk-pci,drive=d2"),
            ]
        return [
            *("setpriv", "--pdeathsig", "KILL", "--"),
            "qemu-system-x86_64",
            *("-accel", "tcg,thread=multi,tb-size=1024", "-machine", "q35", "-cpu", "Nehalem"),
            *("-smp", str(PROCESSORS), "-m", str(self.memory_mib)),
            *("-nodefaults", "-no-user-config", "-display", "none", "-vga", "none", "-no-reboot"),
            *("-serial", f"file:{comma(self._directory)}/console"),
            *("-kernel", str(self.image.hypervisor), "-append"),
            XEN_OPTIONS,
            "-initrd",
            f"{comma(self.image.kernel)} {DOM0_OPTIONS},{comma(self.image.initramfs)}",
            *("-drive", f"file={comma(self.image.disk)},id=d0,snapshot=on,{disk}"),
            *("-device", "virtio-blk-pci,drive=d0"),
            *("-drive", f"file={comma(self._directory)}/payload.tar,id=d1,readonly=on,{disk}"),
            *("-device", "virtio-blk-pci,drive=d1"),
            *guest_disk,
            "-netdev",
            f"user,id=n0,restrict=on,hostfwd=tcp:127.0.0.1:{self._port}-10.0.2.15:7000",
            *("-device", "virtio-net-pci,netdev=n0,romfile="),
        ]

    def _runs(self) -> bool:
        return self._qemu is not None and self._qemu.poll() is None

    def _wait_for_network(self) -> None:
        until = time.monotonic() + BOOT_TIMEOUT
        while NETWORK_UP not in (console := self.console):
            said = next((line for line in console.splitlines() if _is_fatal(line)), "")
            late = time.monotonic() > until
            if said or late or not self._runs():
                why = said or ("QEMU ended" if not self._runs() else "its network is not up")
                raise LabError(
                    f"Xen's Dom0 did not boot within {BOOT_TIMEOUT:.0f} s: {why}\n"
                    f"its console ends:\n{last_lines(console, 40)}\n"
                    f"The whole console is in {self._keep_console()}. If it shows nothing wrong, "
                    "the machine may be too busy: try again; if the image may be broken, remove "
                    f"{cache_directory()}/xen-* to have it built anew."
                )
            time.sleep(0.1)

    def _wait_for_libvirt(self, until: float) -> None:
        # In one process in Dom0, and no faster: each virsh takes the CPU that libvirtd starts on.
        left = max(10.0, until - time.monotonic())
        result = self.run(
            f"until {' '.join(self.virsh())} list >/dev/null 2>&1; do sleep 0.3; done",
            timeout=left,
            check=False,
        )
        if result.rc != 0:
            state = self.out("systemctl --no-pager status libvirtd xenstored xenconsoled; true")
            raise LabError(f"libvirt does not answer in Dom0:\n{state}")

    def close(self) -> None:
        """Takes the power away (nothing on the disk is kept) and waits for QEMU to end."""
        asked = self._runs() and self.attached
        if asked:
            # Dom0's power-off ends Xen, and that ends QEMU; the answer never comes.
            with contextlib.suppress(LabError):
                self.run("systemctl poweroff --force --force", timeout=5, check=False)
        self._end_qemu(10 if asked else 0)
        self.detach()
        self._last_console = self.console
        if self._directory:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None
        self._guests.clear()
        self._spaces.clear()

    def power_off(self, timeout: float = 120) -> None:
        """An orderly power-off of the host, with every unit's stop; the console stays readable
        until `close`."""
        self.run("systemctl poweroff", check=False)
        self._end_qemu(timeout)
        self.detach()

    def _end_qemu(self, timeout: float) -> None:
        if not self._qemu:
            return
        try:
            self._qemu.wait(timeout)
        except subprocess.TimeoutExpired:
            self._qemu.kill()
            self._qemu.wait()
        self._qemu = None

    def reset(self) -> None:
        """As after a boot: no guests, clients, services or service addresses; the agent stopped.

        Configuration and hooks that a test wrote are the test's to take away.
        """
        if not self.attached:
            self.close()
            self.boot()
            return
        for guest in list(self._guests.values()):
            guest.remove()
        self._guests.clear()
        for space in self._spaces.values():
            space.delete()
        self._spaces.clear()
        self.run(["/usr/lib/lab/reset"])

    # Evidence -----------------------------------------------------------------------------

    @property
    def console(self) -> str:
        """Of Xen and Dom0, from the start."""
        path = self._directory / "console" if self._directory else None
        if path is None or not path.exists():
            return self._last_console
        return path.read_text(errors="replace").replace("\r", "")

    def _keep_console(self) -> Path:
        path = cache_directory() / "xen-last-failed-boot.log"
        path.write_text(self.console)
        return path

    def capture_commands(self) -> dict[str, str]:
        return {
            **super().capture_commands(),
            "journal.txt": "journalctl --no-pager -b -o short-precise",
            "journal-xenlb.txt": "journalctl --no-pager -b -o short-precise -u 'xenlb*'",
            "xen.txt": "xl list; xl dmesg | tail -n 50",
            "xenstore.txt": "xenstore-ls -f | head -n 500",
        }

    def capture_files(self) -> Sequence[str]:
        return (
            *super().capture_files(),
            "/etc/xenlb/*.yaml",
            "/var/log/xen/console/*.log",
            "/var/log/xen/*.log",
        )

    # Guests -------------------------------------------------------------------------------

    @staticmethod
    def virsh() -> list[str]:
        return ["virsh", "-q", "-c", "xen:///system"]

    def define_guest(
        self,
        name: str,
        address: str,
        *,
        services: Sequence[int] = (80,),
        vip: str | Sequence[str] | None = None,
        method: Literal["masquerade", "gatewaying", "tunnel"] = "gatewaying",
        address6: str | None = None,
        gateway: str = "10.0.0.1",
        gateway6: str = "fd00:10::1",
        mac: str | None = None,
        start_delay: int = 0,
        stop_delay: int = 0,
        ignore_shutdown: bool = False,
        report_address: bool = True,
        address_in_xml: bool = False,
        metadata: str = "",
        on_crash: Literal["destroy", "restart", "preserve"] = "destroy",
        memory_mib: int = MEMORY_MIB,
        vif_script: str | None = "/usr/lib/lab/vif",
    ) -> Guest:
        """Defines a guest that serves HTTP and UDP echo on `services`; does not start it.

        `vip`: service addresses it takes for itself (lo for gatewaying, tunl0 for a tunnel).
        `start_delay`: seconds between its boot and its first answer; `stop_delay`: seconds it
        still serves after it was asked to shut down. `report_address`: it writes its address into
        its xenstore attr/, as guest agents do. `address_in_xml`: <ip address> in its interface.
        `metadata`: elements for the domain's <metadata>. `vif_script`: None for Debian's own.
        """
        vips = vips_of(vip)
        mac = mac or mac_of(address)
        guest = Guest(self, name=name, address=address, mac=mac, port=services[0])
        settings = {
            "name": name,
            "address": prefixed(address),
            "address6": prefixed(address6) if address6 else "",
            "gateway": gateway,
            "gateway6": gateway6 if address6 else "",
            "ports": ",".join(str(port) for port in services),
            "vip": "" if method == "masquerade" else ",".join(vips),
            "method": method,
            "start_delay": str(start_delay or ""),
            "stop_delay": str(stop_delay or ""),
            "ignore_shutdown": "1" if ignore_shutdown else "",
            "report_address": "1" if report_address else "",
        }
        guest.define(
            domain_xml(
                name=name,
                identity=guest.uuid,
                mac=mac,
                options=words(settings),
                metadata=metadata,
                addresses=[a for a in (address, address6) if a] if address_in_xml else [],
                memory_mib=memory_mib,
                on_crash=on_crash,
                vif_script=vif_script,
            )
        )
        self._guests[name] = guest
        return guest

    def _define_debian_guest(self, definition: Definition) -> DebianGuest:
        if not self._guest_disk:
            raise LabError(f"{self.name} was made without the Debian guests' disk")
        guest = debian.define(self, definition, mac=definition.mac or mac_of(definition.address))
        self._guests[definition.name] = guest
        return guest

    def start(self, *guests: Guest, serving: bool = True) -> list[Result]:
        """Starts guests at the same time; returns when all serve (or, else, when all run)."""
        with concurrent.futures.ThreadPoolExecutor(max(1, len(guests))) as pool:
            results = list(pool.map(Guest.start, guests))
        if serving:
            for guest in guests:
                guest.wait_serving()
        return results

    # The network --------------------------------------------------------------------------

    def client(
        self,
        name: str,
        address: str,
        where: Literal["bridge", "routed"] = "routed",
        *,
        address6: str | None = None,
    ) -> Client:
        """A client: on the guests' bridge (10.0.0.0/24), or in front of the director
        (192.0.2.0/24). Dom0 is its gateway in both places."""
        space = Client(self, name, address=address)
        self._add_space(space, "front0" if where == "routed" else "br0", address, address6)
        return space

    def server_ns(self, name: str, address: str, *, address6: str | None = None) -> Client:
        """A server that is no guest, on the guests' bridge; `NetNs.serve` makes it serve."""
        space = Client(self, name, address=address)
        self._add_space(space, "br0", address, address6)
        return space

    def _add_space(self, space: Client, bridge: str, *addresses: str | None) -> None:
        # The other end's name would not fit 15 characters with a long NAME in it.
        peer = f"client{next(self._numbers)}"
        words = ["/usr/lib/lab/netns", space.name, bridge, peer]
        for address in addresses:
            if address:
                words += [prefixed(address), self.gateway(bridge, address)]
        self.run(words)
        self._spaces[space.name] = space

    @staticmethod
    def gateway(bridge: str, address: str) -> str:
        """Dom0's address on a bridge, of the family of `address`."""
        return definitions.gateway(bridge, address)

    def add_vip(self, vip: str) -> None:
        """Gives Dom0 a service address (the agent does that itself when it manages them)."""
        if ":" in vip:
            self.run(["ip", "addr", "add", f"{vip}/128", "dev", "front0", "nodad"])
        else:
            self.run(["ip", "addr", "add", f"{vip}/32", "dev", "front0"])

    def accept_gatewaying_replies(self) -> None:
        """Lets a gatewaying guest that has Dom0 as its gateway answer through it: its packets
        have a source that is local to Dom0, martians by default."""
        keys = ("all.accept_local=1", "br0.accept_local=1", "all.rp_filter=0", "br0.rp_filter=0")
        self.run(["sysctl", "-q", "-w", *(f"net.ipv4.conf.{key}" for key in keys)])

    @property
    def checkout(self) -> Path:
        """The checkout on the machine that runs the tests; Dom0 does not see it."""
        return CHECKOUT


def _is_fatal(line: str) -> bool:
    return any(text in line for text in FATAL)


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port
