"""The Xen lab itself: Dom0 is what an operator has, and its guests are what a test asks for.

Their life is in test_agent_xen.py. Run with -s to see what each step took.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Literal

import pytest

from tests.lab.xen import XenLab

VIP = "192.0.2.10"


class Clock:
    """Prints what happened and how long it took; asserts nothing."""

    def __init__(self) -> None:
        self.last = time.monotonic()

    def __call__(self, what: str) -> None:
        now = time.monotonic()
        print(f"xen lab: {now - self.last:6.1f} s  {what}", flush=True)
        self.last = now


@pytest.fixture
def lab(xen: XenLab) -> Iterator[XenLab]:
    xen.reset()
    yield xen
    xen.reset()


def test_dom0_is_a_xen_host_with_libvirt_ipvs_and_systemd(lab: XenLab) -> None:
    assert "Domain-0" in lab.out([*lab.virsh(), "list"])
    assert lab.text("/sys/hypervisor/type").strip() == "xen"
    assert "control_d" in lab.text("/proc/xen/capabilities")
    assert lab.run("systemctl is-system-running", check=False).out.strip() == "running", lab.out(
        "systemctl --failed --no-pager; systemctl list-jobs --no-pager"
    )
    assert lab.out("xenstore-read domid").strip() == "0"
    assert "IP Virtual Server" in lab.out("ipvsadm -Ln")
    print(f"xen lab: booted in {lab.boot_seconds:.1f} s; {lab.out('systemd-analyze time')}")


@pytest.mark.soak
def test_settings_of_a_guest(lab: XenLab) -> None:
    clock = Clock()
    guest = lab.define_guest(
        "odd", "10.0.0.31", services=(25, 8080), address6="fd00:10::31", ignore_shutdown=True
    )
    late = lab.define_guest("late", "10.0.0.32", start_delay=6, stop_delay=5)
    client = lab.client("bob", "10.0.0.100", where="bridge", address6="fd00:10::100")
    lab.start(guest, late, serving=False)
    guest.wait_serving()
    late.wait_serving()
    clock("both serve, one of them 6 s late")
    for port in (25, 8080):
        assert client.fetch(f"10.0.0.31:{port}") == "odd"
        assert client.fetch(f"[fd00:10::31]:{port}") == "odd"
    assert "lab_ignore_shutdown=1" in guest.run("cat /run/settings").out
    asked = lab.time()
    guest.shutdown()
    late.shutdown()
    late.wait_gone()
    assert lab.time() - asked > 5
    assert guest.state() == "running"
    assert client.fetch("10.0.0.31:25") == "odd"
    clock("one shut down after its delay, the other ignored the request")


@pytest.mark.soak
@pytest.mark.parametrize("method", ["masquerade", "gatewaying", "tunnel"])
def test_ipvs_balances_to_a_guest(
    lab: XenLab, method: Literal["masquerade", "gatewaying", "tunnel"]
) -> None:
    letter = {"masquerade": "-m", "gatewaying": "-g", "tunnel": "-i"}[method]
    guest = lab.define_guest("behind", "10.0.0.41", vip=VIP, method=method)
    lab.start(guest)
    client = lab.client("carol", "192.0.2.101")
    lab.add_vip(VIP)
    lab.accept_gatewaying_replies()
    lab.run(f"ipvsadm -A -t {VIP}:80 -s lblc && ipvsadm -a -t {VIP}:80 -r {guest.address} {letter}")
    summary = client.burst(f"{VIP}:80", 5)
    assert summary["by_server"] == {guest.name: 5}, summary
