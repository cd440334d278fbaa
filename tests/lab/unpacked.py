"""Programs of Debian packages that are not installed on this machine, only unpacked in the cache.

Installing them would start a daemon here, or replace one. Their libraries are in apt-packages.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.lab.host import LabError, cache_directory


def program(package: str, path: str) -> Path:
    """The program that the package has at `path`, from the cache or fetched.

    Raises LabError, also where the program lacks a library.
    """
    name = Path(path).name
    directory = cache_directory() / name
    directory.mkdir(parents=True, exist_ok=True)
    policy = subprocess.run(
        ["apt-cache", "policy", package], capture_output=True, text=True, check=False
    )
    candidate = re.search(r"Candidate: (\S+)", policy.stdout)
    wanted = directory / f"{name}-{candidate[1] if candidate else 'unknown'}"
    if wanted.exists():
        _need_libraries(name, wanted)
        return wanted
    with tempfile.TemporaryDirectory(dir=directory) as work:
        _fetch(package, Path(work))
        (Path(work) / "root" / path.lstrip("/")).rename(wanted)
        _need_libraries(name, wanted)
    for old in directory.glob(f"{name}-*"):
        if old != wanted:
            old.unlink()
    return wanted


def _need_libraries(name: str, path: Path) -> None:
    if shutil.which("ldd") is None:
        return
    linked = subprocess.run(["ldd", path], capture_output=True, text=True, check=False).stdout
    lacking = [line.split()[0] for line in linked.splitlines() if "not found" in line]
    if lacking:
        raise LabError(f"{name} lacks {', '.join(lacking)} (make deps)")


def _fetch(package: str, work: Path) -> None:
    command = ["apt-get", "-q", "download", package]
    done = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False)
    packages = list(work.glob("*.deb"))
    if not packages:
        raise LabError(f"{package} cannot be fetched (try apt-get update):\n{done.stderr}")
    subprocess.run(["dpkg-deb", "-x", packages[0], work / "root"], check=True)
