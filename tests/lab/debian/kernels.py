"""Kernels and modules of unpacked Debian packages, as the labs' machines take them: unpacked.

Up to Debian 12 modules are plain files in /lib/modules and kernels are packed with xz (cloud: lz4).
Since Debian 13 modules are packed with xz, in /usr/lib/modules, and kernels with zstd. busybox's
insmod takes plain files alone, and an emulated machine unpacks slowly.
"""

from __future__ import annotations

import gzip
import lzma
import shutil
import subprocess
from pathlib import Path

from tests.lab.debian.packages import call
from tests.lab.host import LabError

# What this module needs on the machine that builds, and the package.
NEEDS = {"depmod": "kmod", "lz4": "lz4", "zstd": "zstd"}
# The first bytes of a packed kernel → the program that unpacks it.
UNPACKERS = {b"\x02\x21\x4c\x18": "lz4", b"\x28\xb5\x2f\xfd": "zstd"}


def unpack_kernel(packed: Path, target: Path) -> None:
    """Writes the ELF file inside a bzImage: what QEMU's loaders and Xen's builder take.

    The offsets are those of the kernel's Documentation/x86/boot.rst.
    """
    data = packed.read_bytes()
    setup_sectors = data[0x1F1] or 4
    offset = int.from_bytes(data[0x248:0x24C], "little") + (setup_sectors + 1) * 512
    length = int.from_bytes(data[0x24C:0x250], "little")
    # The last four bytes are the unpacked size, which no compressor's format knows about.
    payload = data[offset : offset + length - 4]
    program = next((name for magic, name in UNPACKERS.items() if payload.startswith(magic)), None)
    if payload.startswith(b"\xfd7zXZ\0"):
        unpacked = lzma.decompress(payload)
    elif payload.startswith(b"\x1f\x8b"):
        unpacked = gzip.decompress(payload)
    elif program:
        unpacked = subprocess.run(
            [program, "-d", "-c"], input=payload, capture_output=True, check=True
        ).stdout
    else:
        raise LabError(f"{packed.name} is packed in an unknown way: {payload[:6]!r}")
    if not unpacked.startswith(b"\x7fELF"):
        raise LabError(f"{packed.name} holds no ELF kernel")
    target.write_bytes(unpacked)


def index_modules(root: Path) -> Path:
    """The folder of the modules of the one kernel below `root`, with modules.dep.

    Makes /lib and /usr/lib there one folder: kmod looks in the first or the second."""
    lib, usr_lib = root / "lib", root / "usr/lib"
    if (usr_lib / "modules").is_dir() and not lib.exists():
        lib.symlink_to("usr/lib")
    elif not (usr_lib / "modules").exists():
        usr_lib.mkdir(parents=True, exist_ok=True)
        (usr_lib / "modules").symlink_to("../../lib/modules")
    (modules,) = (path for path in (lib / "modules").iterdir() if path.is_dir())
    if not (modules / "modules.dep").exists():
        call(["depmod", "-b", root, modules.name])
    return modules


def copy_module(module: Path, folder: Path) -> Path:
    """Copies a module into a folder, unpacked; returns its new path."""
    if module.suffix == ".xz":
        target = folder / module.stem
        target.write_bytes(lzma.decompress(module.read_bytes()))
        return target
    return Path(shutil.copy(module, folder))
