"""What a real libvirtd tells of LXC and QEMU guests, event by event.

The orders and fields asserted here are what model/guest.py builds on.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

import pytest

from tests.lab.host import LabError
from tests.lab.listener import Listener, Told
from tests.lab.uml import UmlLab
from tests.lab.uml.guests import LxcGuest

MAIL = "<services><service name='mail' weight='2' address='10.0.0.11'/></services>"


@pytest.fixture(scope="module")
def lab(uml: UmlLab) -> UmlLab:
    uml.start_libvirtd()
    return uml


@pytest.fixture(scope="module")
def lxc(lab: UmlLab) -> Iterator[Listener]:
    with Listener(lab, "lxc:///") as listener:
        yield listener


@pytest.fixture(scope="module")
def qemu(lab: UmlLab) -> Iterator[Listener]:
    with Listener(lab, "qemu:///system") as listener:
        yield listener


def test_life_of_a_container(lab: UmlLab, lxc: Listener) -> None:
    guest = lab.define_lxc_guest("box", "10.0.0.11", stop_delay=1)
    changed_to = ["MetadataService(name='mail', weight=2, address=IPv4Address('10.0.0.11'))"]
    begun = lab.time()
    guest.start()
    started = lxc.wait_for("Started", "box", after=begun)
    first = started["incarnation"]
    found = lxc.wait_for("AddressesFound", "box", after=begun)
    assert found["candidates"] == [["10.0.0.11", "interface xml"]]
    assert found["incarnation"] == first
    guest.wait_serving()

    guest.suspend()
    lxc.wait_for("Paused", "box", incarnation=first)
    guest.resume()
    lxc.wait_for("Resumed", "box", incarnation=first)

    guest.set_metadata(MAIL)
    changed = lxc.wait(lambda e: e.get("services"), "the service", after=begun)
    assert changed["services"] == changed_to
    assert changed["problems"] == []

    # Nothing tells of the request; STOPPED comes when init has ended, without an id.
    asked = lab.time()
    guest.shutdown()
    stopped = lxc.wait_for("Stopped", "box", after=asked)
    assert (stopped["reason"], stopped["incarnation"]) == ("shutdown", None)
    assert stopped["t"] - asked > 1
    assert lxc.names(asked, "box") == ["Stopped"]

    again = lab.time()
    guest.start()
    restarted = lxc.wait_for("Started", "box", after=again)
    assert restarted["incarnation"] not in {None, first}
    assert restarted["metadata"] == changed_to
    guest.wait_serving()
    guest.destroy()
    assert lxc.wait_for("Stopped", "box", after=again)["reason"] == "destroyed"
    assert lxc.names(begun, "box") == [
        *("Started", "Paused", "Resumed", "Stopped"),
        *("Started", "Stopped"),
    ]


def test_libvirtd_restarts_under_churn(lab: UmlLab, lxc: Listener) -> None:
    guests = [lab.define_lxc_guest(f"churn{n}", f"10.0.0.{20 + n}") for n in range(2)]
    for number in range(4):
        begun = lab.time()
        guests[number % 2].start()
        lab.restart_libvirtd(number=(signal.SIGKILL, signal.SIGTERM)[number % 2])
        lxc.wait(lambda e: e["event"] == "Disconnected", "the loss", after=begun)
        if guests[(number + 1) % 2].alive():
            guests[(number + 1) % 2].destroy()
        listed = lxc.wait(lambda e: e["event"] == "GuestsListed", "the listing", after=begun)
        # What the listing and the events after it say is what is.
        for guest in guests:
            _agree(lab, lxc, guest, listed)
    lost = [e for e in lxc.told if e["event"] == "Disconnected"]
    assert len(lost) == 4
    for guest in guests:
        if guest.alive():
            guest.destroy()


def _agree(lab: UmlLab, listener: Listener, guest: LxcGuest, listed: Told) -> None:
    """Waits until a listing and the events since say of a guest what is so."""

    def same() -> bool:
        return _power(listener, guest.name, listed["guests"][guest.name][0], listed["t"]) == (
            guest.alive()
        )

    lab.wait_until(same, 30, f"the truth about {guest.name}")


def _power(listener: Listener, guest: str, listed: str, moment: float) -> bool:
    """Does it run, by a listing and the events since?"""
    runs = listed == "running"
    for event in listener.since(moment, guest):
        runs = {"Started": True, "Stopped": False}.get(event["event"], runs)
    return runs


def test_life_of_a_machine(lab: UmlLab, qemu: Listener) -> None:
    guest = lab.define_qemu_guest("machine", "10.0.0.15")
    begun = lab.time()
    guest.start()
    first = qemu.wait_for("Started", "machine", after=begun)["incarnation"]
    guest.wait_serving(120)

    # Nobody has written its address down; it is found once the host has talked to it.
    assert not [e for e in qemu.told if e["event"] == "AddressesFound"]
    assert _answers(lab, "10.0.0.15")
    found = qemu.wait_for("AddressesFound", "machine", after=begun)
    assert found["candidates"] == [["10.0.0.15", "neighbour table"]]

    # A reboot: asked for, gone and back in the same domain. No Died, no Stopped.
    asked = lab.time()
    reboot = guest.reboot()
    powerdown = qemu.wait_for("ShutdownRequested", "machine", after=asked)
    assert (powerdown["kind"], powerdown["incarnation"]) == ("powerdown", first)
    qemu.wait_for("Rebooted", "machine", after=asked, incarnation=first)
    lab.run(["rm", "-f", guest.log_path])
    print(f"qemu: POWERDOWN told {(powerdown['t'] - reboot.ended) * 1000:.0f} ms after virsh")

    lab.wait_until(
        lambda: _answers(lab, "10.0.0.15"),
        120,
        "the machine to be back",
        every=1,
    )
    assert set(qemu.names(asked, "machine")) == {"ShutdownRequested", "Rebooted"}
    assert qemu.names(asked, "machine")[0] == "ShutdownRequested"

    # It may still be deaf to its power button: asked again until it goes.
    asked = lab.time()
    while guest.alive():
        guest.shutdown()
        with contextlib.suppress(LabError):
            guest.wait_gone(10)
        assert lab.time() - asked < 120
    died = qemu.wait_for("Died", "machine", after=asked, incarnation=first)
    stopped = qemu.wait_for("Stopped", "machine", after=asked, reason="shutdown")
    names = qemu.names(asked, "machine")
    assert names[0] == "ShutdownRequested"
    assert names[-2:] == ["Died", "Stopped"]
    print(f"qemu: death told {(stopped['t'] - died['t']) * 1000:.0f} ms before STOPPED")


def _answers(lab: UmlLab, address: str) -> bool:
    connect = f"import socket; socket.create_connection(({address!r}, 80), 2)"
    return lab.run(["python3", "-c", connect], check=False).rc == 0


def test_machine_that_is_killed(lab: UmlLab, qemu: Listener) -> None:
    guest = lab.define_qemu_guest("victim", "10.0.0.16")
    begun = lab.time()
    guest.start()
    first = qemu.wait_for("Started", "victim", after=begun)["incarnation"]
    lab.run("kill -9 $(cat /run/libvirt/qemu/victim.pid)")
    stopped = qemu.wait_for("Stopped", "victim", after=begun)
    assert (stopped["reason"], stopped["incarnation"]) == ("failed", first)
    guest.start()
    second = qemu.wait_for("Started", "victim", after=stopped["t"])["incarnation"]
    assert second != first
    guest.destroy()
    assert qemu.wait_for("Stopped", "victim", after=stopped["t"])["reason"] == "destroyed"
