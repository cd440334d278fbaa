"""What xenstore and libvirt tell of real Xen guests, event by event, and how soon.

The orders and fields asserted here are what model/guest.py builds on; times are printed (-s).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from tests.lab.listener import INSTALLED, Listener, Told
from tests.lab.xen import Guest, XenLab

# Requests whose kind was read in time, of how many.
REQUESTS = 200 if os.environ.get("XENLB_SOAK") == "1" else 15


@pytest.fixture(scope="module")
def lab(xen: XenLab) -> Iterator[XenLab]:
    xen.reset()
    yield xen
    xen.reset()


@pytest.fixture(scope="module")
def listener(lab: XenLab) -> Iterator[Listener]:
    with Listener(lab, "xen:///system") as listening:
        yield listening


@pytest.fixture(scope="module")
def guest(lab: XenLab, listener: Listener) -> Guest:
    """Runs, and serves; it reports its address."""
    made = lab.define_guest("one", "10.0.0.11")
    lab.start(made)
    return made


def have_running(lab: XenLab, guest: Guest) -> None:
    if not guest.alive():
        lab.start(guest)


def have_off(lab: XenLab, listener: Listener, guest: Guest) -> None:
    if guest.alive():
        begun = lab.time()
        guest.destroy()
        listener.wait_for("Stopped", guest.name, after=begun)
        listener.wait_for("Died", guest.name, after=begun)


def show(what: str, seconds: float) -> None:
    print(f"xen: {seconds * 1000:8.0f} ms  {what}")


def released(listener: Listener, before: Told) -> float:
    """When the last @releaseDomain before an event was heard."""
    heard = [t for t in listener.logged("@releaseDomain") if t <= before["t"] + 0.002]
    return heard[-1]


def test_start(lab: XenLab, listener: Listener, guest: Guest) -> None:
    started = listener.wait_for("Started", "one")
    assert started["incarnation"] == guest.domid()
    assert listener.names(0, "one") == ["Started"]
    found = listener.wait_for("AddressesFound", "one", after=started["t"])
    assert found["incarnation"] == started["incarnation"]
    best = listener.wait(
        lambda e: e.get("found") == [["10.0.0.11", "reported by the guest"]], "what it reports"
    )
    assert best["refused"] == []


def test_suspend_and_resume(lab: XenLab, listener: Listener, guest: Guest) -> None:
    have_running(lab, guest)
    begun = lab.time()
    guest.suspend()
    listener.wait_for("Paused", "one", after=begun, incarnation=guest.domid())
    guest.resume()
    listener.wait_for("Resumed", "one", after=begun, incarnation=guest.domid())
    assert listener.names(begun, "one") == ["Paused", "Resumed"]


def test_reboot(lab: XenLab, listener: Listener, guest: Guest) -> None:
    have_running(lab, guest)
    old, begun = guest.domid(), lab.time()
    command = guest.reboot()
    asked = listener.wait_for("Asked", "one", after=begun)
    assert (asked["ask"], asked["incarnation"]) == ("reboot", old)
    show("request seen after virsh returned", asked["t"] - command.ended)
    guest.wait_rebooted(old)
    stopped = listener.wait_for("Stopped", "one", after=begun, timeout=120)
    started = listener.wait_for("Started", "one", after=begun, incarnation=guest.domid())
    died = listener.wait_for("Died", "one", after=begun)
    assert died["incarnation"] == stopped["incarnation"] == old
    # libvirt tells the new one's start before the old one's end.
    assert asked["t"] < died["t"] < started["t"] < stopped["t"]
    assert listener.names(begun, "one") == ["Asked", "Died", "Started", "Stopped"]
    show("death (reboot) told after @releaseDomain", died["t"] - released(listener, died))
    show("death (reboot) told before STOPPED", stopped["t"] - died["t"])


def test_save_and_restore(lab: XenLab, listener: Listener, guest: Guest) -> None:
    have_running(lab, guest)
    old, begun = guest.domid(), lab.time()
    guest.save()
    asked = listener.wait_for("Asked", "one", after=begun)
    assert (asked["ask"], asked["incarnation"]) == ("suspend", old)
    stopped = listener.wait_for("Stopped", "one", after=begun)
    assert (stopped["why"], stopped["incarnation"]) == ("saved", old)
    restored = lab.time()
    guest.restore()
    started = listener.wait_for("Started", "one", after=restored)
    assert started["incarnation"] not in {None, old}
    names = [name for name in listener.names(begun, "one") if name not in {"Paused", "Resumed"}]
    assert [name for name in names if name != "Died"] == ["Asked", "Stopped", "Started"]
    guest.wait_serving()


def test_shutdown(lab: XenLab, listener: Listener, guest: Guest) -> None:
    have_running(lab, guest)
    begun = lab.time()
    old = guest.domid()
    command = guest.shutdown()
    asked = listener.wait_for("Asked", "one", after=begun)
    assert (asked["ask"], asked["incarnation"]) == ("poweroff", old)
    show("request seen after virsh returned", asked["t"] - command.ended)
    died = listener.wait_for("Died", "one", after=begun, incarnation=old)
    stopped = listener.wait_for("Stopped", "one", after=begun, timeout=120)
    assert (stopped["why"], stopped["incarnation"]) == ("shutdown", old)
    assert listener.names(begun, "one") == ["Asked", "Died", "Stopped"]
    show("death (shutdown) told after @releaseDomain", died["t"] - released(listener, died))
    show("death (shutdown) told before STOPPED", stopped["t"] - died["t"])


@pytest.mark.parametrize(
    ("end", "why"), [("crash", "crashed"), ("poweroff", "shutdown"), ("xl destroy", "")]
)
def test_end_that_nobody_asked_for(
    lab: XenLab, listener: Listener, guest: Guest, end: str, why: str
) -> None:
    have_running(lab, guest)
    begun = lab.time()
    old = guest.domid()
    match end:
        case "crash":
            guest.crash()
        case "poweroff":  # by somebody inside; the connection hangs when the guest has gone
            lab.spawn(["/usr/lib/lab/guest-sh", guest.address, "busybox poweroff -f"])
        case _:
            lab.run(["xl", "destroy", str(old)])
    died = listener.wait_for("Died", "one", after=begun, incarnation=old)
    stopped = listener.wait_for("Stopped", "one", after=begun, timeout=120)
    assert stopped["incarnation"] == old
    assert why in {"", stopped["why"]}
    names = listener.names(begun, "one")
    # What xl destroys is gone at once for libvirt, too: the two come together.
    assert names == ["Died", "Stopped"] or (end == "xl destroy" and sorted(names) == names[::-1])
    show(f"death ({end}) told after @releaseDomain", died["t"] - released(listener, died))
    show(f"death ({end}) told before STOPPED", stopped["t"] - died["t"])
    guest.wait_gone()


def test_started_paused_then_destroyed(lab: XenLab, listener: Listener, guest: Guest) -> None:
    have_off(lab, listener, guest)
    begun = lab.time()
    guest.start(paused=True)
    started = listener.wait_for("Started", "one", after=begun)
    listener.wait_for("Paused", "one", after=begun, incarnation=started["incarnation"])
    guest.resume()
    listener.wait_for("Resumed", "one", after=begun, incarnation=started["incarnation"])
    destroyed = lab.time()
    guest.destroy()
    died = listener.wait_for("Died", "one", after=destroyed)
    stopped = listener.wait_for("Stopped", "one", after=destroyed)
    assert stopped["why"] == "destroyed"
    assert listener.names(destroyed, "one") in (["Died", "Stopped"], ["Stopped", "Died"])
    show("death (virsh destroy) told before STOPPED", stopped["t"] - died["t"])


def test_no_request_is_lost(lab: XenLab, listener: Listener) -> None:
    """The guest's kernel takes each word within milliseconds; some while we hold still."""
    guest = lab.define_guest("deaf", "10.0.0.12", ignore_shutdown=True)
    lab.start(guest)
    domid = guest.domid()
    path = f"/local/domain/{domid}/control/shutdown"
    begun = lab.time()
    for number in range(REQUESTS):
        if number % 5 == 4:
            listener.stall()
        written = lab.run(["xenstore-write", path, "poweroff"])
        listener.wait_for("Asked", "deaf", after=written.started, timeout=30)
        lab.wait_until(f'[ -z "$(xenstore-read {path})" ]', 30, "the guest to take it")
        time.sleep(1.1)
    asked = listener.since(begun, "deaf")
    assert len(asked) == REQUESTS
    assert {event["incarnation"] for event in asked} == {domid}
    kinds = [event["ask"] for event in asked]
    assert set(kinds) <= {"poweroff", "powerdown"}
    stalled = kinds[4::5]
    free = [kind for number, kind in enumerate(kinds) if number % 5 != 4]
    print(
        f"xen: kind of request read in time: {free.count('poweroff')} of {len(free)},"
        f" while the loop was held {stalled.count('poweroff')} of {len(stalled)}; lost 0"
    )
    guest.destroy()


def test_xenbus_device_works_as_the_socket_does(lab: XenLab, listener: Listener) -> None:
    """The kernel's device, where xenstored has no socket here."""
    program = (
        "import asyncio\n"
        "from xenlb.hypervisor.xenstore_client import XenstoreClient\n"
        "async def main():\n"
        "    seen = []\n"
        "    client = XenstoreClient(lambda path, token: seen.append((path, token)))\n"
        "    client.connect('/dev/xen/xenbus')\n"
        "    await client.watch('@introduceDomain', 'i')\n"
        "    await client.watch('/local/domain/0/name', 'n')\n"
        "    names = await asyncio.gather(*(client.read('/local/domain/0/name') for _ in 'abc'))\n"
        "    print(names)\n"
        "    print(await client.introduced(0), await client.read('/no/such'))\n"
        "    print(sorted(seen))\n"
        "    client.close()\n"
        "asyncio.run(main())\n"
    )
    said = lab.out([INSTALLED, "-c", program]).splitlines()
    assert said == [
        "['Domain-0', 'Domain-0', 'Domain-0']",
        "True None",
        "[('/local/domain/0/name', 'n'), ('@introduceDomain', 'i')]",
    ]
