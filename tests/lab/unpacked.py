"""Programs of Debian packages that are not installed on this machine, only unpacked in the cache.

Installing them would start a daemon here, or replace one. Their libraries are in apt-packages.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.lab.host import LabError, cache_directory

KEPT = 7 * 86_400.0  # seconds that a tree nobody uses stays


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
        _fetch([package], Path(work))
        found = Path(work) / "root" / path.lstrip("/")
        if not found.exists():  # since Debian 13 no package has files in /sbin
            found = Path(work) / "root/usr" / path.lstrip("/")
        found.rename(wanted)
        _need_libraries(name, wanted)
    for old in directory.glob(f"{name}-*"):
        if old != wanted:
            old.unlink()
    return wanted


def tree(name: str, packages: Sequence[str]) -> Path:
    """A directory that the packages, their libraries named too, are unpacked in together."""
    policy = subprocess.run(
        ["apt-cache", "policy", *packages], capture_output=True, text=True, check=False
    )
    versions = " ".join([*packages, *re.findall(r"Candidate: (\S+)", policy.stdout)])
    directory = cache_directory() / name
    directory.mkdir(parents=True, exist_ok=True)
    wanted = directory / hashlib.sha256(versions.encode()).hexdigest()[:12]
    if not wanted.exists():
        with tempfile.TemporaryDirectory(dir=directory) as work:
            _fetch(packages, Path(work))
            (Path(work) / "root").rename(wanted)
    os.utime(wanted)
    for other in directory.iterdir():  # another checkout may be using its own
        if other.stat().st_mtime < time.time() - KEPT:
            shutil.rmtree(other)
    return wanted


def _need_libraries(name: str, path: Path) -> None:
    if shutil.which("ldd") is None:
        return
    linked = subprocess.run(["ldd", path], capture_output=True, text=True, check=False).stdout
    lacking = [line.split()[0] for line in linked.splitlines() if "not found" in line]
    if lacking:
        raise LabError(f"{name} lacks {', '.join(lacking)} (make deps)")


def _fetch(packages: Sequence[str], work: Path) -> None:
    command = ["apt-get", "-q", "download", *packages]
    done = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False)
    fetched = list(work.glob("*.deb"))
    if len(fetched) < len(packages):
        names = ", ".join(packages)
        raise LabError(f"{names} cannot be fetched (try apt-get update):\n{done.stderr}")
    for each in fetched:
        subprocess.run(["dpkg-deb", "-x", each, work / "root"], check=True)
