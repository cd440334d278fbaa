"""The User-mode Linux lab: a real kernel with IPVS as a process, up in about two seconds.

Its root name space is the director: it holds the IPVS table, runs libvirtd (LXC and QEMU) and
would run the agent. Guests and plain servers sit on a bridge behind it, clients in front of it or
on the guests' bridge:

      client "routed"                              client "bridge"
      192.0.2.100                                  10.0.0.100
           | veth                                       | veth
   --------+------ director (the lab) ------------------+--------------------
    front0 (bridge)                     br0 (bridge)
    192.0.2.1/24  fd00:2::1/64          10.0.0.1/24  fd00:10::1/64
    service addresses (VIPs)                 | veth          | veth
    are added here                           |               |
   ------------------------------------------+---------------+---------------
                                        LXC or QEMU      server_ns()
                                        guest, eth0      eth0
                                        10.0.0.11/24     10.0.0.21/24

Facts this rests on (Debian 12, user-mode-linux 6.1):
- hostfs shows the machine's files; the overlay of init.sh keeps every write in memory. Files
  that change on the machine while the lab runs may be seen old or new: boot anew for new code.
- One CPU. Threads inside are fair, but load and what it measures share that CPU.
- nf_tables has no ip, ip6 or inet family there; iptables-legacy works.
- The kernel counts IPVS traffic 1-2 s late: poll statistics, never assert at once.
- The kernel takes IPIP, SIT and IP6TNL out of GUE (fou), but cannot put them in
  (NET_FOU_IP_TUNNELS is off), which only IPVS has to.

How guests are made is in guests.py, those with a real init in debian.py; the protocol is in
tests/lab/host.py.
"""

from __future__ import annotations

import ipaddress
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from tests.lab import preflight
from tests.lab.debian import definition as definitions
from tests.lab.debian import packages
from tests.lab.debian.definition import DebianGuests, Definition, prefixed
from tests.lab.host import CHECKOUT, LabError, Process, console_end, last_lines
from tests.lab.netns import NetNs
from tests.lab.uml import debian, qemu_image, tracing
from tests.lab.uml.debian import DebianGuest
from tests.lab.uml.guests import LxcGuest, QemuGuest, lxc_xml, qemu_xml
from tests.lab.uml.supervise import isolation

HERE = Path(__file__).resolve().parent
BOOT_TIMEOUT = 60.0
LIBVIRTD_TIMEOUT = 60.0

# What must be there, and the Debian package that has it.
NEEDS = {
    "/usr/bin/linux.uml": "user-mode-linux",
    "/usr/sbin/ipvsadm": "ipvsadm",
    "/usr/sbin/libvirtd": "libvirt-daemon",
    "/usr/lib/libvirt/libvirt_lxc": "libvirt-daemon-driver-lxc",
    "/usr/bin/virsh": "libvirt-clients",
    "/usr/sbin/iptables-legacy": "iptables",
    "/sbin/ip": "iproute2",
    "/sbin/modprobe": "kmod",
    "/usr/bin/python3": "python3",
    "/usr/bin/cc": "gcc",
}

LIBVIRT_FILES = {
    "/etc/libvirt/libvirtd.conf": 'auth_unix_rw = "none"\nauth_unix_ro = "none"\n'
    'unix_sock_rw_perms = "0770"\n'
    # All its workers from the start: see start_libvirtd.
    "min_workers = 10\nmax_workers = 10\n",
    # No virtlogd, no users, no labels, no name spaces: QEMU is a plain child of libvirtd.
    "/etc/libvirt/qemu.conf": 'stdio_handler = "file"\nsecurity_driver = "none"\n'
    'user = "root"\ngroup = "root"\nremember_owner = 0\nnamespaces = []\n'
    "cgroup_controllers = []\n",
    "/etc/libvirt/lxc.conf": 'log_with_libvirtd = 1\nsecurity_driver = "none"\n',
}


def mac_of(address: str) -> str:
    """A hardware address for an IPv4 address: whoever gets the address again gets both, so no
    neighbour remembers a wrong pair."""
    return ":".join(f"{byte:02x}" for byte in b"\x52\x54" + ipaddress.IPv4Address(address).packed)


class ServerNs(NetNs):
    """A plain server ("host:" in the configuration): a name space on the guests' bridge."""

    def add_vip(self, vip: str, *, forwarding: Literal["gatewaying", "tunnel"]) -> None:
        """Makes it take packets for a service address: on lo, or on tunl0 for a tunnel."""
        self.run(["/bin/sh", str(HERE / "vip.sh"), forwarding, vip, "eth0"])


class UmlLab(DebianGuests[DebianGuest]):
    """See the module's docstring. Several may run at a time; each has its own directory."""

    def __init__(self, name: str = "uml", *, memory: str = "1G") -> None:
        super().__init__(name)
        self.memory = memory
        self.boot_seconds = 0.0
        self.libvirtd: Process | None = None
        self._directory: Path | None = None
        self._supervisor: subprocess.Popen[bytes] | None = None
        self._last_console = ""

    # How it lives -------------------------------------------------------------------------

    def needs(self) -> preflight.Needs:
        """What this machine must have for the lab to boot."""
        isolated = bool(isolation())
        return preflight.Needs(
            lab="The User-mode Linux lab",
            missing_packages=tuple(
                sorted({package for path, package in NEEDS.items() if not Path(path).exists()})
            ),
            memory_mib=1024,
            cache_mib=512,
            temporary_mib=64 if isolated else 1024,
            lacking=tracing.lacking(temporary=Path(tempfile.gettempdir()), isolated=isolated),
        )

    def boot(self) -> None:
        preflight.require(self.needs())
        began = time.monotonic()
        self._directory = Path(tempfile.mkdtemp(prefix="xenlb-uml-"))
        # A link, so that no character of the checkout's path can upset the kernel's command line.
        (self._directory / "lab").symlink_to(HERE)
        ours, theirs = socket.socketpair()
        with theirs, (self._directory / "console").open("ab") as console:
            serial = theirs.fileno()
            options = {
                "root": "/dev/root",
                "rootfstype": "hostfs",
                "init": f"{self._directory}/lab/init.sh",
                "mem": self.memory,
                "con": "null",
                "con0": "null,fd:1",
                "ssl": "null",
                "ssl0": f"fd:{serial}",
                "uml_dir": f"{self._directory}/",
                "umid": "uml",
                "LAB_SERIAL": "/dev/ttyS0",
            }
            command = [
                *self._with_registers(),
                *("linux.uml", "ro", "quiet"),
                *(f"{k}={v}" for k, v in options.items()),
            ]
            self._supervisor = subprocess.Popen(
                [sys.executable, str(HERE / "supervise.py"), str(self._directory), *command],
                stdin=subprocess.PIPE,
                stdout=console,
                stderr=console,
                pass_fds=[serial],
                # A Ctrl-C is pytest's to handle; it would take the lab away before the capture.
                start_new_session=True,
            )
        self.attach(ours, tty=True)
        self._wait_for_hello()
        self.request("answer a first ping", op="ping")
        self.boot_seconds = time.monotonic() - began

    def _with_registers(self) -> list[str]:
        """The beginning of the command line, with what a large register set takes."""
        if not tracing.needs_merge(tracing.host_size(), os.environ.get(tracing.FORCED, "")):
            return []
        assert self._directory
        with packages.locked_cache("uml-registers", packages.report) as cache:
            library = packages.step(
                cache,
                f"uml-registers-{packages.key(tracing.SOURCE.read_bytes())}",
                "User-mode Linux lab: compiling registers.c",
                packages.report,
                tracing.compile_library,
            )
        # A blank or a colon would end its path in LD_PRELOAD; a link has neither.
        (self._directory / "registers.so").symlink_to(library)
        return ["env", f"LD_PRELOAD={self._directory}/registers.so"]

    @property
    def supervisor_pid(self) -> int:
        """The process on this machine whose end ends the lab."""
        if not self._supervisor:
            raise LabError(f"{self.name} is not running")
        return self._supervisor.pid

    def _wait_for_hello(self) -> None:
        assert self._channel
        assert self._supervisor
        until = time.monotonic() + BOOT_TIMEOUT
        while not self._channel.hello.wait(0.05):
            ended = self._supervisor.poll() is not None
            bad = ("lab: failed", "Kernel panic")
            said = [line for line in self.console.splitlines() if line.startswith(bad)]
            if ended or said or time.monotonic() > until:
                why = said[0] if said else "linux.uml ended" if ended else "no word from execd"
                raise LabError(
                    f"{self.name} did not boot within {BOOT_TIMEOUT:.0f} s: {why}\n"
                    f"its console ends:\n{console_end(self.console)}"
                )

    def close(self) -> None:
        self._last_console = self.console
        if self._supervisor:
            assert self._supervisor.stdin
            # It holds nothing worth a clean power-off: all its writes were in memory.
            self._supervisor.stdin.close()
            self._supervisor.wait(30)
            self._supervisor = None
        self.detach()
        if self._directory:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None
        self.libvirtd = None

    @property
    def console(self) -> str:
        if not self._directory:
            return self._last_console
        path = self._directory / "console"
        text = path.read_text(errors="replace") if path.exists() else ""
        # linux.uml's own checks, which each of its helper processes prints once more.
        noise = ("Checking ", "Core dump limits", "\tsoft", "\thard", "Warning: tempdir")
        return "\n".join(line for line in text.splitlines() if not line.startswith(noise))

    # libvirt --------------------------------------------------------------------------------

    def start_libvirtd(self) -> None:
        """Starts libvirtd and waits until lxc:/// answers (qemu:///system does then, too)."""
        for path, text in LIBVIRT_FILES.items():
            self.write(path, text)
        # The LXC driver shows each guest its own /proc/meminfo through FUSE.
        self.run(["modprobe", "fuse"])
        log = "/run/lab/libvirtd.log"
        self.libvirtd = self.spawn(["/usr/sbin/libvirtd"], log=log)
        daemon = self.libvirtd

        def answers() -> bool:
            if not daemon.alive():
                raise LabError(f"libvirtd ended; its log ends:\n{last_lines(daemon.log())}")
            return self.run([*self.virsh(), "uri"], check=False, timeout=LIBVIRTD_TIMEOUT).rc == 0

        self.wait_until("test -S /run/libvirt/libvirt-sock", LIBVIRTD_TIMEOUT, "libvirtd's socket")
        self.wait_until(answers, LIBVIRTD_TIMEOUT, "libvirtd to answer")
        # libvirt 9.0's LXC driver connects to a new container's controller, then registers the
        # protocol. The controller tells the pid of init at once, and if that is read in between
        # ("No program found for event" in its debug log), libvirtd hangs up: it refuses to shut
        # the guest down ("Init process ID is not yet known") and never hears that it ended. On
        # this one CPU the thread that connects must not be preempted; seen 3 times in 16 starts
        # on a busy machine, and 0 in 20 with this. -R: what it starts runs as usual.
        self.run(
            ["chrt", "--all-tasks", "--reset-on-fork", "--fifo", "--pid", "1", str(daemon.pid)]
        )

    def stop_libvirtd(self, *, number: signal.Signals = signal.SIGTERM) -> None:
        """Ends libvirtd (SIGKILL: as a crash would); guests run on."""
        if not self.libvirtd:
            raise LabError("libvirtd is not running in the lab")
        self.libvirtd.signal(signal.SIGCONT)  # a stopped daemon would never see a SIGTERM
        self.libvirtd.signal(number)
        self.libvirtd.wait(30)
        self.libvirtd = None

    def restart_libvirtd(self, *, number: signal.Signals = signal.SIGTERM) -> None:
        self.stop_libvirtd(number=number)
        self.start_libvirtd()

    @staticmethod
    def virsh(uri: str = "lxc:///") -> list[str]:
        return ["/usr/bin/virsh", "-q", "-c", uri]

    def define_lxc_guest(
        self,
        name: str,
        address: str,
        *,
        services: Sequence[int] = (80,),
        udp: Sequence[int] = (),
        mac: str | None = None,
        address6: str | None = None,
        vip: str | None = None,
        vip_on: Literal["gatewaying", "tunnel"] = "gatewaying",
        ignore_shutdown: bool = False,
        start_delay: float = 0,
        stop_delay: float = 0,
        metadata: str | None = None,
    ) -> LxcGuest:
        """Defines a container that serves HTTP on `services`; libvirtd must run.

        `start_delay`: seconds before it serves; `stop_delay`: seconds it still serves after it
        was asked to shut down; `metadata`: elements to put into the domain's <metadata>.
        """
        guest = LxcGuest(self, name=name, address=address)
        xml = lxc_xml(
            name=name,
            address=address,
            address6=address6,
            mac=mac or mac_of(address),
            metadata=metadata,
            init=["/bin/sh", str(HERE / "guest.sh")],
            environment={
                "GUEST": name,
                "GUEST_PORTS": " ".join(map(str, services)),
                "GUEST_UDP": " ".join(map(str, udp)),
                "GUEST_VIP": vip or "",
                "GUEST_VIP_ON": vip_on,
                "GUEST_START_DELAY": f"{start_delay:g}",
                "GUEST_SERVER": " ".join(
                    [f"--stop-delay={stop_delay:g}", f"--sick={guest.sick_file}"]
                    + (["--ignore-term"] if ignore_shutdown else [])
                ),
                "GUEST_LOG": guest.log_path,
            },
        )
        guest.define(xml)
        return guest

    def _define_debian_guest(self, definition: Definition) -> DebianGuest:
        return debian.define(self, definition, mac=definition.mac or mac_of(definition.address))

    def define_qemu_guest(
        self,
        name: str,
        address: str,
        *,
        services: Sequence[int] = (80,),
        mac: str | None = None,
        vip: str | None = None,
        ignore_shutdown: bool = False,
        start_delay: float = 0,
        stop_delay: float = 0,
        metadata: str | None = None,
        programs: Sequence[qemu_image.Program] = (),
    ) -> QemuGuest:
        """Defines an emulated machine that serves HTTP on `services`; libvirtd must run.

        The parameters mean what they mean for `define_lxc_guest`; `vip` is for gatewaying;
        `programs`: what the guest has in /usr/sbin beside its busybox. With qemu-ga among them it
        has a guest agent.
        """
        guest = QemuGuest(self, name=name, address=address)
        self.run(["modprobe", "tun"])
        settings = {
            "name": name,
            "address": address,
            "ports": ",".join(map(str, services)),
            "vip": vip or "",
            "deaf": "1" if ignore_shutdown else "0",
            "start_delay": f"{start_delay:g}",
            "stop_delay": f"{stop_delay:g}",
        }
        image = qemu_image.build(programs)
        guest.define(
            qemu_xml(
                name=name,
                mac=mac or mac_of(address),
                metadata=metadata,
                image=image,
                settings=settings,
                guest_agent=any(each.name == "qemu-ga" for each in programs),
            )
        )
        return guest

    # The network ----------------------------------------------------------------------------

    def client(
        self,
        name: str,
        address: str,
        where: Literal["bridge", "routed"] = "routed",
        *,
        address6: str | None = None,
    ) -> NetNs:
        """A client: on the guests' bridge (10.0.0.0/24), or in front of the director
        (192.0.2.0/24), which it then has as its gateway. On the bridge it reaches service
        addresses by a route to the director."""
        space = NetNs(self, name, address=address)
        bridge = "front0" if where == "routed" else "br0"
        self._add_space(space, bridge, [address, *([address6] if address6 else [])])
        return space

    def server_ns(
        self, name: str, address: str, gateway: str | None = None, *, address6: str | None = None
    ) -> ServerNs:
        """A server without libvirt on the guests' bridge; its gateway is the director's address
        unless another is named."""
        space = ServerNs(self, name, address=address)
        self._add_space(space, "br0", [address, *([address6] if address6 else [])], gateway)
        return space

    def _add_space(
        self, space: NetNs, bridge: str, addresses: Sequence[str], gateway: str | None = None
    ) -> None:
        arguments = [space.name, bridge, mac_of(addresses[0])]
        for address in addresses:
            arguments += [prefixed(address), gateway or self.gateway(bridge, address)]
            gateway = None
        self.run(["/bin/sh", str(HERE / "netns.sh"), *arguments])

    @staticmethod
    def gateway(bridge: str, address: str) -> str:
        """The director's address on a bridge, of the family of `address`."""
        return definitions.gateway(bridge, address)

    def add_vip(self, vip: str) -> None:
        """Gives the director a service address (the agent does that itself when it manages)."""
        address = ipaddress.ip_address(vip)
        if address.version == 6:
            self.run(["ip", "addr", "add", f"{vip}/128", "dev", "front0", "nodad"])
        else:
            self.run(["ip", "addr", "add", f"{vip}/32", "dev", "front0"])

    def accept_gatewaying_replies(self) -> None:
        """Lets a gatewaying server that has the director as its gateway answer through it: its
        packets have a source that is local to the director, martians by default."""
        keys = ("all.accept_local=1", "br0.accept_local=1", "all.rp_filter=0", "br0.rp_filter=0")
        self.run(["sysctl", "-q", "-w", *(f"net.ipv4.conf.{key}" for key in keys)])

    @property
    def checkout(self) -> Path:
        """The checkout, at the path it has on the machine and in the lab alike."""
        return CHECKOUT
