"""Guests with a real init in the User-mode Linux lab: what they are given arrives, and they stop
their units in order however they are asked to go."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.lab import orderly
from tests.lab.uml import UmlLab
from tests.lab.uml.debian import DebianGuest

# The lab's own guests; what xenlb does with such guests is in the other files.
pytestmark = pytest.mark.soak

VIP = "192.0.2.10"


@pytest.fixture(scope="module")
def plain(uml: UmlLab) -> DebianGuest:
    uml.start_libvirtd()
    guest = uml.define_debian_guest("plain", "10.0.0.52", services=(80, 8080))
    guest.start()
    return guest


@pytest.fixture(scope="module")
def held(uml: UmlLab, plain: DebianGuest) -> DebianGuest:
    guest = uml.define_debian_guest(
        "held",
        "10.0.0.51",
        vip=VIP,
        method="tunnel",
        address6="fd00:10::51",
        files={**orderly.FILES, "/etc/lab/note": b"\x00\xff"},
        units=[orderly.UNIT],
    )
    guest.start()
    return guest


@pytest.fixture(scope="module")
def old(uml: UmlLab, plain: DebianGuest) -> DebianGuest:
    return uml.define_debian_guest(
        "old", "10.0.0.53", init="sysvinit", files=orderly.SCRIPTS, units=[orderly.SCRIPT]
    )


def test_a_guest_is_what_it_was_defined_to_be(
    uml: UmlLab, plain: DebianGuest, held: DebianGuest
) -> None:
    held.wait_serving()
    plain.wait_serving()
    client = uml.client("client", "192.0.2.100", address6="fd00:2::100")
    for target, name in (
        ("10.0.0.51:80", "held"),
        ("[fd00:10::51]:80", "held"),
        ("10.0.0.52:80", "plain"),
        ("10.0.0.52:8080", "plain"),
    ):
        assert client.burst(target, 1)["by_server"] == {name: 1}
    assert held.run("cat /proc/1/comm; hostname").out.split() == ["systemd", "held"]
    assert held.run("systemctl is-active hold web").out.split() == ["active", "active"]
    assert held.run("od -An -tx1 /etc/lab/note").out.split() == ["00", "ff"]
    assert VIP in held.run("ip -4 addr show dev tunl0").out
    plain.write("/srv/a b/file", "text\n", 0o600)
    assert plain.run("cat '/srv/a b/file'; stat -c %a '/srv/a b/file'").out.split() == [
        "text",
        "600",
    ]
    for guest in (held, plain):
        assert guest.run("systemctl is-system-running").out.strip() == "running"


def test_two_guests_do_not_stop_each_others_units(plain: DebianGuest, held: DebianGuest) -> None:
    state = "systemctl show -P MainPID -P ActiveState web"
    before = held.run(state).out
    assert "active" in before
    plain.run("systemctl restart web")
    assert held.run(state).out == before


@pytest.mark.parametrize(
    "go",
    [DebianGuest.reboot, DebianGuest.power_off_inside, DebianGuest.shutdown],
    ids=["virsh reboot", "poweroff inside", "virsh shutdown"],
)
def test_units_stop_in_order(
    uml: UmlLab, held: DebianGuest, go: Callable[[DebianGuest], object]
) -> None:
    if not held.alive():
        held.start()
    held.wait_serving()
    before, earlier = held.init_pid(), len(orderly.stops(held.log()))
    requests = orderly.Requests(uml, held.address)
    asked = uml.time()
    go(held)
    assert requests.last_answer() - asked > orderly.SERVED_SECONDS
    if go is DebianGuest.reboot:
        held.wait_rebooted(before)
    else:
        held.wait_gone()
    assert orderly.stops(held.log())[earlier:] == ["hold", "web", "lab-network"]


def test_without_a_hold_the_service_cuts_what_is_in_progress(
    uml: UmlLab, plain: DebianGuest
) -> None:
    request = r"GET /slow?seconds=20 HTTP/1.0\r\n\r\n"
    client = f"exec 3<>/dev/tcp/{plain.address}/80; printf '{request}' >&3; cat <&3"
    download = uml.spawn(["bash", "-c", client])
    uml.wait_until(lambda: "plain 10." in download.log(), 20, "the download to begin")
    plain.shutdown()
    download.wait(20)
    assert download.log().count("plain 10.") < 90  # of 100
    plain.wait_gone()


def test_init_scripts_stop_in_order(uml: UmlLab, old: DebianGuest) -> None:
    old.start()
    old.wait_serving()
    requests = orderly.Requests(uml, old.address)
    asked = uml.time()
    old.shutdown()
    assert requests.last_answer() - asked > orderly.SERVED_SECONDS
    old.wait_gone()
    assert orderly.stops(old.log()) == ["hold", "web", "lab-network"]
