"""A guest for guest.sh: a root of its own, a network of its own, and the programs that it has."""

import os
import re
import shutil
import subprocess
import threading
import time
import tty
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import xenlb.guestside.render
from tests.lab.unpacked import program
from tests.unit.director.netns import sh
from tests.unit.guestside.shells import SHELLS, SYSTEM, Said

SCRIPT = Path(xenlb.guestside.render.__file__).parent / "templates" / "guest.sh"
PLAIN = ("sleep", "sed", "grep", "cat", "dd", "od", "rm", "mkdir", "mv", "tr")
LEGACY = tuple(
    f"{name}-legacy{form}" for name in ("iptables", "ip6tables") for form in ("", "-restore")
)
# What of packet filters a guest has.
FILTERS: dict[str, tuple[str, ...]] = {
    "nft": ("nft",),
    "iptables": ("iptables", "iptables-restore", "ip6tables", "ip6tables-restore"),
    "iptables-legacy": LEGACY,
}
FETCHED = {"nft": ("nftables", "/usr/sbin/nft"), "ethtool": ("ethtool", "/sbin/ethtool")}


@cache
def tool(name: str) -> str:
    """Where this machine has it, or where it was unpacked. Raises LabError."""
    found = shutil.which(name, path=SYSTEM)
    return found or str(program(*FETCHED[name]))


def network() -> None:
    """As a guest has it whose network is up: eth0 with an address of each family. Without those
    that the kernel gives itself, seconds later."""
    sh("""
        ip link set lo up
        ip link add eth0 type veth peer name wire
        ip link set eth0 addrgenmode none
        ip link set wire addrgenmode none
        ip link set wire up
        ip link set eth0 up
        ip addr add 10.0.0.11/24 dev eth0
        ip addr add fd00:10::11/64 dev eth0 nodad
    """)
    # The carrier of a pair comes a moment later.
    while sh("ip -br link show").count(" UP ") < 2:
        time.sleep(0.01)


def picture() -> str:
    """All that guest.sh may change, as iproute2 and the packet filters tell it."""
    commands = (
        "ip addr show",
        *(f"ip -{v} {what}" for v in "46" for what in ("rule show", "route show table all")),
        "iptables-legacy -t mangle -S",
        "ip6tables-legacy -t mangle -S",
        f"{tool('nft')} list ruleset",
    )
    text = re.sub(r"packets \d+ bytes \d+", "", "".join(sh(each) for each in commands))
    for path in sorted(Path("/proc/sys/net/ipv4/conf").glob("*/*")):
        if path.name != "flush":
            text += f"{path}: {path.read_text()}"
    return text


class Guest:
    def __init__(self, folder: Path, shell: str = "dash", tools: Sequence[str] = ("ip",)) -> None:
        self.root = folder
        for below in ("etc", "run", "bin"):
            (folder / below).mkdir(parents=True)
        for name in (*PLAIN, *tools):
            (folder / "bin" / name).symlink_to(tool(name))
        self.conf = folder / "etc/xenlb-guest.conf"
        self.argv = [*SHELLS[shell], str(SCRIPT)]

    def settings(self, *lines: str) -> None:
        self.conf.write_text("".join(f"{each}\n" for each in ("xenlb 1", *lines)))

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [*self.argv, *arguments],
            env={
                "PATH": str(self.root / "bin"),
                "XENLB_GUEST_ROOT": str(self.root),
                "XENLB_GUEST_EVERY": "0.3",
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, given: str = "") -> Said:
        process = self.start(*arguments)
        out, errors = process.communicate(given, timeout=60)
        lines = [each.removeprefix("xenlb-guest: ") for each in out.splitlines()]
        return Said(process.returncode, lines, errors)


class Xenstored:
    """The other end of a xenbus device: a terminal in raw mode, which passes bytes as they are.
    `values`: what it has; `asked`: what was read and written, in order."""

    READ, WRITE, ERROR = 2, 11, 16

    def __init__(self, guest: Guest, values: dict[str, str]) -> None:
        self.values = values
        self.asked: list[str] = []
        self.ours, self.theirs = os.openpty()
        tty.setraw(self.theirs)
        device = guest.root / "dev/xen/xenbus"
        device.parent.mkdir(parents=True)
        device.symlink_to(os.ttyname(self.theirs))
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            header = self._read(16)
            kind, zero, none, length = (
                int.from_bytes(header[n : n + 4], "little") for n in (0, 4, 8, 12)
            )
            assert (zero, none) == (0, 0)
            if kind == 0:
                return
            body = self._read(length)
            kind, answer = self._answer(kind, body.decode())
            os.write(
                self.ours, b"".join(n.to_bytes(4, "little") for n in (kind, 0, 0, len(answer)))
            )
            os.write(self.ours, answer)

    def _answer(self, kind: int, body: str) -> tuple[int, bytes]:
        path, _, value = body.partition("\0")
        if kind == self.WRITE:
            self.asked.append(f"{path} = {value}")
            self.values[path] = value
            return kind, b"OK\0"
        self.asked.append(path)
        if path not in self.values:
            return self.ERROR, b"ENOENT\0"
        return kind, self.values[path].encode()

    def _read(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            data += os.read(self.ours, length - len(data))
        return data

    def close(self) -> None:
        os.write(self.theirs, bytes(16))
        self._thread.join(10)
        os.close(self.ours)
        os.close(self.theirs)
