"""The list of domains, and errors of libvirt."""

import subprocess
import sys
from typing import Any, cast
from uuid import UUID

import libvirt

from xenlb.hypervisor.libvirt import event_loop, queries
from xenlb.hypervisor.libvirt.connections import ExclusiveConnection


class Domain:
    """A powered-off domain, as libvirt-python has it."""

    def __init__(self, name: str, number: int) -> None:
        self._name, self._uuid = name, UUID(int=number)

    def name(self) -> str:
        return self._name

    def UUIDString(self) -> str:
        return str(self._uuid)

    def ID(self) -> int:
        return -1

    def state(self, flags: int = 0) -> list[int]:
        return [5, 0]  # VIR_DOMAIN_SHUTOFF

    def metadata(self, kind: int, uri: str | None, flags: int = 0) -> str:
        return "<services/>"


class Connection:
    def listAllDomains(self, flags: int = 0) -> list[Any]:
        return [Domain("Domain-0", 0), Domain("mail1", 7)]


def test_dom0_is_not_listed_as_a_guest() -> None:
    """libxl lists it as domain 0, with a UUID of zeros."""
    domains = queries.list_domains(cast(Any, Connection()), "xen:///system")
    assert [domain.name for domain in domains] == ["mail1"]


class Closed:
    def isAlive(self) -> int:
        raise libvirt.libvirtError("invalid connection pointer in virConnectIsAlive")


def test_a_connection_closed_by_another_thread_is_not_alive() -> None:
    assert not ExclusiveConnection(cast(Any, Closed()), event_loop.Sockets()).alive


def test_an_error_of_libvirt_is_raised_and_not_printed() -> None:
    """Run in a new process: libvirt's error handler is set once for a process."""
    code = """\
import libvirt
from xenlb.hypervisor.libvirt.queries import CallFailed, libvirt_errors
try:
    with libvirt_errors():
        libvirt.open("qemu+unix:///system?socket=/no/such")
except CallFailed as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert "/no/such" in done.stdout
    assert done.stderr == ""
