"""The Debian releases that the labs' images can be made from, and what differs between them.

XENLB_DEBIAN names one (`make … DEBIAN=trixie`). Without it the labs have the machine's own release
where it is one of these, else Debian 12.
"""

from __future__ import annotations

import dataclasses
import os
import platform

from tests.lab.host import LabError


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    codename: str
    number: int
    python: str  # the version of /usr/bin/python3
    xen: str  # in the names of Xen's packages

    def __str__(self) -> str:
        return f"Debian {self.number} ({self.codename})"


BOOKWORM = Release(codename="bookworm", number=12, python="3.11", xen="4.17")
TRIXIE = Release(codename="trixie", number=13, python="3.13", xen="4.20")
RELEASES = {release.codename: release for release in (BOOKWORM, TRIXIE)}


def of_machine() -> Release | None:
    """The release of the machine that runs the tests; None for any other system."""
    try:
        system = platform.freedesktop_os_release()
    except OSError:
        return None
    return RELEASES.get(system.get("VERSION_CODENAME", "")) if system["ID"] == "debian" else None


def default() -> Release:
    """The release of the labs' images where a test names none."""
    named = os.environ.get("XENLB_DEBIAN")
    if not named:
        return of_machine() or BOOKWORM
    if named not in RELEASES:
        raise LabError(f"XENLB_DEBIAN={named}: the labs know {', '.join(RELEASES)}")
    return RELEASES[named]


def other() -> Release:
    """The release that `default` is not."""
    return TRIXIE if default() is BOOKWORM else BOOKWORM
