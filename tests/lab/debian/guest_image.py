"""The disk of the Debian guests: one ext4 image, read-only, that all guests of both labs share.

    debian-RELEASE-INIT-userland-KEY.tar  Debian with that init, made by mmdebstrap
    debian-RELEASE-INIT-KEY/guest.img     that, trimmed, with root/ and the tests' server

sysvinit/ goes over root/ where the init is that one. Both are kept in the cache under a hash of
what they are made from. What makes one guest differ from another is laid over it when it is
defined (guest_files.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.lab.debian import packages, releases
from tests.lab.debian.definition import Init
from tests.lab.debian.packages import Progress
from tests.lab.debian.releases import Release
from tests.lab.host import LabError

HERE = Path(__file__).resolve().parent
SERVER = HERE.parent / "xen/guest/srv/server.py"

PACKAGES = (
    "busybox-static",  # the shell's listener
    "ifupdown",
    "iproute2",
    "iptables",
    "kmod",
    "openssh-server",
    "procps",
    "python3-minimal",  # the server
)
# Beside an init, what real guests configure their network with; nothing of it runs unless a test
# asks for it (networks.py, ssh.py).
INITS: Mapping[Init, Sequence[str]] = {
    "systemd": (
        *("systemd-sysv", "dbus", "ethtool", "netplan.io", "network-manager", "nftables"),
        *("nginx-light", "udev"),
    ),
    "sysvinit": ("sysvinit-core", "sysv-rc", "initscripts", "insserv"),
}
WITHOUT = (
    *packages.WITHOUT,
    "/lib/udev/hwdb.d/*",
    "/usr/lib/x86_64-linux-gnu/NetworkManager/*/libnm-device-plugin-*",
    "/usr/lib/x86_64-linux-gnu/gconv/*",
    "/usr/lib/x86_64-linux-gnu/perl/*/CORE/*",
    "/usr/share/bug/*",
    "/usr/share/icons/*",
    "/usr/share/perl/*/Unicode/Collate/*",
    "/usr/share/zoneinfo/*",
)


def missing() -> list[str]:
    """The Debian packages to install before `build` can work."""
    return packages.missing_packages(packages.NEEDS)


def build(
    progress: Progress = packages.report,
    *,
    init: Init = "systemd",
    release: Release | None = None,
) -> Path:
    """The image of the present recipe, from the cache or made now (half a minute)."""
    release = release or releases.default()
    if needed := missing():
        raise LabError(f"Debian guests need: apt-get install {' '.join(needed)}")
    names = (*PACKAGES, *INITS[init])
    versions = packages.versions(release, frozenset(names))
    lab = f"debian-{release.codename}-{init}"
    with packages.locked_cache(lab, progress) as cache:
        userland = packages.step(
            cache,
            f"{lab}-userland-{packages.key(versions, names, WITHOUT)}.tar",
            f"labs: installing {release} with {init} for guests (a minute)",
            progress,
            lambda target: packages.bootstrap(release, target, packages=names, without=WITHOUT),
        )
        recipe = [path for path in sorted(HERE.rglob("*")) if _is_recipe(path)]
        contents = [
            (str(path.relative_to(HERE.parent)), path.stat().st_mode, path.read_bytes())
            for path in [*recipe, SERVER]
        ]
        directory = packages.step(
            cache,
            f"{lab}-{packages.key(userland.name, contents)}",
            f"labs: making the disk of {release} guests with {init}",
            progress,
            lambda target: _make_disk(userland, init, target),
        )
        packages.forget_others(cache, lab, {userland.name, directory.name})
    return directory / "guest.img"


def _is_recipe(path: Path) -> bool:
    return path.is_file() and path.suffix not in (".py", ".pyc")


def _make_disk(userland: Path, init: Init, target: Path) -> None:
    target.mkdir()
    packages.call(
        [*packages.as_root(), "sh", "-e", HERE / "make-image"],
        cwd=target,
        env={
            "INIT": init,
            "USERLAND": str(userland),
            "OVERLAY": str(HERE / "root"),
            "MASKED": str(HERE / "masked-units"),
            "SERVER": str(SERVER),
        },
    )
