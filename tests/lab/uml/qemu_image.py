"""Kernel and initramfs of the QEMU guests: Debian's cloud kernel and a busybox.

Built on the machine that runs the tests, from the packages its own apt would install, into the
cache under a hash of what they are made from. The kernel is stored unpacked: QEMU then enters it
by its PVH note, and an emulator inside an emulator need not run the unpacking.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.lab.debian import kernels
from tests.lab.host import LabError, cache_directory, last_lines

HERE = Path(__file__).resolve().parent
INIT = HERE / "qemu-init"
METAPACKAGE = "linux-image-cloud-amd64"
BUSYBOX = Path("/bin/busybox")
# In the order of their loading; what they depend on comes with them.
MODULES = ("virtio_pci", "virtio_net", "virtio_console", "button", "evdev", "qemu_fw_cfg")

NEEDS = {
    "/usr/bin/qemu-system-x86_64": "qemu-system-x86",
    "/usr/bin/lz4": "lz4",
    "/usr/bin/cpio": "cpio",
    "/sbin/depmod": "kmod",
    "/usr/bin/zstd": "zstd",
    "/bin/busybox": "busybox-static",
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class QemuImage:
    kernel: Path
    initramfs: Path


def missing() -> list[str]:
    return sorted({package for path, package in NEEDS.items() if not Path(path).exists()})


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A program of this machine, and its name in the guest's /usr/sbin."""

    name: str
    path: Path


def build(programs: Sequence[Program] = ()) -> QemuImage:
    """The image, made if it is not in the cache; takes about 10 s and a download of 15 MB."""
    if needed := missing():
        raise LabError(f"QEMU guests need: apt-get install {' '.join(needed)}")
    package, version = _kernel_package()
    recipe = [
        package,
        version,
        *(p.read_bytes() for p in (INIT, Path(__file__), Path(kernels.__file__), BUSYBOX)),
    ]
    files = _files_of(programs)
    recipe += [item for path, name in files.items() for item in (name, path.read_bytes())]
    key = hashlib.sha256(repr(recipe).encode()).hexdigest()[:12]
    cache = cache_directory()
    cache.mkdir(parents=True, exist_ok=True)
    target = cache / f"uml-qemu-{key}"
    if not target.exists():
        with tempfile.TemporaryDirectory(prefix="uml-qemu-tmp", dir=cache) as work:
            made = Path(work) / "made"
            made.mkdir()
            _make(Path(work), made, f"{package}={version}", files)
            if not target.exists():
                made.rename(target)
        kind = "with" if programs else "plain"
        (target / kind).touch()
        for old in cache.glob("uml-qemu-*"):
            if old.is_dir() and old != target and "tmp" not in old.name and (old / kind).exists():
                shutil.rmtree(old, ignore_errors=True)
    return QemuImage(kernel=target / "vmlinux", initramfs=target / "initramfs")


def _files_of(programs: Sequence[Program]) -> dict[Path, str]:
    """The programs and their libraries → where they are in the guest."""
    files: dict[Path, str] = {}
    for program in programs:
        files[program.path] = f"usr/sbin/{program.name}"
        for library in re.findall(r"(/\S+) \(0x", _call("ldd", program.path)):
            files[Path(library)] = library.lstrip("/")
    return files


def _call(*command: object, cwd: Path | None = None, stdin: bytes | None = None) -> str:
    words = [str(word) for word in command]
    result = subprocess.run(
        words,
        cwd=cwd,
        input=stdin,
        capture_output=True,
        env={**os.environ, "LC_ALL": "C.UTF-8"},
        check=False,
    )
    if result.returncode:
        output = (result.stdout + result.stderr).decode("utf-8", "replace")
        raise LabError(
            f"making the QEMU guests' image failed at {' '.join(words)}:\n{last_lines(output)}"
        )
    return result.stdout.decode("utf-8", "replace")


@functools.cache  # apt takes over a second for each answer where it keeps no cache
def _kernel_package() -> tuple[str, str]:
    depends = _call("apt-cache", "depends", "--important", METAPACKAGE).splitlines()
    names = [line.split()[-1] for line in depends if "Depends: linux-image-" in line]
    if not names:
        raise LabError(f"apt knows no {METAPACKAGE}: run apt-get update")
    policy = _call("apt-cache", "policy", names[0]).splitlines()
    (version,) = (line.split()[1] for line in policy if "Candidate:" in line)
    return names[0], version


def _make(work: Path, made: Path, package: str, files: Mapping[Path, str]) -> None:
    unpacked, release = _unpack(work, package)
    kernels.unpack_kernel(unpacked / f"boot/vmlinuz-{release}", made / "vmlinux")
    root = work / "root"
    for path, name in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, root / name)
    _make_initramfs(unpacked, release, root, made / "initramfs")


def unpack_kernel_package(work: Path) -> tuple[Path, str]:
    """The folder with its boot/ and lib/modules/, and the kernel's release."""
    package, version = _kernel_package()
    work.mkdir(parents=True, exist_ok=True)
    return _unpack(work, f"{package}={version}")


def _unpack(work: Path, package: str) -> tuple[Path, str]:
    # As root apt would drop to its own user, who may not write here, and warn.
    _call("apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", package, cwd=work)
    (archive,) = work.glob("*.deb")
    unpacked = work / "unpacked"
    _call("dpkg-deb", "-x", archive, unpacked)
    (packed,) = (unpacked / "boot").glob("vmlinuz-*")
    release = packed.name.removeprefix("vmlinuz-")
    kernels.index_modules(unpacked)
    return unpacked, release


def _make_initramfs(unpacked: Path, release: str, root: Path, target: Path) -> None:
    for name in ("bin", "dev", "proc", "sys", "www", "modules", "etc"):
        (root / name).mkdir(parents=True, exist_ok=True)
    shutil.copy2(BUSYBOX, root / "bin/busybox")
    shutil.copy2(INIT, root / "init")
    (root / "init").chmod(0o755)
    order: list[str] = []
    for module in MODULES:
        shown = _call("modprobe", "-d", unpacked, "-S", release, "--show-depends", module)
        for line in shown.splitlines():
            kind, _, path = line.partition(" ")
            if kind != "insmod":
                continue
            name = kernels.copy_module(Path(path.split()[0]), root / "modules").name
            if name not in order:
                order.append(name)
    (root / "modules/order").write_text("".join(f"{name}\n" for name in order))
    names = "".join(f"{path.relative_to(root)}\n" for path in sorted(root.rglob("*")))
    archive = target.with_name("initramfs.part")
    _call("cpio", "-o", "-H", "newc", "-R", "0:0", "-F", archive, cwd=root, stdin=names.encode())
    archive.rename(target)
