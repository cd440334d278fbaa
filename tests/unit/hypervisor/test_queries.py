"""What is made of libvirt's list of domains."""

import subprocess
import sys
from typing import Any, cast
from uuid import UUID

import libvirt

from xenlb.hypervisor.libvirt import queries


class Domain:
    """As libvirt-python's, of one that is off."""

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


def test_dom0_is_no_guest() -> None:
    """libxl lists it as domain 0, with a UUID of zeros."""
    found = queries.list_domains(cast(Any, Connection()), "xen:///system")
    assert [described.name for described in found] == ["mail1"]


class Closed:
    def isAlive(self) -> int:
        raise libvirt.libvirtError("invalid connection pointer in virConnectIsAlive")


def test_a_connection_that_was_closed_meanwhile_is_not_alive() -> None:
    assert not queries.is_alive(cast(Any, Closed()))


def test_what_libvirt_refuses_is_raised_and_not_printed() -> None:
    """In a process of its own: who speaks is settled for a process as a whole."""
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
