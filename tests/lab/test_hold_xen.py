"""The hold in a real Xen guest: Dom0 reads its word in xenstore, and it waits for its client."""

from __future__ import annotations

import base64
import time
from ipaddress import ip_address
from pathlib import Path
from uuid import UUID

from tests.lab.xen import XenLab
from xenlb.guestside.files import HOLD_SCRIPT, hold_files
from xenlb.guestside.hold import Tell, compile_hold
from xenlb.model.settings import DrainPolicy, Port, ServiceSettings
from xenlb.model.side import Init

HOLD = f"/{HOLD_SCRIPT}"
DOWNLOAD = """
exec 3<>/dev/tcp/10.0.0.11/80
printf 'GET /slow?seconds=12 HTTP/1.0\\r\\n\\r\\n' >&3
while read -r line <&3; do last=$line; done
echo "$last"
"""


def test_the_host_reads_it_and_the_guest_waits(xen: XenLab, tmp_path: Path) -> None:
    xen.reset()
    guest = xen.define_guest("h1", "10.0.0.11")
    xen.start(guest)
    service = ServiceSettings(
        name="web",
        address=ip_address("192.0.2.10"),
        ports=(Port(number=80),),
        drain=DrainPolicy(timeout=60),
    )
    hold = compile_hold([service], UUID(guest.uuid), tell=Tell.XENSTORE)
    for file in hold_files(hold, Init.SYSVINIT, overrides=tmp_path):
        packed = base64.b64encode(file.text.encode()).decode()
        guest.run(f"mkdir -p $(dirname /{file.path}); echo {packed} | base64 -d >/{file.path}")
    word = f"xenstore-read /local/domain/{guest.domid()}/data/xenlb"

    said = guest.run(f"sh {HOLD} start").out
    assert "this guest serves, the host knows (xenstore)" in said
    assert xen.out(word).strip() == "staying"

    client = xen.client("c1", "10.0.0.100", "bridge")
    log = "/run/lab/download.log"
    download = client.spawn(["/bin/bash", "-c", DOWNLOAD], log=log)
    xen.wait_until(
        lambda: "; 1 connections" in guest.run(f"sh {HOLD} status", check=False).out,
        30,
        "the guest to see its client",
    )
    began = time.monotonic()
    guest.run(f"sh {HOLD} stop >/run/said 2>&1 &")
    xen.wait_until(lambda: xen.out(word).strip() == "leaving", 20, "Dom0 to read it")
    print(f"\nleaving, as Dom0 reads it, after {time.monotonic() - began:.1f} s")
    assert download.alive(), "it waits while the client is served"
    assert "empty" not in guest.run("cat /run/said").out
    download.wait(60)
    xen.wait_until(lambda: "empty after" in guest.run("cat /run/said").out, 30, "its end")
    print(guest.run("cat /run/said").out)
    assert xen.text(log).strip(), "the client got its last line"
