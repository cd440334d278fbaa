"""Files onto the disk of a virtual machine that is off, by a real libguestfs on this machine.

Its own small virtual machine starts for each call, and takes half a minute where it is emulated; so
this is one apply, one reading and one removal, and what is on the disk at first is not read. That
whoever applies looks first is shown with a folder, in
tests/unit/guestside/transport/test_delivery.py. Its kernel is the one of the QEMU guests, unpacked
and not installed.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.host import LabError
from tests.lab.needed import lacking
from tests.lab.uml import qemu_image
from xenlb.guestside.install.manifest import MANIFEST, NOTHING, parse
from xenlb.guestside.install.operations import MISSING, File, Folder, GuestFile, GuestSymlink, Node
from xenlb.guestside.install.planner import paths_to_read, plan
from xenlb.guestside.transport.image import Disk, ImageFiles

NEEDS = ("/usr/bin/supermin", "/usr/lib/python3/dist-packages/guestfs.py", "/sbin/mkfs.ext4")
HOSTS = b"127.0.0.1 localhost\n"
WANTED = (
    GuestFile(path="etc/xenlb/it's new", text="$(touch /canary)\n", mode=0o600),
    GuestFile(path="etc/hosts", text="192.0.2.1 delivered\n", block=True),
    GuestSymlink(path="etc/link", target="/etc/hosts"),
)


async def off() -> None:
    """Nobody has it."""


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    missing = [path for path in NEEDS if not Path(path).exists()]
    if missing:
        lacking(f"{missing} missing: make deps")
    try:
        unpacked, release = qemu_image.unpack_kernel_package(tmp_path / "kernel")
    except LabError as error:
        lacking(str(error))
    # supermin copies this folder, even where its modules come from another.
    modules = Path("/lib/modules")
    if not (there := modules.exists()):
        modules.mkdir()
    monkeypatch.setenv("SUPERMIN_KERNEL", str(unpacked / f"boot/vmlinuz-{release}"))
    monkeypatch.setenv("SUPERMIN_KERNEL_VERSION", release)
    monkeypatch.setenv("SUPERMIN_MODULES", str(unpacked / f"lib/modules/{release}"))
    monkeypatch.setenv("LIBGUESTFS_BACKEND", "direct")
    # A machine may have /dev/kvm and no virtualization behind it.
    monkeypatch.setenv("LIBGUESTFS_BACKEND_SETTINGS", "force_tcg")
    yield
    if not there:
        modules.rmdir()


def shown(image: Path) -> str:
    """The whole tree, by a reader of its own."""
    names = ["/", "/etc", "/etc/xenlb", "/var", "/var/lib", "/var/lib/xenlb"]
    listed = "".join(_debugfs(image, f"ls -l {name}") for name in names)
    # Without inode numbers and times: name, rights, owner, size.
    lines = [line.split() for line in listed.splitlines() if line.strip()]
    kept = [" ".join([*line[1:2], *line[3:6], *line[8:]]) for line in lines if len(line) > 8]
    return "\n".join(sorted(line for line in kept if not line.startswith("40"))) + _debugfs(
        image, "cat /etc/hosts"
    )


def _debugfs(image: Path, command: str) -> str:
    done = subprocess.run(
        ["/sbin/debugfs", "-R", command, str(image)], capture_output=True, text=True, check=True
    )
    return done.stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="a guest's disk is root's")
def test_a_disk_gets_files_and_loses_them(kernel: None, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "etc").mkdir(parents=True)
    (tree / "etc/hosts").write_bytes(HOSTS)
    image = tmp_path / "disk.img"
    with image.open("wb") as file:
        file.truncate(16 * 1024 * 1024)
    subprocess.run(["/sbin/mkfs.ext4", "-q", "-d", str(tree), str(image)], check=True)
    before = shown(image)
    executor = ImageFiles((Disk(path=str(image), format="raw"),), name="g1", still_off=off)

    ask = paths_to_read(WANTED, NOTHING)
    fresh: dict[str, Node] = {
        **dict.fromkeys((*ask.files, *ask.folders), MISSING),
        "etc": Folder(empty=False),
        "etc/hosts": File(content=HOSTS, mode=0o644, owner=(0, 0)),
    }
    applied = plan(WANTED, NOTHING, fresh)
    asyncio.run(executor.perform(applied.operations))
    assert _debugfs(image, 'cat "/etc/xenlb/it\'s new"') == "$(touch /canary)\n"
    hosts = "# BEGIN xenlb\n192.0.2.1 delivered\n# END xenlb\n" + HOSTS.decode()
    assert _debugfs(image, "cat /etc/hosts") == hosts
    assert "/etc/hosts" in _debugfs(image, "stat /etc/link")
    assert "Mode:  0600" in _debugfs(image, 'stat "/etc/xenlb/it\'s new"')

    ask = paths_to_read((), applied.manifest)
    present = asyncio.run(executor.read(files=ask.files, folders=ask.folders))
    assert set(present) == {*ask.files, *ask.folders}
    books = present[MANIFEST]
    assert isinstance(books, File)
    assert parse(books.content) == applied.manifest
    removed = plan((), applied.manifest, present)
    assert removed.kept == removed.notes == ()  # so all was read as it was written
    asyncio.run(executor.perform(removed.operations))
    assert shown(image) == before
    checked = subprocess.run(["/sbin/e2fsck", "-fn", str(image)], capture_output=True, check=False)
    assert checked.returncode == 0, checked.stdout
