"""The hook script called by a real libvirtd, for LXC and QEMU guests: which calls, which ids."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.host import CHECKOUT
from tests.lab.listener import Listener
from tests.lab.uml import UmlLab

LARGE = f"<x xmlns='urn:x'>{'a' * 100_000}</x>"  # more than a pipe holds


@pytest.fixture(scope="module")
def lab(uml: UmlLab) -> UmlLab:
    for driver in ("lxc", "qemu"):
        uml.write(
            f"/etc/libvirt/hooks/{driver}.d/xenlb", (CHECKOUT / "hooks/xenlb").read_bytes(), 0o755
        )
    uml.start_libvirtd()
    return uml


@pytest.fixture
def lxc(lab: UmlLab) -> Iterator[Listener]:
    with Listener(lab, "lxc:///", hooks=True) as listener:
        yield listener


@pytest.fixture
def qemu(lab: UmlLab) -> Iterator[Listener]:
    with Listener(lab, "qemu:///system", hooks=True) as listener:
        yield listener


def test_life_of_a_container(lab: UmlLab, lxc: Listener) -> None:
    guest = lab.define_lxc_guest("box", "10.0.0.11", metadata=LARGE)
    begun = lab.time()
    guest.start()
    event = lxc.wait_for("Started", "box", after=begun)
    first = event["incarnation"]
    lxc.wait_calls(begun, "box", ("prepare", None), ("start", None), ("started", first))
    prepared = lxc.wait_for("Hook", "box", after=begun, operation="prepare")
    assert (prepared["driver"], prepared["uuid"]) == ("lxc", guest.uuid)
    print(f"\nlxc: prepare {event['t'] - prepared['t']:.3f} s before STARTED")

    guest.wait_serving()
    asked = lab.time()
    guest.shutdown()
    event = lxc.wait_for("Stopped", "box", after=asked)
    lxc.wait_calls(asked, "box", ("stopped", first), ("release", None))
    stopped = lxc.wait_for("Hook", "box", after=asked, operation="stopped")
    print(f"lxc: stopped {event['t'] - stopped['t']:.3f} s before STOPPED")

    begun = lab.time()
    guest.start()
    second = lxc.wait_for("Started", "box", after=begun)["incarnation"]
    lxc.wait_for("Hook", "box", after=begun, operation="started", domid=second)
    begun = lab.time()
    lab.restart_libvirtd()
    back = lxc.wait_for("Hook", "box", after=begun, operation="reconnect")
    lxc.wait_calls(begun, "box", ("reconnect", second))
    listed = lxc.wait(lambda e: e["event"] == "GuestsListed", "the listing", after=begun)
    assert listed["guests"]["box"] == ["running", second]
    print(f"lxc: reconnect {listed['t'] - back['t']:.3f} s before it is listed")

    # Without a listener there is no file, and none is made.
    lxc.stop()
    guest.destroy()
    guest.start()
    assert lab.run(["test", "-e", "/run/xenlb/hooks"], check=False).rc == 1
    guest.destroy()


def test_life_of_a_machine(lab: UmlLab, qemu: Listener) -> None:
    guest = lab.define_qemu_guest("machine", "10.0.0.15", metadata=LARGE)
    begun = lab.time()
    guest.virsh("start", "machine", "--paused")
    event = qemu.wait_for("Started", "machine", after=begun)
    first = event["incarnation"]
    qemu.wait_calls(begun, "machine", ("prepare", first), ("start", first), ("started", first))
    prepared = qemu.wait_for("Hook", "machine", after=begun, operation="prepare")
    assert (prepared["driver"], prepared["uuid"]) == ("qemu", guest.uuid)
    print(f"\nqemu: prepare {event['t'] - prepared['t']:.3f} s before STARTED")

    # libvirt refuses to move it to where it is, but not before it has asked the hook.
    begun = lab.time()
    moved = guest.virsh("migrate", "--live", "machine", "qemu:///system", check=False)
    assert "same host" in moved.err
    qemu.wait_for("Hook", "machine", after=begun, operation="migrate")
    qemu.wait_calls(begun, "machine", ("migrate", None))

    begun = lab.time()
    guest.virsh("save", "machine", "/var/tmp/machine.save")
    event = qemu.wait_for("Stopped", "machine", after=begun)
    qemu.wait_calls(begun, "machine", ("stopped", None), ("release", None))
    stopped = qemu.wait_for("Hook", "machine", after=begun, operation="stopped")
    print(f"qemu: stopped {event['t'] - stopped['t']:.3f} s before STOPPED")

    begun = lab.time()
    guest.virsh("restore", "/var/tmp/machine.save")
    second = qemu.wait_for("Started", "machine", after=begun)["incarnation"]
    calls = [("restore", None), ("prepare", second), ("start", second), ("started", second)]
    qemu.wait_calls(begun, "machine", *calls)
    assert guest.state() == "paused"
    guest.destroy()
