"""The User-mode Linux lab itself: what other tests take for granted."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.host import CHECKOUT, LabError, venv_directory
from tests.lab.netns import NetNs
from tests.lab.uml import ServerNs, UmlLab

VIP, VIP6 = "192.0.2.10", "fd00:2::10"


@pytest.fixture(scope="module")
def servers(uml: UmlLab) -> list[ServerNs]:
    made = [
        uml.server_ns(f"server{number}", f"10.0.0.{number}", address6=f"fd00:10::{number}")
        for number in (21, 22)
    ]
    for server in made:
        server.serve("0.0.0.0:80", "[::]:80", udp=("0.0.0.0:53",))
    uml.add_vip(VIP)
    uml.add_vip(VIP6)
    return made


@pytest.fixture(scope="module")
def client(uml: UmlLab) -> NetNs:
    return uml.client("client", "192.0.2.100", "routed", address6="fd00:2::100")


@pytest.fixture
def table(uml: UmlLab) -> Iterator[None]:
    yield
    uml.run(["ipvsadm", "-C"])


def test_nothing_written_inside_reaches_the_machine(uml: UmlLab, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    seen.write_text("from the machine")
    assert uml.text(str(seen)) == "from the machine"
    paths = [str(seen), str(tmp_path / "new"), str(CHECKOUT / "new"), "/etc/xenlb/new"]
    for path in [*paths, "/etc/libvirt/new", "/var/lib/libvirt/new", "/run/new", "/usr/new"]:
        uml.write(path, "from the lab")
        assert uml.text(path) == "from the lab"
    assert seen.read_text() == "from the machine"
    assert not [path for path in paths[1:] if Path(path).exists()]
    assert not Path("/run/new").exists()
    uml.run(["rm", *paths[1:], "/run/new", "/usr/new"])


def test_big_messages_pass_both_ways(uml: UmlLab) -> None:
    data = os.urandom(300_000)
    uml.write("/run/lab/big", data)
    assert uml.read("/run/lab/big") == data
    assert uml.out(["head", "-c", "3000000", "/dev/zero"]) == "\0" * 3_000_000
    assert uml.run("true").rc == 0


def test_the_agents_python_runs_inside(uml: UmlLab) -> None:
    python = str(venv_directory() / "bin/python")
    script = "import libvirt, xenlb; print(xenlb.__file__)"
    assert uml.out([python, "-c", script], timeout=120).startswith(str(CHECKOUT))


def test_schedulers_load_by_themselves(uml: UmlLab, table: None) -> None:
    names = "rr wrr lc wlc fo ovf lblc lblcr dh sh mh sed nq"
    uml.run(
        f"port=1; for s in {names}; do ipvsadm -A -t {VIP}:$port -s $s || exit; "
        "port=$((port+1)); done"
    )
    assert uml.out("ipvsadm -Sn").count("-A -t") == len(names.split())


def spread(client: NetNs, target: str, **options: bool) -> dict[str, int]:
    summary = client.burst(target, 10, **options)
    assert summary["failures"] == []
    return dict(summary["by_server"])


@pytest.mark.soak
def test_masquerade(uml: UmlLab, servers: list[ServerNs], client: NetNs, table: None) -> None:
    uml.run(
        f"ipvsadm -A -t {VIP}:80 -s rr; ipvsadm -A -u {VIP}:53 -s rr; "
        f"ipvsadm -A -t [{VIP6}]:80 -s rr"
    )
    for server in servers:
        uml.run(f"ipvsadm -a -t {VIP}:80 -r {server.address}:80 -m")
        uml.run(f"ipvsadm -a -u {VIP}:53 -r {server.address}:53 -m")
        six = server.address.replace("10.0.0.", "fd00:10::")
        uml.run(f"ipvsadm -a -t [{VIP6}]:80 -r [{six}]:80 -m")
    even = {"server21": 5, "server22": 5}
    assert spread(client, f"{VIP}:80") == even
    assert spread(client, f"{VIP}:53", udp=True) == even
    assert spread(client, f"[{VIP6}]:80") == even


@pytest.mark.soak
@pytest.mark.parametrize("forwarding", ["gatewaying", "tunnel"])
@pytest.mark.parametrize("where", ["bridge", "routed"])
def test_direct_replies(uml: UmlLab, table: None, forwarding: str, where: str) -> None:
    vip = "192.0.2.11"
    uml.add_vip(vip)
    uml.run(f"ipvsadm -A -t {vip}:80 -s rr")
    flag = {"gatewaying": "-g", "tunnel": "-i"}[forwarding]
    if forwarding == "tunnel":
        uml.run(["modprobe", "ipip"])
    if where == "routed":
        uml.accept_gatewaying_replies()
    spaces: list[NetNs] = []
    try:
        for number in (31, 32):
            server = uml.server_ns(f"server{number}", f"10.0.0.{number}")
            spaces.append(server)
            server.add_vip(vip, forwarding="tunnel" if forwarding == "tunnel" else "gatewaying")
            server.serve("0.0.0.0:80")
            uml.run(f"ipvsadm -a -t {vip}:80 -r {server.address} {flag}")
        address = {"bridge": "10.0.0.101", "routed": "192.0.2.101"}[where]
        client = uml.client("direct", address, "bridge" if where == "bridge" else "routed")
        spaces.append(client)
        assert spread(client, f"{vip}:80") == {"server31": 5, "server32": 5}
    finally:
        for space in spaces:
            space.delete()
        uml.run(["ip", "addr", "del", f"{vip}/32", "dev", "front0"])


def test_a_container_lives_and_ends(uml: UmlLab, client: NetNs) -> None:
    uml.start_libvirtd()
    guest = uml.define_lxc_guest("web1", "10.0.0.11", address6="fd00:10::11", stop_delay=4)
    guest.start()
    assert guest.state() == "running"
    guest.wait_serving()
    assert client.fetch("10.0.0.11:80") == client.fetch("[fd00:10::11]:80") == "web1"
    guest.suspend()
    assert guest.state() == "paused"
    with pytest.raises(AssertionError, match="timeout"):
        client.fetch("10.0.0.11:80", timeout=0.5)
    guest.resume()
    assert client.fetch("10.0.0.11:80") == "web1"
    began = uml.time()
    guest.shutdown()
    assert guest.alive()  # libvirt has asked; init takes its time
    guest.wait_gone()
    assert uml.time() - began >= 4
    assert "asked to stop" in guest.log()


@pytest.mark.soak
def test_a_container_may_start_late_and_ignore_a_shutdown(uml: UmlLab, client: NetNs) -> None:
    guest = uml.define_lxc_guest("deaf", "10.0.0.12", start_delay=4, ignore_shutdown=True)
    guest.start()
    with pytest.raises(AssertionError, match="connect"):
        client.fetch("10.0.0.12:80", timeout=0.5)
    guest.wait_serving()
    guest.shutdown()
    uml.wait_until(lambda: "ignoring it" in guest.log(), 10, "the guest to hear of it")
    assert client.fetch("10.0.0.12:80") == "deaf"
    guest.destroy()
    assert not guest.alive()


@pytest.mark.soak
def test_guests_survive_libvirtd(uml: UmlLab, client: NetNs) -> None:
    guest = uml.define_lxc_guest("web2", "10.0.0.13", metadata="<x xmlns='urn:xenlb:1'/>")
    guest.start()
    guest.wait_serving()
    for number in (signal.SIGTERM, signal.SIGKILL):
        uml.restart_libvirtd(number=number)
        assert guest.state() == "running"
        assert client.fetch("10.0.0.13:80") == "web2"
    assert "urn:xenlb:1" in guest.virsh("dumpxml", "web2").out
    assert uml.run([*uml.virsh("qemu:///system"), "uri"]).out.strip() == "qemu:///system"


@pytest.mark.soak
def test_an_emulated_guest_tells_of_its_power_button(uml: UmlLab, client: NetNs) -> None:
    guest = uml.define_qemu_guest("machine", "10.0.0.15")
    command = [*uml.virsh("qemu:///system"), "qemu-monitor-event", "machine", "--loop"]
    guest.start()
    guest.wait_serving()
    assert client.fetch("10.0.0.15:80") == "machine"
    events = uml.spawn(command, log="/run/lab/monitor.log")
    time.sleep(1)  # virsh does not say when it listens
    guest.shutdown()
    guest.wait_gone()
    assert "asked to stop" in guest.log()
    assert "event POWERDOWN" in events.log()
    events.kill()


def test_capture_holds_what_explains_a_failure(uml: UmlLab, tmp_path: Path) -> None:
    uml.capture(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert {"console.txt", "dmesg.txt", "ipvsadm.txt", "network.txt"} <= names
    assert "10.0.0.1/24" in (tmp_path / "network.txt").read_text()
    assert any("libvirtd.log" in name for name in names)
    assert any("guest-" in name for name in names)


@contextlib.contextmanager
def second_lab() -> Iterator[UmlLab]:
    with UmlLab("second", memory="256M") as lab:
        yield lab


@pytest.mark.soak
def test_two_labs_at_a_time(uml: UmlLab) -> None:
    with second_lab() as other:
        assert other.out("ip netns add only-here; ip netns") == "only-here\n"
        assert "only-here" not in uml.out("ip netns")


def test_a_dead_kernel_is_told(uml: UmlLab) -> None:
    with (
        second_lab() as other,
        pytest.raises(LabError, match=r"(?s)second.*sysrq.*Kernel panic.*sysrq"),
    ):
        other.run("echo c > /proc/sysrq-trigger", timeout=5)


def test_a_killed_pytest_leaves_nothing(uml: UmlLab) -> None:
    script = (
        "import sys, time\nfrom tests.lab.uml import UmlLab\n"
        "lab = UmlLab('orphan', memory='256M')\nlab.boot()\n"
        "print(lab.supervisor_pid, flush=True)\ntime.sleep(60)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", script], cwd=CHECKOUT, stdout=subprocess.PIPE)
    assert child.stdout
    supervisor = int(child.stdout.readline())
    below = descendants(supervisor)
    assert len(below) > 2
    directory = Path(Path(f"/proc/{supervisor}/cmdline").read_text().split("\0")[2])
    assert (directory / "console").exists()
    child.kill()
    child.communicate()
    until = time.monotonic() + 10
    while left := [pid for pid in [supervisor, *below] if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < until, f"still there: {left}"
        time.sleep(0.05)
    assert not directory.exists()


def descendants(pid: int) -> list[int]:
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, path.read_text().split()):
            found += [child, *descendants(child)]
    return found
