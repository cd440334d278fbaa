"""Builds what the Xen lab boots: hypervisor, kernels, initramfs archives and Dom0's disk.

Everything comes from Debian packages (tests/lab/debian/packages.py), and no kernel version is named
here. The work is done in three steps, each kept in the cache under a hash of what it is made from
(RELEASE is bookworm or trixie, tests/lab/debian/releases.py):

    xen-RELEASE-kernels-KEY/  the packages that are only unpacked: kernels, hypervisor, busybox
    xen-RELEASE-userland-KEY.tar  Dom0's Debian, made by mmdebstrap
    xen-RELEASE-KEY/          what QEMU is given; see `Image`

An interrupted build goes on after the last finished step; a change of one unit file rebuilds only
the last one (a few seconds). Booting is the business of `lab.py`.
"""

from __future__ import annotations

import dataclasses
import gzip
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.lab.debian import kernels, packages
from tests.lab.debian.packages import Progress, call, key, report, step
from tests.lab.debian.releases import Release
from tests.lab.xen import modules as modules_of

HERE = Path(__file__).resolve().parent
GUEST_SERVER = HERE / "guest/srv/server.py"
# What the machine that builds and boots has to have, and the Debian package that has it;
# tests/lab/apt-packages lists them, too.
NEEDS = {
    "qemu-system-x86_64": "qemu-system-x86",
    **packages.NEEDS,
    **kernels.NEEDS,
    "cpio": "cpio",
    "setpriv": "util-linux",
}

# Unpacked only. The kernels' names carry a version, which apt tells.
KERNELS = {"dom0": "linux-image-amd64", "guest": "linux-image-cloud-amd64"}
BUSYBOX = "busybox-static"

# Installed in Dom0. libvirt-daemon-system brings the units, files and the group that an operator's
# Dom0 has; python3 is for the agent and for execd.
DOM0_PACKAGES = (
    "e2fsprogs",
    "ethtool",
    "iproute2",
    "iptables",
    "iputils-ping",
    "ipvsadm",
    "kmod",
    "libvirt-clients",
    "libvirt-daemon-driver-xen",
    "libvirt-daemon-system",
    "openssh-client",
    "procps",
    "python3",
    "systemd-sysv",
    "tcpdump",
    "xenstore-utils",
)
# Of libvirt's drivers only libxl and network stay:
# the daemon loads what it finds, and each driver costs start time in an emulated machine.
DOM0_WITHOUT = (
    *packages.WITHOUT,
    "/usr/lib/python3/dist-packages/*/test/*",
    "/usr/lib/x86_64-linux-gnu/libvirt/connection-driver/libvirt_driver_interface.so",
    "/usr/lib/x86_64-linux-gnu/libvirt/connection-driver/libvirt_driver_nodedev.so",
    "/usr/lib/x86_64-linux-gnu/libvirt/connection-driver/libvirt_driver_nwfilter.so",
    "/usr/lib/x86_64-linux-gnu/libvirt/connection-driver/libvirt_driver_qemu.so",
    "/usr/lib/x86_64-linux-gnu/libvirt/connection-driver/libvirt_driver_secret.so",
    "/usr/lib/x86_64-linux-gnu/libvirt/connection-driver/libvirt_driver_storage.so",
)
DEBIAN_APPLETS = (
    *("cat", "insmod", "mkdir", "mount", "sh", "switch_root", "tar", "umount", "usleep"),
)
GUEST_APPLETS = (
    *("awk", "cat", "dd", "dmesg", "echo", "env", "free", "grep", "hostname", "insmod", "ip"),
    *("kill", "ls", "mkdir", "mount", "nc", "netstat", "ping", "printf", "ps", "rm", "sed", "sh"),
    *("sleep", "sysctl", "top", "touch", "usleep"),
)

# Prints the files of all that a script imports, and of what Python itself needs to start.
IMPORTS = """
import encodings.latin_1, runpy, sys
runpy.run_path(sys.argv[1])
for module in list(sys.modules.values()):
    path = getattr(module, "__file__", None)
    if path and path.startswith(sys.prefix):
        print(path)
"""

DISK_SIZE = "2G"  # sparse; the tests write little


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """Paths on this machine of what QEMU is given."""

    directory: Path
    userland: Path  # a tar archive of Dom0's Debian
    built_from: Mapping[str, str]  # package → version, for reports

    @property
    def hypervisor(self) -> Path:
        return self.directory / "xen"

    @property
    def kernel(self) -> Path:
        return self.directory / "vmlinux-dom0"

    @property
    def initramfs(self) -> Path:
        return self.directory / "initramfs-dom0"

    @property
    def disk(self) -> Path:
        return self.directory / "dom0.img"


def missing_packages() -> list[str]:
    """The Debian packages to install before `build` and a boot can work."""
    return packages.missing_packages(NEEDS)


def build(release: Release, progress: Progress = report) -> Image:
    """The image of the present recipe, from the cache or built now (one to two minutes)."""
    lab = f"xen-{release.codename}"
    names = {
        "hypervisor": f"xen-hypervisor-{release.xen}-amd64",
        "busybox": BUSYBOX,
        **{role: packages.kernel_package(release, name) for role, name in KERNELS.items()},
    }
    installed = (*DOM0_PACKAGES, f"xen-utils-{release.xen}")
    versions = packages.versions(release, frozenset({*names.values(), *installed}))
    with packages.locked_cache(lab, progress) as cache:
        unpacked = step(
            cache,
            f"{lab}-kernels-{key(versions)}",
            f"Xen lab: downloading and unpacking kernels and hypervisor of {release}",
            progress,
            lambda target: _unpack(release, names, versions, target),
        )
        userland = step(
            cache,
            f"{lab}-userland-{key(versions, installed, DOM0_WITHOUT)}.tar",
            f"Xen lab: installing {release} for Dom0 (about a minute)",
            progress,
            lambda target: packages.bootstrap(
                release, target, packages=installed, without=DOM0_WITHOUT
            ),
        )
        recipe = [path for path in sorted(HERE.rglob("*")) if _is_recipe(path)]
        recipe.append(Path(kernels.__file__))
        contents = [f"{path.name}:{path.read_bytes()!r}" for path in recipe]
        directory = step(
            cache,
            f"{lab}-{key(versions, installed, contents)}",
            f"Xen lab: making the disk of a Dom0 of {release}",
            progress,
            lambda target: _assemble(unpacked, userland, target),
        )
        packages.forget_others(cache, lab, {unpacked.name, userland.name, directory.name})
    return Image(directory=directory, userland=userland, built_from=versions)


def _is_recipe(path: Path) -> bool:
    if path.is_dir() or "__pycache__" in path.parts:
        return False
    return path.name in ("image.py", "modules.py") or path.parent != HERE or path.suffix != ".py"


# Packages ---------------------------------------------------------------------------------


def _unpack(
    release: Release, names: Mapping[str, str], versions: Mapping[str, str], target: Path
) -> None:
    target.mkdir()
    for role, name in names.items():
        packages.download(release, name, versions[name], target / role)


# The pieces of the image ------------------------------------------------------------------


def _assemble(unpacked: Path, userland: Path, target: Path) -> None:
    target.mkdir()
    _unzip_hypervisor(unpacked / "hypervisor", target / "xen")
    busybox = next(
        path for path in (unpacked / "busybox").rglob("busybox") if "bin" in path.parent.name
    )
    for role in KERNELS:
        packed = _only(unpacked / role / "boot", "vmlinuz-*")
        kernels.unpack_kernel(packed, target / f"vmlinux-{role}")
    modules, guest_modules = (kernels.index_modules(unpacked / role) for role in KERNELS)
    _make_dom0_initramfs(busybox, modules, target)
    _make_guest_initramfs(busybox, guest_modules, userland, target)
    _make_debian_guest_initramfs(busybox, guest_modules, target)
    _make_disk(modules, userland, target)


def _only(directory: Path, pattern: str) -> Path:
    (path,) = directory.glob(pattern)
    return path


def _unzip_hypervisor(unpacked: Path, target: Path) -> None:
    # The package has symbolic links, and -dbg and -flask forms, beside the plain file.
    (packed,) = (path for path in unpacked.glob("boot/xen-*-amd64.gz") if not path.is_symlink())
    with gzip.open(packed) as source, target.open("wb") as sink:
        shutil.copyfileobj(source, sink)


def _make_initramfs(
    target: Path,
    *,
    busybox: Path,
    applets: Sequence[str],
    modules: Sequence[Path],
    files: Mapping[str, Path],
) -> None:
    """An archive of busybox, modules (in /modules, to insert in the order of /modules/order) and
    files (path in the archive → file here; programs have their mode)."""
    with tempfile.TemporaryDirectory(dir=target.parent) as work:
        root = Path(work) / "root"
        for name in ("bin", "dev", "modules", "proc", "root", "run", "sbin", "sys", "tmp"):
            (root / name).mkdir(parents=True)
        shutil.copy(busybox, root / "bin/busybox")
        for applet in applets:
            (root / "bin" / applet).symlink_to("busybox")
        order = [kernels.copy_module(path, root / "modules").name for path in modules]
        (root / "modules/order").write_text("".join(f"{name}\n" for name in order))
        for name, source in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, root / name)
        names = [".", *(str(path.relative_to(root)) for path in sorted(root.rglob("*")))]
        archive = subprocess.run(
            ["cpio", "-o", "-H", "newc", "-R", "0:0", "--quiet"],
            cwd=root,
            input="".join(f"{name}\n" for name in names).encode(),
            capture_output=True,
            check=True,
        ).stdout
    # Not compressed: unpacking costs an emulated machine more than copying.
    target.write_bytes(archive)


def _make_dom0_initramfs(busybox: Path, modules: Path, target: Path) -> None:
    _make_initramfs(
        target / "initramfs-dom0",
        busybox=busybox,
        applets=("sh", "mount", "insmod", "switch_root", "tar", "sleep", "mkdir", "umount"),
        modules=modules_of.files(modules, modules_of.DOM0_AT_BOOT),
        files={"init": HERE / "dom0-init"},
    )


def _make_debian_guest_initramfs(busybox: Path, modules: Path, target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target) as work:
        tar = modules_of.pack(modules, modules_of.DEBIAN_GUEST_LATER, Path(work))
        _make_initramfs(
            target / "initramfs-debian",
            busybox=busybox,
            applets=DEBIAN_APPLETS,
            modules=modules_of.files(modules, modules_of.DEBIAN_GUEST_AT_BOOT),
            files={"init": HERE / "debian-init", "modules.tar": tar},
        )


def _make_guest_initramfs(busybox: Path, modules: Path, userland: Path, target: Path) -> None:
    guest = HERE / "guest"
    scripts = {
        str(path.relative_to(guest)): path for path in sorted(guest.rglob("*")) if path.is_file()
    }
    with tempfile.TemporaryDirectory(dir=target) as work:
        _make_initramfs(
            target / "initramfs-guest",
            busybox=busybox,
            applets=GUEST_APPLETS,
            modules=modules_of.files(modules, modules_of.GUEST_AT_BOOT),
            files={
                **scripts,
                **_python_files(userland, Path(work)),
            },
        )


def _python_files(userland: Path, work: Path) -> dict[str, Path]:
    """The part of Dom0's Python that server.py imports: path in the guest → unpacked file.

    Compiled modules only, each in the place of its source, which Python takes as it is.
    """
    wanted = ("./usr/bin/python3.*", "./usr/lib/python3.*", "./usr/lib/x86_64-linux-gnu/l*.so*")
    call(["tar", "-x", "--no-same-owner", "-f", userland, "-C", work, "--wildcards", *wanted])
    python = next(path for path in (work / "usr/bin").iterdir() if path.name.startswith("python3."))
    libraries = work / "usr/lib/x86_64-linux-gnu"
    loader = libraries / "ld-linux-x86-64.so.2"
    start: list[str | Path] = [loader, "--library-path", libraries]
    modules = call(
        [*start, python, "-S", "-s", "-c", IMPORTS, GUEST_SERVER],
        env={"PYTHONHOME": str(work / "usr"), "PYTHONDONTWRITEBYTECODE": "1"},
    ).split()
    tag = python.name.replace("python3.", "cpython-3")
    files: dict[str, Path] = {"usr/bin/python3": python, "lib64/ld-linux-x86-64.so.2": loader}
    for name in modules:
        source = Path(name)
        place = source.relative_to(work)
        compiled = source.parent / "__pycache__" / f"{source.stem}.{tag}.pyc"
        if source.suffix == ".py" and compiled.exists():
            files[str(place.with_suffix(".pyc"))] = compiled
        else:
            files[str(place)] = source
    native = [python, *(path for path in files.values() if path.suffix == ".so")]
    for path in native:
        for line in call([*start, "--list", path]).splitlines():
            words = line.split()
            if len(words) > 2 and words[1] == "=>" and words[0] != "ld-linux-x86-64.so.2":
                files[f"lib/x86_64-linux-gnu/{words[0]}"] = libraries / words[0]
    return files


def _make_disk(modules: Path, userland: Path, target: Path) -> None:
    call(
        [*packages.as_root(), "sh", "-e", HERE / "make-disk"],
        cwd=target,
        env={
            "USERLAND": str(userland),
            "MODULES": str(modules),
            "MODULE_PARTS": " ".join(modules_of.DOM0),
            "OVERLAY": str(HERE / "dom0"),
            "DISK_SIZE": DISK_SIZE,
        },
    )
