"""What the labs' images are made with: apt's knowledge, mmdebstrap, and a cache of finished steps.

Everything comes from the Debian packages that this machine's own apt would install (its mirrors,
proxies and pins), so nothing here names a server. No step needs a loop device or root: mmdebstrap
and mkfs.ext4 run in a user namespace when the caller is not root (that takes the package uidmap
and a range in /etc/subuid).

What is built of it is the business of `guest_image.py` here and of `tests/lab/xen/image.py`.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from tests.lab.host import LabError, cache_directory, last_lines

log = logging.getLogger(__name__)

SUITE = "bookworm"
# What `bootstrap` and a disk made of it need on the machine that builds, and the package.
NEEDS = {
    "mmdebstrap": "mmdebstrap",
    "mkfs.ext4": "e2fsprogs",
}
# Files of packages that no test looks at.
WITHOUT = (
    "/usr/share/doc/*",
    "/usr/share/info/*",
    "/usr/share/locale/*",
    "/usr/share/man/*",
)
OUTDATED = (
    "If a file was not found, this machine's package lists are older than its mirror: run "
    "`apt-get update` and try again."
)

Progress = Callable[[str], None]


def report(message: str) -> None:
    """The default progress report: one line, also where pytest shows it live."""
    log.info("%s", message)


def missing_packages(needs: Mapping[str, str]) -> list[str]:
    """The packages of the programs (program → package) that this machine lacks."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    needs = dict(needs) if os.geteuid() == 0 else {**needs, "newuidmap": "uidmap"}
    return sorted({name for program, name in needs.items() if not shutil.which(program, path=path)})


# The cache --------------------------------------------------------------------------------


def key(*parts: object) -> str:
    """A short hash of what a step is made from."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


@contextlib.contextmanager
def locked_cache(lab: str, progress: Progress) -> Iterator[Path]:
    """The cache's folder, held against other builds of the same image (`lab`: its name there)."""
    cache = cache_directory()
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / f"{lab}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress(f"waiting for another build of the {lab} image")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield cache


def step(
    cache: Path, name: str, what: str, progress: Progress, make: Callable[[Path], None]
) -> Path:
    """Makes cache/name by `make(temporary path)` unless it is there; atomic.

    `what` is told to `progress` before and after.
    """
    target = cache / name
    if target.exists():
        return target
    progress(f"{what} …")
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=f"{name}.tmp", dir=cache) as work:
        made = Path(work) / "made"
        make(made)
        made.rename(target)
    progress(f"{what}: done in {time.monotonic() - started:.0f} s")
    return target


def forget_others(cache: Path, lab: str, keep: set[str]) -> None:
    """Removes what older recipes of the lab's image made (all of lab-*)."""
    # Open files of a lab that runs from an older image live on until it ends.
    for path in cache.glob(f"{lab}-*"):
        if path.name not in keep:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


# Commands ---------------------------------------------------------------------------------


def call(
    command: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: str | None = None,
    hint: str = "",
) -> str:
    """The standard output of a command that must succeed; `hint` ends the error."""
    words = [str(word) for word in command]
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    result = subprocess.run(
        words,
        cwd=cwd,
        env={**os.environ, "PATH": path, "LC_ALL": "C.UTF-8", **(env or {})},
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode != 0:
        raise LabError(
            f"building a lab's image failed at: {' '.join(words)[:300]}\n"
            f"it ended with status {result.returncode} and said:\n"
            f"{last_lines(result.stdout + result.stderr, 30)}\n{hint}".rstrip()
        )
    return result.stdout


def as_root() -> list[str]:
    """Before a command that gives files to root: nothing for root, else a user namespace."""
    return [] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--map-auto", "--"]


# Packages ---------------------------------------------------------------------------------


# Each guest's definition asks, and where apt keeps no cache of its own (Debian's container images)
# an answer takes it over a second.
@functools.cache
def versions(names: frozenset[str]) -> Mapping[str, str]:
    """Package → the version that apt would install; a new one of any means a new image."""
    found: dict[str, str] = {}
    package = ""
    for line in call(["apt-cache", "policy", *sorted(names)]).splitlines():
        if not line.startswith(" "):
            package = line.rstrip(":")
        elif line.strip().startswith("Candidate:"):
            version = line.split()[1]
            if version != "(none)":
                found[package] = version
    if absent := sorted(names - set(found)):
        raise LabError(
            f"apt knows no version of {', '.join(absent)}. The labs' machines are made from "
            f"Debian {SUITE}: run `apt-get update`, and check that apt's sources name {SUITE}."
        )
    return found


def download(package: str, version: str, target: Path) -> None:
    """Unpacks a package into the folder `target`; nothing of it is run."""
    with tempfile.TemporaryDirectory(dir=target.parent) as work:
        # As root apt would drop to its own user, who may not write here, and warn.
        command = ["apt-get", "-q", "-o", "APT::Sandbox::User=root"]
        call([*command, "download", f"{package}={version}"], cwd=Path(work), hint=OUTDATED)
        (archive,) = Path(work).glob("*.deb")
        call(["dpkg-deb", "-x", archive, target])


def bootstrap(target: Path, *, packages: Sequence[str], without: Sequence[str]) -> None:
    """Installs Debian's essential packages and `packages` into a tar archive, without the files
    that the patterns `without` match."""
    command = [
        "mmdebstrap",
        "--mode=root" if os.geteuid() == 0 else "--mode=unshare",
        "--variant=essential",
        "--format=tar",
        *_apt_options(),
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in without),
        f"--include={','.join(packages)}",
        # What mmdebstrap leaves of this machine's way to its mirrors.
        '--customize-hook=rm -f "$1"/etc/apt/apt.conf.d/99mmdebstrap "$1"/etc/apt/sources.list',
        SUITE,
        target,
        "-",
    ]
    call([str(word) for word in command], stdin=_sources(), hint=OUTDATED)


def _apt_options() -> list[str]:
    """How this machine's apt reaches its mirrors: proxies, retries, date checks, credentials."""
    wanted = ("Acquire::http", "Acquire::https", "Acquire::Check-", "Acquire::Retries")
    options = [
        f"--aptopt={line}"
        for line in call(["apt-config", "dump"]).splitlines()
        if line.startswith(wanted) and not line.endswith(' "";')
    ]
    options.append('--aptopt=Acquire::Languages "none"')
    if any(Path("/etc/apt/auth.conf.d").glob("*")):
        options.append('--aptopt=Dir::Etc::netrcparts "/etc/apt/auth.conf.d/"')
    if Path("/etc/apt/auth.conf").exists():
        options.append('--aptopt=Dir::Etc::netrc "/etc/apt/auth.conf"')
    return options


def _sources() -> str:
    """This machine's own apt sources for the suite, as lines of a sources.list."""
    keyring = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
    signed = f"[signed-by={keyring}] " if keyring.exists() else ""
    lines = {
        f"deb {signed}{uri} {release} main"
        for uri, release, component in (
            line.split("|")
            for line in call(
                [
                    *("apt-get", "indextargets", "Created-By: Packages"),
                    *("--format", "$(REPO_URI)|$(RELEASE)|$(COMPONENT)"),
                ]
            ).splitlines()
        )
        if component == "main" and release.split("-")[0] == SUITE
    }
    if not lines:
        raise LabError(
            f"apt's sources on this machine do not name Debian {SUITE}, of which the labs' "
            "machines are made; add it to /etc/apt/sources.list.d and run `apt-get update`."
        )
    return "".join(f"{line}\n" for line in sorted(lines))
