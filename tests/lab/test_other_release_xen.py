"""The agent on a Dom0 of the other Debian release: 13 where the labs run 12, and the reverse.

A smoke of a guest's life: it joins, fails its check and returns, is drained, and is shut down under
load. `make soak DEBIAN=trixie` runs all Xen tests on that release. The lab is a second one, with
its own image; the tests are one story and run in this order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.lab.agent import ServiceAgent
from tests.lab.netns import NetNs
from tests.lab.timings import Observer
from tests.lab.watched import parsed
from tests.lab.xen import Guest, XenLab

VIP = "192.0.2.10"
CONFIG = f"""\
libvirt: {{uris: ["xen:///system"], keepalive: 3m}}
director: {{interface: front0}}
services:
  web:
    address: {VIP}
    ports: [80]
    scheduler: rr
    forwarding: masquerade
    check: {{type: http, path: /health, interval: 4s, timeout: 3s, rise: 1, fall: 3}}
    servers: [{{guest: "web*"}}]
"""


@dataclass
class Dom0:
    lab: XenLab
    agent: ServiceAgent
    observer: Observer
    client: NetNs
    stays: Guest  # serves from the first test to the last
    goes: Guest

    def kernel(self) -> dict[str, int]:
        """Weights by address of the servers, as ipvsadm prints them."""
        servers = parsed(self.agent.table()).get(f"-t {VIP}:80", {})
        return {place.removesuffix(":80"): weight for place, (_, weight) in servers.items()}

    def phase(self, guest: Guest) -> str:
        (service,) = self.observer.status()["services"]
        (found,) = (each["phase"] for each in service["servers"] if each["guest"] == guest.name)
        return str(found)


@pytest.fixture(scope="module")
def dom0(other_release_xen: XenLab) -> Iterator[Dom0]:
    lab = other_release_xen
    stays, goes = (lab.define_guest(f"web{n}", f"10.0.0.1{n}") for n in (1, 2))
    observer = Observer(lab)
    observer.start()
    agent = ServiceAgent(lab, CONFIG)
    agent.start(ready=120)
    client = lab.client("client", "192.0.2.100")
    yield Dom0(lab, agent, observer, client, stays, goes)
    observer.stop()


def test_dom0_is_of_the_other_release(dom0: Dom0) -> None:
    release = dom0.lab.release
    assert f"VERSION_CODENAME={release.codename}\n" in dom0.lab.text("/etc/os-release")
    assert f"xen_version            : {release.xen}." in dom0.lab.out("xl info")
    assert dom0.lab.text("/usr/local/sbin/xenlb").count(f"python{release.python}") == 1
    failed = dom0.lab.out("systemctl list-units --state=failed --no-legend --plain")
    assert failed == ""
    versions = dom0.lab.out("uname -r; virsh -V | head -n 1; ipvsadm --version; python3 --version")
    print(f"\n{release}, up in {dom0.lab.boot_seconds:.0f} s:\n{versions}")


def test_guests_join_when_they_serve(dom0: Dom0) -> None:
    mark = dom0.observer.mark()
    guests = (dom0.stays, dom0.goes)
    dom0.lab.start(*guests, serving=False)
    for guest in guests:
        started = dom0.observer.wait_note(mark, "guest-started", guest=guest.name)
        added = dom0.observer.wait_change(mark, guest.address, "add", 1)
        assert started.at < added.at
        assert dom0.phase(guest) == "serving"
    assert dom0.kernel() == {guest.address: 1 for guest in guests}
    assert {dom0.client.fetch(f"{VIP}:80") for _ in range(4)} == {guest.name for guest in guests}


def test_a_server_that_fails_its_check_leaves_and_returns(dom0: Dom0) -> None:
    mark = dom0.observer.mark()
    dom0.goes.set_sick(True)
    dom0.observer.wait_change(mark, dom0.goes.address, "del")
    assert dom0.phase(dom0.goes) == "failed"
    assert dom0.kernel() == {dom0.stays.address: 1}
    dom0.goes.set_sick(False)
    dom0.observer.wait_change(mark, dom0.goes.address, "add", 1)
    assert dom0.phase(dom0.goes) == "serving"


def test_drain_and_undrain(dom0: Dom0) -> None:
    mark = dom0.observer.mark()
    dom0.agent.xenlb("drain", dom0.goes.name, "--timeout", "60s")
    dom0.observer.wait_change(mark, dom0.goes.address, "edit", 0)
    assert dom0.kernel() == {dom0.stays.address: 1, dom0.goes.address: 0}
    dom0.agent.xenlb("undrain", dom0.goes.name)
    dom0.observer.wait_change(mark, dom0.goes.address, "edit", 1)


def test_a_shutdown_drains_at_the_request_and_removes_at_the_death(dom0: Dom0) -> None:
    load = dom0.client.load(f"{VIP}:80", rate=5, timeout=30)
    mark = dom0.observer.mark()
    with dom0.goes.staying():
        asked = dom0.goes.shutdown()
        quiet = dom0.observer.wait_change(mark, dom0.goes.address, "edit", 0)
        assert dom0.phase(dom0.goes) == "draining"
    gone = dom0.observer.wait_change(mark, dom0.goes.address, "del")
    stopped = dom0.observer.wait_note(mark, "guest-stopped", "shutdown", guest=dom0.goes.name)
    summary = load.stop()
    assert summary["failures"] == []
    assert summary["sent"] > 0
    assert [seen.data["op"] for seen in dom0.observer.changes(mark, dom0.goes.address)] == [
        "edit",
        "del",
    ]
    assert dom0.kernel() == {dom0.stays.address: 1}
    assert dom0.phase(dom0.goes) == "absent"
    after = quiet.at - dom0.observer.started(asked)
    print(f"\nweight 0 came {after * 1000:.0f} ms after the command began; removed")
    print(f"{stopped.at - gone.at:.1f} s before libvirt's event; {summary['sent']} requests")
