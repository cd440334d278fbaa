"""Guests that get their addresses from the programs real guests have: they have what their files
say and nothing else, keep it when the program does its work again, and ssh reaches them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

import pytest

from tests.lab.debian import ssh
from tests.lab.debian.definition import Init, Network
from tests.lab.host import LabError
from tests.lab.netns import NetNs
from tests.lab.uml import UmlLab
from tests.lab.uml.debian import DebianGuest

# How an administrator has each program configure eth0 anew.
AGAIN: Final[Mapping[Network, str]] = {
    "ifupdown": "ifdown eth0 && ifup eth0",
    "networkd": "networkctl reconfigure eth0",
    # Not `netplan apply`: it asks udev to look again, which needs a /sys that can be written.
    "netplan": "netplan generate && networkctl reload && networkctl reconfigure eth0",
    "network-manager": "nmcli --wait 20 connection up eth0",
}


def addresses(guest: DebianGuest) -> set[str]:
    """Of eth0, but for the link-local one and those that may yet turn out to be duplicates."""
    # sysvinit starts the shell after all scripts.
    said = guest.run("ip -json addr show dev eth0", check=False)
    links = json.loads(said.out) if said.rc == 0 else []
    return {
        f"{each['local']}/{each['prefixlen']}"
        for link in links
        for each in link.get("addr_info", [])
        if each["scope"] == "global" and not each.get("tentative")
    }


def default_routes(guest: DebianGuest) -> set[str]:
    routes = guest.run("ip -4 route show default; ip -6 route show default").out
    return {line.split()[2] for line in routes.splitlines() if line.strip()}


@pytest.fixture(scope="module")
def lab(uml: UmlLab) -> UmlLab:
    uml.start_libvirtd()
    return uml


@pytest.fixture(scope="module")
def client(lab: UmlLab) -> NetNs:
    return lab.client("client", "192.0.2.100", address6="fd00:2::100")


@pytest.mark.parametrize(
    ("host", "network", "init"),
    [
        (51, "ifupdown", "systemd"),
        (52, "networkd", "systemd"),
        (53, "netplan", "systemd"),
        (54, "network-manager", "systemd"),
        (55, "ifupdown", "sysvinit"),
    ],
)
def test_a_guest_keeps_the_network_of_its_own_files(
    lab: UmlLab, client: NetNs, host: int, network: Network, init: Init
) -> None:
    name = f"real{host}"
    first, second = f"10.0.0.{host}", f"10.0.0.1{host}"
    first6 = f"fd00:10::{host}"
    guest = lab.define_debian_guest(
        name,
        first,
        address6=first6,
        addresses=[second],
        network=network,
        init=init,
        web="nginx" if network == "netplan" else "server",
        ssh=True,
    )
    expected = {f"{first}/24", f"{second}/24", f"{first6}/64"}

    def check() -> None:
        guest.wait_serving()
        # nginx waits until the network is configured; the others are there as soon as they run.
        lab.wait_until(lambda: addresses(guest) == expected, 30, "the addresses", every=0.3)
        lab.wait_until(
            lambda: default_routes(guest) == {"10.0.0.1", "fd00:10::1"}, 30, "the routes", every=0.3
        )
        for address in (f"{second}:80", f"[{first6}]:80"):
            assert client.burst(address, 1)["by_server"] == {name: 1}
        assert ssh.run(lab, guest.address, "hostname") == f"{name}\n"

    guest.start()
    try:
        check()
        ssh.run(
            lab,
            guest.address,
            f"{AGAIN[network]} >/root/again 2>&1 </dev/null; echo $? >>/root/again",
        )
        assert guest.run("tail -n 1 /root/again").out.split() == ["0"]
        check()
        before = guest.init_pid()
        guest.reboot()
        guest.wait_rebooted(before)
        check()
        assert guest.run("cat /root/again").out
        if init == "systemd":
            assert guest.run("systemctl is-system-running --wait").out.strip() == "running"
    finally:
        guest.destroy()


@pytest.mark.parametrize(
    ("host", "network", "gateway"), [(61, "lab", ""), (62, "networkd", "10.0.0.9")]
)
def test_a_gateway_of_its_own_or_none(
    lab: UmlLab, host: int, network: Network, gateway: str
) -> None:
    guest = lab.define_debian_guest(
        f"own{host}", f"10.0.0.{host}", network=network, gateway=gateway
    )
    guest.start()
    guest.wait_serving()
    expected = {gateway} if gateway else set()
    lab.wait_until(lambda: default_routes(guest) == expected, 20, "its gateway")
    guest.destroy()


def test_ssh_refuses_a_guest_with_another_host_key(lab: UmlLab) -> None:
    guest = lab.define_debian_guest("other", "10.0.0.64", ssh=True)
    key = f"{guest.root}/etc/ssh/ssh_host_ed25519_key"
    lab.run(f"rm {key}*; ssh-keygen -q -t ed25519 -N '' -f {key}")
    guest.start()
    guest.wait_serving()
    with pytest.raises(LabError, match="REMOTE HOST IDENTIFICATION HAS CHANGED"):
        ssh.run(lab, guest.address, "true")
    guest.destroy()


def test_service_addresses_are_the_labs_own_networks_business(lab: UmlLab) -> None:
    with pytest.raises(LabError, match="only the network `lab` takes service addresses"):
        lab.define_debian_guest("vip", "10.0.0.65", network="ifupdown", vip="192.0.2.10")
