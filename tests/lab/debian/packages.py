"""What the labs' images are made with: apt's knowledge, mmdebstrap, and a cache of finished steps.

Everything comes from the mirrors that this machine's own apt uses, so nothing here names a server.
For the release that apt's sources name, versions are those that apt would install. For another
release (releases.py) the sources are this machine's with the suite replaced, and apt keeps its
lists in the cache (`CACHE/apt-CODENAME`); /etc/apt and /var/lib/apt are only read. No step needs a
loop device or root: mmdebstrap and mkfs.ext4 run in a user namespace when the caller is not root
(that takes the package uidmap and a range in /etc/subuid).

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

from tests.lab.debian.releases import RELEASES, Release
from tests.lab.host import LabError, cache_directory, last_lines

log = logging.getLogger(__name__)

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
LISTS_KEPT = 7 * 86_400.0  # seconds until the lists of another release are fetched again

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
    """Removes what older recipes of the lab's image made (all of lab-*; the name has the release,
    so the images of another release stay)."""
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
def versions(release: Release, names: frozenset[str]) -> Mapping[str, str]:
    """Package → the version that apt would install; a new one of any means a new image."""
    found: dict[str, str] = {}
    package = ""
    for line in call([*apt("apt-cache", release), "policy", *sorted(names)]).splitlines():
        if not line.startswith(" "):
            package = line.rstrip(":")
        elif line.strip().startswith("Candidate:"):
            version = line.split()[1]
            if version != "(none)":
                found[package] = version
    if absent := sorted(names - set(found)):
        raise LabError(
            f"apt knows no version of {', '.join(absent)} in {release}. {_outdated(release)}"
        )
    return found


@functools.cache
def kernel_package(release: Release, metapackage: str) -> str:
    """The package of the kernel itself, whose name has the version."""
    command = [*apt("apt-cache", release), "depends", "--important", metapackage]
    for line in call(command).splitlines():
        kind, _, name = line.strip().partition(": ")
        if kind == "Depends" and name.startswith("linux-image-"):
            return name
    raise LabError(f"apt knows no kernel for {metapackage} in {release}. {_outdated(release)}")


def download(release: Release, package: str, version: str, target: Path) -> None:
    """Unpacks a package into the folder `target`; nothing of it is run."""
    with tempfile.TemporaryDirectory(dir=target.parent) as work:
        command = [*apt("apt-get", release), "download", f"{package}={version}"]
        call(command, cwd=Path(work), hint=_outdated(release))
        (archive,) = Path(work).glob("*.deb")
        call(["dpkg-deb", "-x", archive, target])


def bootstrap(
    release: Release,
    target: Path | None,
    *,
    packages: Sequence[str],
    without: Sequence[str],
    hooks: Sequence[str] = (),
) -> None:
    """Installs Debian's essential packages and `packages` into a tar archive, without the files
    that the patterns `without` match. `hooks` are mmdebstrap's customize hooks; without a `target`
    their work is all that stays."""
    command = [
        "mmdebstrap",
        "--mode=root" if os.geteuid() == 0 else "--mode=unshare",
        "--variant=essential",
        "--format=tar" if target else "--format=null",
        *_apt_options(),
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in without),
        f"--include={','.join(packages)}",
        *(f"--customize-hook={hook}" for hook in hooks),
        # What mmdebstrap leaves of this machine's way to its mirrors.
        '--customize-hook=rm -f "$1"/etc/apt/apt.conf.d/99mmdebstrap "$1"/etc/apt/sources.list',
        release.codename,
        target or "-",
        "-",
    ]
    call([str(word) for word in command], stdin=_sources(release), hint=_outdated(release))


def _outdated(release: Release) -> str:
    lists = _private_state(release)
    fetch = f"remove {lists}" if lists else "run `apt-get update`"
    return (
        "If a file was not found, the package lists are older than the mirror: "
        f"{fetch} and try again."
    )


# apt's sources and state ------------------------------------------------------------------


def apt(program: str, release: Release) -> list[str]:
    """The words that begin a command of apt's about that release."""
    # As root apt would drop to its own user, who may not write where a download goes, and warn.
    command = [program, "-q", "-o", "APT::Sandbox::User=root"]
    state = _private_state(release)
    if state is None:
        return command
    command += [
        *("-o", f"Dir::State={state}", "-o", f"Dir::State::status={state}/status"),
        *("-o", f"Dir::Cache={state}/cache", "-o", "Dir::Cache::pkgcache=pkgcache.bin"),
        *("-o", f"Dir::Etc::sourcelist={state}/sources.list"),
        *("-o", "Dir::Etc::sourceparts=/dev/null", "-o", "Dir::Etc::preferences=/dev/null"),
        *("-o", "Dir::Etc::preferencesparts=/dev/null"),
    ]
    _update(release, state, tuple(command[1:]))
    return command


@functools.cache
def _update(release: Release, state: Path, options: Sequence[str]) -> None:
    """Fetches the package lists of a release that this machine's apt does not know."""
    sources = _sources(release)
    (state / "cache").mkdir(parents=True, exist_ok=True)
    (state / "lists").mkdir(exist_ok=True)
    (state / "status").touch()  # of no package installed
    done = state / "fetched"
    with (state / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        there = done.exists() and (state / "sources.list").read_text() == sources
        if there and time.time() - done.stat().st_mtime < LISTS_KEPT:
            return
        (state / "sources.list").write_text(sources)
        report(f"labs: fetching the package lists of {release}")
        try:
            call(["apt-get", *options, "update", "--error-on=any"])
        except LabError:
            if not there:
                raise
        done.touch()


@functools.cache
def _targets() -> Sequence[tuple[str, str]]:
    """URI and release of the main component of this machine's apt sources."""
    command = ["apt-get", "indextargets", "Created-By: Packages"]
    lines = call([*command, "--format", "$(REPO_URI)|$(RELEASE)|$(COMPONENT)"]).splitlines()
    split = [line.split("|") for line in lines]
    return [(uri, name) for uri, name, component in split if component == "main"]


def _suite(name: str) -> str:
    """bookworm of bookworm-updates."""
    return name.split("-", maxsplit=1)[0]


def _private_state(release: Release) -> Path | None:
    """Where apt keeps its lists of a release; None for this machine's own."""
    if release.codename in {_suite(name) for _, name in _targets()}:
        return None
    return cache_directory() / f"apt-{release.codename}"


def _sources(release: Release) -> str:
    """This machine's apt sources as lines of a sources.list; those of another Debian release with
    the suite replaced, where none names this one."""
    targets = [(uri, name) for uri, name in _targets() if _suite(name) in RELEASES]
    wanted = [target for target in targets if _suite(target[1]) == release.codename]
    keyring = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
    signed = f"[signed-by={keyring}] " if keyring.exists() else ""
    lines = {
        f"deb {signed}{uri} {name.replace(_suite(name), release.codename)} main\n"
        for uri, name in wanted or targets
    }
    if not lines:
        raise LabError(
            f"apt's sources on this machine name none of {', '.join(RELEASES)}. The labs' machines "
            f"are made from {release}: add it to /etc/apt/sources.list.d and run `apt-get update`."
        )
    return "".join(sorted(lines))


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
