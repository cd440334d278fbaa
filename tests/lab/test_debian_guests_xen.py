"""A guest with a real init in the Xen lab: what it is given arrives, it can write to its xenstore,
and it stops its units in order when Xen asks it to go.

One test, because each boot costs 20 s.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.lab import orderly
from tests.lab.xen import XenLab

VIP = "192.0.2.10"
# WRITE (11) of the xenstore protocol; the answer has the same type, an error has 16.
TELL = """
import os, struct, sys
device = os.open("/dev/xen/xenbus", os.O_RDWR)
body = b"data/lab\\0told"
os.write(device, struct.pack("<4I", 11, 1, 0, len(body)) + body)
sys.exit(struct.unpack("<4I", os.read(device, 16))[0] != 11)
"""


@pytest.fixture
def lab(xen: XenLab) -> Iterator[XenLab]:
    xen.reset()
    yield xen
    xen.reset()


@pytest.mark.soak
def test_a_guest_with_systemd_lives_and_stops_in_order(lab: XenLab) -> None:
    began = time.monotonic()
    guest = lab.define_debian_guest(
        "held",
        "10.0.0.51",
        services=(80, 8080),
        vip=VIP,
        address6="fd00:10::51",
        files={**orderly.FILES, "/root/tell.py": TELL, "/etc/lab/note": b"\x00\xff"},
        units=[orderly.UNIT],
    )
    lab.start(guest)
    print(f"xen lab: a Debian guest serves after {time.monotonic() - began:.1f} s")
    client = lab.client("alice", "192.0.2.100", address6="fd00:2::100")
    for target in ("10.0.0.51:80", "10.0.0.51:8080", "[fd00:10::51]:80"):
        assert client.fetch(target) == "held"
    said = guest.run(
        "cat /proc/1/comm; hostname; systemctl is-active hold web; od -An -tx1 /etc/lab/note; "
        "cat /proc/sys/net/ipv4/conf/all/arp_ignore; ip -4 -br addr show dev lo; "
        "systemctl is-system-running"
    )
    assert said.out.split() == [
        *("systemd", "held", "active", "active", "00", "ff", "1"),
        *("lo", "UNKNOWN", "127.0.0.1/8", f"{VIP}/32", "running"),
    ]
    first = guest.domid()
    guest.run("python3 -I -S /root/tell.py")
    assert lab.out(f"xenstore-read /local/domain/{first}/data/lab").strip() == "told"

    requests = orderly.Requests(lab, guest.address)
    asked = guest.reboot()
    assert requests.last_answer() - asked.started > orderly.SERVED_SECONDS
    guest.wait_rebooted(first)
    assert orderly.stops(guest.log()) == ["hold", "web", "lab-network"]

    requests = orderly.Requests(lab, guest.address)
    asked = guest.shutdown()
    assert requests.last_answer() - asked.started > orderly.SERVED_SECONDS
    guest.wait_gone()
    log = guest.log()
    assert orderly.stops(log) == ["hold", "web", "lab-network"] * 2
    assert log.count("System halted") == 1
    print(f"xen lab: the test took {time.monotonic() - began:.1f} s")
