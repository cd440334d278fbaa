"""What a test may ask of a guest with the network of real guests: further addresses, a gateway of
its own or none, ssh from the host; and what is refused.

That such guests keep what their files say, with each of the programs, with systemd and sysvinit,
when the program does its work again and after a reboot, is shown with xenlb's own files beside
them in test_systems_uml.py.
"""

from __future__ import annotations

import pytest

from tests.lab.debian import ssh
from tests.lab.host import LabError
from tests.lab.uml import UmlLab
from tests.lab.uml.debian import DebianGuest

# The lab's own guests; what xenlb does with such guests is in the other files.
pytestmark = pytest.mark.soak

OWN = "10.0.0.9"


@pytest.fixture(scope="module")
def lab(uml: UmlLab) -> UmlLab:
    uml.start_libvirtd()
    return uml


def default_routes(guest: DebianGuest) -> list[str]:
    routes = guest.run("ip -4 route show default; ip -6 route show default").out
    return [line.split()[2] for line in routes.splitlines() if line.strip()]


def test_addresses_a_gateway_nginx_and_ssh(lab: UmlLab) -> None:
    guest = lab.define_debian_guest(
        "real51",
        "10.0.0.51",
        address6="fd00:10::51",
        addresses=["10.0.0.151"],
        gateway=OWN,
        network="netplan",
        web="nginx",
        ssh=True,
    )
    without = lab.define_debian_guest("real52", "10.0.0.52", network="lab", gateway="")
    guest.start()
    without.start()
    guest.wait_serving()
    # nginx waits until the network is configured; of IPv6 it is once the address is no duplicate.
    expected = [OWN, "fd00:10::1"]
    lab.wait_until(lambda: default_routes(guest) == expected, 30, "its gateways", every=0.3)
    client = lab.client("client", "10.0.0.100", "bridge", address6="fd00:10::100")
    for address in ("10.0.0.51:80", "10.0.0.151:80", "[fd00:10::51]:80"):
        assert client.burst(address, 1)["by_server"] == {"real51": 1}
    assert ssh.run(lab, guest.address, "hostname") == "real51\n"

    key = f"{guest.root}/etc/ssh/ssh_host_ed25519_key"
    lab.run(f"rm {key}*; ssh-keygen -q -t ed25519 -N '' -f {key}")
    before = guest.init_pid()
    guest.reboot()
    guest.wait_rebooted(before)
    with pytest.raises(LabError, match="REMOTE HOST IDENTIFICATION HAS CHANGED"):
        ssh.run(lab, guest.address, "true")

    without.wait_serving()
    assert default_routes(without) == []


def test_service_addresses_are_the_labs_own_networks_business(lab: UmlLab) -> None:
    with pytest.raises(LabError, match="only the network `lab` takes service addresses"):
        lab.define_debian_guest("vip", "10.0.0.65", network="ifupdown", vip="192.0.2.10")
