"""Where the real kernel has no IPVS, no scheduler, or says no: what a person reads then."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.ipvsadm.parse import parse_op
from xenlb.ipvs.errors import IpvsError, explain
from xenlb.ipvs.kernel import Kernel
from xenlb.ipvs.op import AddServer, AddService, DeleteService, OpFailed
from xenlb.ipvs.table import Forwarding

LOADER = Path("/proc/sys/kernel/modprobe")


def loaded() -> list[str]:
    modules = [line.split()[0] for line in Path("/proc/modules").read_text().splitlines()]
    return [name for name in modules if name.startswith("ip_vs_")]


@pytest.fixture
def no_loader() -> Iterator[None]:
    """The kernel may load no module."""
    program = LOADER.read_text()
    LOADER.write_text("/bin/false\n")
    yield
    LOADER.write_text(program)


def refused(line: str) -> OpFailed:
    with Kernel() as kernel:
        [failed] = kernel.apply([parse_op(line)])
    return failed


def test_no_ipvs_in_the_kernel(no_loader: None) -> None:
    subprocess.run(["/sbin/rmmod", *loaded(), "ip_vs"], check=True)
    with Kernel() as kernel:
        for _ in range(2):
            with pytest.raises(IpvsError) as caught:
                kernel.read()
            assert caught.value.message == "the kernel has no IPVS: the module ip_vs is not loaded"
            assert caught.value.hint == "load it with: modprobe ip_vs"
        subprocess.run(["/sbin/modprobe", "ip_vs"], check=True)
        # The same object goes on once the cure was applied.
        assert not kernel.read().table.entries


def test_the_kernel_loads_ipvs_itself() -> None:
    subprocess.run(["/sbin/rmmod", *loaded(), "ip_vs"], check=True)
    with Kernel() as kernel:
        assert not kernel.read().table.entries


def test_no_scheduler_in_the_kernel(no_loader: None) -> None:
    with Kernel() as kernel:
        kernel.read()
    if "ip_vs_lblcr" in loaded():
        subprocess.run(["/sbin/rmmod", "ip_vs_lblcr"], check=True)
    said = explain(refused("-A -t 192.0.2.10:25 -s lblcr"))
    assert said.message == (
        "the kernel has no scheduler «lblcr»: the module ip_vs_lblcr is not loaded"
    )
    assert said.hint == "load it with: modprobe ip_vs_lblcr"


def test_servers_of_the_other_family() -> None:
    service = parse_op("-A -t [2001:db8::10]:25")
    tunnel = parse_op("-a -t [2001:db8::10]:25 -r 10.0.0.11:25 -i")
    assert isinstance(service, AddService)
    assert isinstance(tunnel, AddServer)
    gatewaying = replace(tunnel.server, forwarding=Forwarding.GATEWAYING, tunnel=None)
    with Kernel() as kernel:
        [failed] = kernel.apply([service, replace(tunnel, server=gatewaying)])
        assert kernel.apply([DeleteService(key=service.service.key)]) == ()
    said = explain(failed)
    assert "other address family" in said.message
    assert "tunnel" in said.hint


UNPRIVILEGED = """
from xenlb.ipvs.errors import IpvsError
from xenlb.ipvs.kernel import Kernel
from xenlb.ipvs.op import AddService
from xenlb.ipvs.table import Family, MarkKey, Service
add = AddService(service=Service(key=MarkKey(family=Family.INET, mark=1), prefix=32))
for attempt in (lambda: Kernel().read(), lambda: Kernel().apply([add])):
    try:
        attempt()
    except IpvsError as error:
        print(error)
"""


def test_not_permitted() -> None:
    with Kernel() as kernel:
        kernel.read()
    done = subprocess.run(
        [sys.executable, "-c", UNPRIVILEGED],
        user=65534,
        group=65534,
        extra_groups=[],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == 2 * [
        "changing or reading the IPVS table is not permitted to this process "
        "(run it as root, or give it the capability CAP_NET_ADMIN)"
    ]
