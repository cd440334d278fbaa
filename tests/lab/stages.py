"""The stages of rounds.py: each lab, from its boot to two Debian guests in service."""

from __future__ import annotations

import io
import tarfile

from tests.lab import rounds
from tests.lab.agent import LabAgent, ServiceAgent
from tests.lab.rounds import VIP, Stage
from tests.lab.uml import UmlLab
from tests.lab.uml.debian import DebianGuest
from tests.lab.xen import XenLab

ADDRESSES = ("10.0.0.11", "10.0.0.12")
NAMES = ("web1", "web2")
# Where guests of the User-mode Linux lab reach the agent: there is neither xenstore nor QEMU.
LISTEN = 'guests: {listen: "10.0.0.1:7371"}'
UNIT = "xenlb-hold.service"


def uml_stage(lab: UmlLab, method: str, *, hold: bool, scheduler: str = "rr") -> Stage:
    """With xenlb, run from the checkout."""
    lab.start_libvirtd()
    config = rounds.CONFIG.format(
        uri="lxc:///",
        guests=LISTEN,
        method=method,
        vip=VIP,
        scheduler=scheduler,
        check="interval: 1s, timeout: 900ms, fall: 10",
    )
    agent = LabAgent(lab, config)
    agent.start()
    guests = _uml_guests(lab, method)
    for guest in guests if hold else ():
        _render_into(lab, agent, guest)
    return _ready(lab, guests, agent)


def uml_stage_of_a_peer(lab: UmlLab, method: str) -> Stage:
    """Without xenlb; libvirtd runs."""
    return _ready(lab, _uml_guests(lab, method), None)


def _uml_guests(lab: UmlLab, method: str) -> tuple[DebianGuest, DebianGuest]:
    vip = VIP if method == "gatewaying" else None
    first, second = (
        lab.define_debian_guest(name, address, vip=vip)
        for name, address in zip(NAMES, ADDRESSES, strict=True)
    )
    return first, second


def _render_into(lab: UmlLab, agent: LabAgent, guest: DebianGuest) -> None:
    """What an operator does by ssh, into the guest's files."""
    wants = f"{guest.root}/etc/systemd/system/multi-user.target.wants"
    rendered = " ".join([*agent.command, "guest", "render", guest.name, "--tar"])
    lab.run(
        f"set -e; {rendered} >/run/lab/hold.tar; tar -x -C {guest.root} -f /run/lab/hold.tar;"
        f" mkdir -p {wants}; ln -sf ../{UNIT} {wants}/{UNIT}"
    )


def xen_stage(lab: XenLab, method: str, *, hold: bool) -> Stage:
    """With xenlb as the installed service. The guests' files are in memory and come with each
    boot, so the hold is rendered before the domain is defined for good."""
    config = rounds.CONFIG.format(
        uri="xen:///system",
        guests="",
        method=method,
        vip=VIP,
        scheduler="rr",
        check="interval: 5s, timeout: 4s",
    )
    agent = ServiceAgent(lab, config)
    agent.start(ready=120)
    vip = VIP if method == "gatewaying" else None
    guests = []
    for name, address in zip(NAMES, ADDRESSES, strict=True):
        guest = lab.define_debian_guest(name, address, vip=vip)
        if hold:
            lab.run(f"xenlb guest render {name} --tar >/run/lab/hold.tar")
            files = unpacked(lab.read("/run/lab/hold.tar"))
            guest = lab.define_debian_guest(name, address, vip=vip, files=files, units=[UNIT])
        guests.append(guest)
    first, second = guests
    # While Xen builds or buries a domain, the emulated Dom0 stands still for up to two seconds.
    # With two busy loops beside it on the machine's two cores, 100 requests a second filled it: it
    # stood still for 15 s. Checks are slower for the same reason.
    return _ready(lab, (first, second), agent, rate=20, timeout=30.0)


def unpacked(data: bytes) -> dict[str, bytes]:
    """The files of a tar archive: path in the guest → content. Not its links, which enable units:
    `units` of the guest does."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        members = [(member, tar.extractfile(member)) for member in tar if member.isfile()]
        return {f"/{member.name}": file.read() for member, file in members if file is not None}


def _ready(
    lab: UmlLab | XenLab,
    guests: tuple[rounds.Guest, rounds.Guest],
    agent: LabAgent | None,
    *,
    rate: int = 100,
    timeout: float = 10.0,
) -> Stage:
    def wait_serving(guest: rounds.Guest) -> None:
        if agent is not None:
            agent.wait_serving(guest.name, timeout=180)
            return
        address = ADDRESSES[NAMES.index(guest.name)]
        lab.wait_until(f"ipvsadm -Sn | grep -q 'r {address}:80 .*-w 1'", 60, f"{guest.name}")

    for guest in guests:
        guest.start()
    for guest in guests:
        guest.wait_serving(180)
        wait_serving(guest)
    return Stage(
        lab=lab,
        guests=guests,
        client=lab.client("client", "192.0.2.100"),
        agent=agent,
        wait_serving=wait_serving,
        rate=rate,
        timeout=timeout,
    )
