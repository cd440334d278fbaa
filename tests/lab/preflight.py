"""What this machine must have before a lab boots: one sentence and its cure for each thing missing.

Shared by the demonstration, the tests and the benchmarks: every lab calls `require` in `boot`.
`look` asks the machine, `problems` compares what was found with what a lab needs. What only
User-mode Linux needs is in uml/tracing.py.
"""

from __future__ import annotations

import functools
import platform
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.lab.host import LabError, cache_directory

MIB = 1 << 20
LIMITS = ("memory.max", "memory/memory.limit_in_bytes")  # of a container, cgroup v2 and v1


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What one lab needs."""

    lab: str  # "The Xen lab"
    missing_packages: tuple[str, ...]  # Debian packages that this machine lacks
    memory_mib: int
    cache_mib: int  # in the cache directory, for the images that are not built yet
    temporary_mib: int  # in the directory of temporary files
    lacking: tuple[str, ...] = ()  # what the lab has found missing itself, each with its cure


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What was found on a machine."""

    architecture: str
    memory_mib: int  # available without swapping, inside this container's limit
    cache: Path
    cache_mib: int  # free
    temporary: Path
    temporary_mib: int  # free


def problems(needs: Needs, machine: Machine) -> list[str]:
    """One sentence for each reason why the lab cannot run there, with what to do."""
    found = [*needs.lacking]
    if machine.architecture != "x86_64":
        found.append(f"It runs on x86_64 only; this machine is {machine.architecture}.")
    if needs.missing_packages:
        packages = " ".join(needs.missing_packages)
        found.append(f"Debian packages are missing: apt-get install {packages}")
    if machine.memory_mib < needs.memory_mib:
        found.append(
            f"It needs {needs.memory_mib} MiB of memory, and {machine.memory_mib} MiB are "
            "available: end other programs, or use a machine with more."
        )
    for directory, free, needed, variable in (
        (machine.cache, machine.cache_mib, needs.cache_mib, "XENLB_CACHE"),
        (machine.temporary, machine.temporary_mib, needs.temporary_mib, "TMPDIR"),
    ):
        if free < needed:
            found.append(
                f"It needs {needed} MiB of disk in {directory}, and {free} MiB are free: "
                f"remove files there, or set {variable} to a folder on another disk."
            )
    return found


def look() -> Machine:
    """Asks this machine."""
    cache, temporary = cache_directory(), Path(tempfile.gettempdir())
    return Machine(
        architecture=platform.machine(),
        memory_mib=_available_memory() // MIB,
        cache=cache,
        cache_mib=_free(cache) // MIB,
        temporary=temporary,
        temporary_mib=_free(temporary) // MIB,
    )


@functools.cache
def require(needs: Needs) -> None:
    """Raises LabError with all problems; a machine that was good once is not asked again."""
    if found := problems(needs, look()):
        raise LabError("\n  ".join([f"{needs.lab} cannot run here.", *found]))


# Of this machine --------------------------------------------------------------------------


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _available_memory() -> int:
    available = re.search(r"MemAvailable:\s+(\d+) kB", _read("/proc/meminfo"))
    amounts = [int(available[1]) * 1024] if available else []
    # The limit alone: what is in use of it counts the page cache, too.
    limits = (_read(f"/sys/fs/cgroup/{name}").strip() for name in LIMITS)
    amounts.extend(int(limit) for limit in limits if limit.isdigit())
    return min(amounts, default=0)


def _free(directory: Path) -> int:
    while not directory.exists():
        directory = directory.parent
    return shutil.disk_usage(directory).free
