"""The disk of the Debian guests: one ext4 image, read-only, that all guests of both labs share.

    debian-userland-KEY.tar   Debian with a real init, made by mmdebstrap
    debian-KEY/guest.img      that, trimmed, with the units of root/ and the server the tests ask

Both are kept in the cache under a hash of what they are made from. What makes one guest differ
from another is laid over it when it is defined (guest_files.py).
"""

from __future__ import annotations

from pathlib import Path

from tests.lab.debian import packages
from tests.lab.debian.packages import Progress
from tests.lab.host import LabError

HERE = Path(__file__).resolve().parent
SERVER = HERE.parent / "xen/guest/srv/server.py"

PACKAGES = (
    "busybox-static",  # lab-shell.service
    "iproute2",
    "kmod",
    "procps",
    "python3-minimal",  # the server
    "systemd-sysv",
)
WITHOUT = (
    *packages.WITHOUT,
    "/usr/lib/udev/hwdb.d/*",
    "/usr/share/zoneinfo/*",
)


def missing() -> list[str]:
    """The Debian packages to install before `build` can work."""
    return packages.missing_packages(packages.NEEDS)


def build(progress: Progress = packages.report) -> Path:
    """The image of the present recipe, from the cache or made now (half a minute)."""
    if needed := missing():
        raise LabError(f"Debian guests need: apt-get install {' '.join(needed)}")
    versions = packages.versions(set(PACKAGES))
    with packages.locked_cache("debian", progress) as cache:
        userland = packages.step(
            cache,
            f"debian-userland-{packages.key(versions, PACKAGES, WITHOUT)}.tar",
            f"labs: installing Debian {packages.SUITE} for guests (half a minute)",
            progress,
            lambda target: packages.bootstrap(target, packages=PACKAGES, without=WITHOUT),
        )
        recipe = [*sorted((HERE / "root").rglob("*")), HERE / "make-image", HERE / "masked-units"]
        contents = [
            (str(path.relative_to(HERE.parent)), path.stat().st_mode, path.read_bytes())
            for path in [*recipe, SERVER]
            if path.is_file()
        ]
        directory = packages.step(
            cache,
            f"debian-{packages.key(userland.name, contents)}",
            "labs: making the Debian guests' disk",
            progress,
            lambda target: _make_disk(userland, target),
        )
        packages.forget_others(cache, "debian", {userland.name, directory.name})
    return directory / "guest.img"


def _make_disk(userland: Path, target: Path) -> None:
    target.mkdir()
    packages.call(
        [*packages.as_root(), "sh", "-e", HERE / "make-image"],
        cwd=target,
        env={
            "USERLAND": str(userland),
            "OVERLAY": str(HERE / "root"),
            "MASKED": str(HERE / "masked-units"),
            "SERVER": str(SERVER),
        },
    )
