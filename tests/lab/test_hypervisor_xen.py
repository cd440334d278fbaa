"""How xenstore is read in a real Dom0: without losing a request, and by the kernel's device, too.

What xenstore and libvirt tell of each step of a guest's life is in test_agent_xen.py.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.lab.listener import INSTALLED, Listener
from tests.lab.xen import XenLab

REQUESTS = 200  # to one guest, one after another


@pytest.fixture(scope="module")
def lab(xen: XenLab) -> Iterator[XenLab]:
    xen.reset()
    yield xen
    xen.reset()


@pytest.fixture(scope="module")
def listener(lab: XenLab) -> Iterator[Listener]:
    with Listener(lab, "xen:///system") as listening:
        yield listening


@pytest.mark.soak
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
        listener.wait_for("ShutdownRequested", "deaf", after=written.started, timeout=30)
        lab.wait_until(f'[ -z "$(xenstore-read {path})" ]', 30, "the guest to take it")
        time.sleep(1.1)
    asked = listener.since(begun, "deaf")
    assert len(asked) == REQUESTS
    assert {event["incarnation"] for event in asked} == {domid}
    kinds = [event["kind"] for event in asked]
    assert set(kinds) <= {"poweroff", "powerdown"}
    stalled = kinds[4::5]
    free = [kind for number, kind in enumerate(kinds) if number % 5 != 4]
    print(
        f"xen: kind of request read in time: {free.count('poweroff')} of {len(free)},"
        f" while the loop was held {stalled.count('poweroff')} of {len(stalled)}; lost 0"
    )
    guest.destroy()


def test_xenbus_device_works_as_the_socket_does(lab: XenLab) -> None:
    """The kernel's device, where xenstored has no socket here."""
    program = (
        "import asyncio\n"
        "from xenlb.hypervisor.xenstore.client import XenstoreClient\n"
        "async def main():\n"
        "    seen = []\n"
        "    client = XenstoreClient(lambda path, token: seen.append((path, token)))\n"
        "    client.connect('/dev/xen/xenbus')\n"
        "    await client.watch('@introduceDomain', 'i')\n"
        "    await client.watch('/local/domain/0/name', 'n')\n"
        "    names = await asyncio.gather(*(client.read('/local/domain/0/name') for _ in 'abc'))\n"
        "    print(names)\n"
        "    print(await client.is_introduced(0), await client.read('/no/such'))\n"
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
