"""The second disk of the Xen lab: the code under test, as a tar archive that Dom0 unpacks to /.

Made at each boot, so that a change in the checkout needs no new image. It carries what
`make install DESTDIR=…` installs (chroot_install.py, for a Dom0 of another release than the
machine's), and the tests' own programs (execd, traffic) in /usr/lib/lab.
"""

from __future__ import annotations

import os
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

from tests.lab.debian import releases
from tests.lab.debian.releases import Release
from tests.lab.host import CHECKOUT, LabError, last_lines, venv_directory
from tests.lab.xen import chroot_install

LAB = Path(__file__).resolve().parents[1]
PROGRAMS = (LAB / "execd.py", LAB / "guest-sh", LAB / "traffic.py")


def installed(
    target: Path, progress: Callable[[str], None], *, release: Release, userland: Path
) -> Path:
    """What `make install` puts on a Dom0 of that release, in the folder `target`."""
    progress("Xen lab: make install, for Dom0 …")
    if release is not releases.of_machine():
        chroot_install.installed(release, userland, target, progress)
        return target
    result = subprocess.run(
        ["make", "-C", str(CHECKOUT), "install", f"DESTDIR={target}", "PREFIX=/usr/local"],
        env={**os.environ, "VENV": str(venv_directory())},
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode != 0:
        raise LabError(
            f"`make install DESTDIR={target}` failed with status {result.returncode}:\n"
            f"{last_lines(result.stdout + result.stderr, 30)}"
        )
    return target


def write(archive: Path, *, payload: Path | None) -> None:
    """Writes the disk; everything in it belongs to root, as after a real installation."""
    with tarfile.open(archive, "w", format=tarfile.GNU_FORMAT) as file:
        for program in PROGRAMS:
            file.add(program, f"usr/lib/lab/{program.name}", filter=_as_root)
        if payload:
            # The top folder itself stays out: its mode would become that of Dom0's /.
            for path in sorted(payload.iterdir()):
                file.add(path, path.name, filter=_as_root)
    # A disk has whole sectors; tar's own blocks see to that, and to the end mark.
    assert archive.stat().st_size % 512 == 0


def _as_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return member
