"""Guests whose network is what real guests have for it: with the files that xenlb makes for it they
come up as they need to be, and their programs keep it so."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from ipaddress import ip_address
from itertools import pairwise
from pathlib import Path
from typing import Final

import pytest

from tests.lab.debian.definition import Network
from tests.lab.host import LabError
from tests.lab.uml import UmlLab
from tests.lab.uml.debian import DebianGuest
from xenlb.guestside.install.operations import GuestFile, GuestSymlink
from xenlb.guestside.render.facts import Facts, NetworkLink
from xenlb.guestside.render.systems import apply_commands, guest_files, needs_guest_script
from xenlb.guestside.requirements.compile import ServiceBinding, compile_needs
from xenlb.guestside.requirements.needs import Needs
from xenlb.ipvs.table import Family, Forwarding, family_of
from xenlb.model.guest_side import GuestSide, Init, ReturnPath, System
from xenlb.model.settings import Port, ServiceSettings

GATEWAYS = {Family.INET: ip_address("10.0.0.1"), Family.INET6: ip_address("fd00:10::1")}
# How an administrator has each program configure eth0 anew.
AGAIN: Final[Mapping[Network, str]] = {
    "ifupdown": "ifdown eth0 && ifup eth0",
    "networkd": "networkctl reconfigure eth0",
    # Not `netplan apply`: it asks udev to look again, which needs a /sys that can be written.
    "netplan": "netplan generate && networkctl reload && networkctl reconfigure eth0",
    "network-manager": "nmcli --wait 20 connection up eth0",
}
ON_LO, ON_LO_6, ON_TUNNEL = "192.0.2.10", "2001:db8::10", "192.0.2.20"
# In a container systemd does not apply sysctl.d. Where nothing but these files is to be shown, it
# does so nevertheless: what may be written of /proc/sys there is what the services need.
APPLIES = "[Unit]\nConditionPathIsReadWrite=\n"
# Programs whose words count, and those that are a complaint.
SPEAKERS = ("ifup", "systemd-networkd", "netplan", "NetworkManager", "nm-dispatcher", "sh")
COMPLAINTS = re.compile(r"RTNETLINK|error|invalid|ignoring|unknown|cannot|fail|warn", re.I)
# Said with or without our files: of what a container may not do, and of tunnels, which in this
# kernel have no settings of IPv6. And where NetworkManager and guest.sh set the same address at the
# same time, one of them comes second.
USUAL = re.compile(
    r"tunl0: .*(IPv6|ignoring)|/run/network/ifstate|Read-only file system"
    r"|xenlb-guest: failed: address .*: File exists"
)


def place(
    vip: str, own: str, forwarding: Forwarding, side: GuestSide | None = None
) -> ServiceBinding:
    service = ServiceSettings(
        name="mail",
        address=ip_address(vip),
        family=family_of(ip_address(vip)),
        ports=(Port(number=25),),
        forwarding=forwarding,
    )
    return ServiceBinding(
        service=service,
        side=side or GuestSide(),
        address=ip_address(own),
        gateways=GATEWAYS,
    )


def needs_of(host: int, *, tunnel: bool, clamps: bool) -> Needs:
    """Of a server in three services: gatewaying, a tunnel, and masquerading whose replies are
    routed by the source address; IPv6, too."""
    rule = GuestSide(return_path=ReturnPath.RULE)
    first, second, second6 = f"10.0.0.{host}", f"10.0.0.1{host}", f"fd00:10::1{host}"
    places = [
        place(ON_LO, first, Forwarding.GATEWAYING),
        place(ON_LO_6, first, Forwarding.GATEWAYING),
        place("192.0.2.30", second, Forwarding.MASQUERADE, rule),
        place("2001:db8::30", second6, Forwarding.MASQUERADE, rule),
    ]
    if tunnel:
        places.append(place(ON_TUNNEL, first, Forwarding.TUNNEL))
    needs = compile_needs(places)
    return needs if clamps else replace(needs, clamps=())


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    host: int
    network: Network
    system: System
    tunnel: bool = True
    clamps: bool = False
    script: bool = False  # is guest.sh among the files?
    network_file: str | None = None
    init: Init = Init.SYSTEMD

    @property
    def facts(self) -> Facts:
        return Facts(links=(NetworkLink(interface="eth0", network_file=self.network_file),))

    @property
    def needs(self) -> Needs:
        return needs_of(self.host, tunnel=self.tunnel, clamps=self.clamps)


CASES = (
    Case(host=51, network="ifupdown", system=System.IFUPDOWN),
    Case(host=52, network="networkd", system=System.NETWORKD, network_file="20-eth0.network"),
    Case(
        host=53,
        network="netplan",
        system=System.NETPLAN,
        tunnel=False,
        network_file="10-netplan-eth0.network",
    ),
    Case(host=54, network="network-manager", system=System.NETWORK_MANAGER, script=True),
    Case(
        host=55,
        network="ifupdown",
        system=System.IFUPDOWN,
        init=Init.SYSVINIT,
        clamps=True,
        script=True,
    ),
)


def put(guest: DebianGuest, files: Sequence[GuestFile | GuestSymlink]) -> None:
    for file in files:
        target = f"{guest.root}/{file.path}"
        match file:
            case GuestFile(text=text, mode=mode, block=False):
                guest.lab.write(target, text, mode)
            case GuestSymlink(target=to):
                folder = str(Path(target).parent)
                guest.lab.run(
                    ["sh", "-ec", 'mkdir -p "$1"; ln -sf "$2" "$3"', "sh", folder, to, target]
                )
            case _:
                raise AssertionError(f"{file.path}: these systems need no part of a file")


def addresses(guest: DebianGuest, device: str) -> set[str]:
    """All but link-local ones; a tentative one is none."""
    done = guest.run(f"ip -json addr show dev {device} 2>/dev/null", check=False)
    (link,) = json.loads(done.out or "[{}]") or [{}]
    return {
        f"{each['local']}/{each['prefixlen']}"
        for each in link.get("addr_info", ())
        if each["scope"] != "link" and not each.get("tentative")
    }


def state(guest: DebianGuest, needs: Needs) -> dict[str, object]:
    """What is true in the guest, in the words of `wanted`."""
    devices = ["lo", "eth0", *(tunnel.name for tunnel in needs.tunnels)]
    found: dict[str, object] = {device: addresses(guest, device) for device in devices}
    for version in (4, 6):
        rules = guest.run(f"ip -{version} rule show").out.splitlines()
        routes = guest.run(f"ip -{version} route show table all").out.splitlines()
        found[f"rules {version}"] = {
            " ".join(line.split()).removesuffix(" proto static")
            for line in rules
            if line.strip() and line.split(":")[0] not in {"0", "32766", "32767"}
        }
        words = [line.split() for line in routes if line.startswith("default")]
        found[f"defaults {version}"] = {
            (each[2], each[4], each[each.index("table") + 1] if "table" in each else "main")
            for each in words
        }
    values = guest.run(" ; ".join(f"cat /proc/sys/{each.name}" for each in needs.sysctls))
    names = [each.name for each in needs.sysctls]
    found["sysctls"] = dict(zip(names, map(int, values.out.split()), strict=True))
    return found


def wanted(case: Case) -> dict[str, object]:
    host, needs = case.host, case.needs
    found: dict[str, object] = {
        "lo": {"127.0.0.1/8", "::1/128", f"{ON_LO}/32", f"{ON_LO_6}/128"},
        "eth0": {
            *(f"10.0.0.{host}/24", f"10.0.0.1{host}/24"),
            *(f"fd00:10::{host}/64", f"fd00:10::1{host}/64"),
        },
        "rules 4": {f"731: from 10.0.0.1{host} lookup 731"},
        "rules 6": {f"731: from fd00:10::1{host} lookup 731"},
        "defaults 4": {("10.0.0.1", "eth0", "main"), ("10.0.0.1", "eth0", "731")},
        "defaults 6": {("fd00:10::1", "eth0", "main"), ("fd00:10::1", "eth0", "731")},
        "sysctls": {each.name: each.value for each in needs.sysctls},
    }
    if case.tunnel:
        found["tunl0"] = {f"{ON_TUNNEL}/32"}
    return found


@contextmanager
def nothing_lost(guest: DebianGuest) -> Iterator[None]:
    """No address goes, and no default route of eth0, not even for a moment."""
    guest.run(
        "ip monitor address route >/root/monitor 2>&1 </dev/null & echo $! >/root/monitor.pid"
    )
    yield
    guest.run("sleep 1; kill $(cat /root/monitor.pid)")
    lost = [
        line
        for line in guest.run("cat /root/monitor").out.splitlines()
        if line.startswith("Deleted") and "fe80:" not in line and "ff00:" not in line
    ]
    assert lost == []


@pytest.fixture(scope="module")
def lab(uml: UmlLab) -> UmlLab:
    uml.start_libvirtd()
    return uml


def started(lab: UmlLab, case: Case) -> DebianGuest:
    needs, host = case.needs, case.host
    guest = lab.define_debian_guest(
        f"side{host}",
        f"10.0.0.{host}",
        address6=f"fd00:10::{host}",
        addresses=[f"10.0.0.1{host}", f"fd00:10::1{host}"],
        network=case.network,
        init=case.init.value,
        files={}
        if case.script
        else {"/etc/systemd/system/systemd-sysctl.service.d/lab.conf": APPLIES},
    )
    put(guest, guest_files(needs, system=case.system, init=case.init, facts=case.facts))
    guest.start()
    return guest


@pytest.fixture(scope="module")
def guests(lab: UmlLab) -> dict[Case, DebianGuest]:
    """Those that were started ahead."""
    return {}


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.network}-{case.init}")
def test_a_guest_is_what_its_services_need(
    lab: UmlLab, guests: dict[Case, DebianGuest], case: Case
) -> None:
    needs = case.needs
    assert needs_guest_script(needs, system=case.system, facts=case.facts) == case.script
    guest = guests[case] if case in guests else started(lab, case)
    expected = wanted(case)

    def check(when: str) -> None:
        guest.wait_serving()
        found: dict[str, object] = {}

        def right() -> bool:
            nonlocal found
            found = state(guest, needs)
            return found == expected

        try:
            lab.wait_until(right, 30, when, every=1)
        except LabError:
            assert found == expected, f"{when}\n{guest.log()[-6000:]}"

    try:
        check("after a start")
        with nothing_lost(guest):
            for line in (
                apply_commands(needs, system=case.system, init=case.init, facts=case.facts) * 2
            ):
                guest.run(line)
        again = f"{{ {AGAIN[case.network]}; }} >/root/again 2>&1 </dev/null; echo $? >/root/status"
        # The way to the guest's shell goes by eth0.
        guest.run(f"setsid sh -c '{again}' </dev/null >/dev/null 2>&1 &")
        lab.wait_until(
            lambda: guest.run("cat /root/status", check=False).rc == 0, 60, again, every=1
        )
        assert guest.run("cat /root/status").out.split() == ["0"], guest.run("cat /root/again").out
        check("after its program has done it again")
        before = guest.init_pid()
        guest.reboot()
        # Most of a boot is waiting: the next guest has its own meanwhile.
        if (ahead := dict(pairwise(CASES)).get(case)) is not None:
            guests[ahead] = started(lab, ahead)
        guest.wait_rebooted(before)
        check("after a reboot")
        if case.init is Init.SYSTEMD:
            assert guest.run("systemctl is-system-running --wait").out.strip() == "running"
        else:
            status = guest.run("/etc/init.d/xenlb-guest status").out
            assert status.strip() == "xenlb-guest: all is in place"
        assert complaints(guest) == [], "\n".join(complaints(guest))
    finally:
        guest.destroy()


def complaints(guest: DebianGuest) -> list[str]:
    """Lines of its journal: month, day, time, host, program[process]: what it says."""
    found = []
    for line in guest.log().splitlines():
        speaker, _, said = " ".join(line.split()[4:]).partition(": ")
        wrong = COMPLAINTS.search(said) and not USUAL.search(said)
        if speaker.partition("[")[0] in SPEAKERS and wrong:
            found.append(line)
    return found
