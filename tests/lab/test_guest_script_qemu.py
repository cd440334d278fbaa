"""A QEMU guest makes itself of the settings that its host gives as a fw_cfg file, at boot."""

from __future__ import annotations

import subprocess
from pathlib import Path

import xenlb.guestside.render
from tests.lab.needed import lacking
from tests.lab.test_guest_script_uml import V4, V6, compiled
from tests.lab.uml import qemu_image
from xenlb.ipvs.table import Forwarding

SCRIPT = Path(xenlb.guestside.render.__file__).parent / "templates" / "guest.sh"
BOOT = 300.0  # seconds; 4 on a quiet machine
INIT = """\
#!/bin/busybox sh
/bin/busybox mkdir -p /sbin /usr/bin /usr/sbin /run
/bin/busybox --install -s
mount -t proc proc /proc
mount -t sysfs sysfs /sys
while read -r module; do insmod "/modules/$module"; done </modules/order
ip link set lo up
sh /guest.sh up
echo "up: $?"
sh /guest.sh status
echo "status: $?"
ip -o addr show dev lo
cd /proc/sys/net/ipv4/conf/all
echo "arp: $(cat arp_ignore) $(cat arp_announce)"
poweroff -f
"""


def cpio(folder: Path, archive: Path) -> bytes:
    """An archive that the kernel unpacks over the one before it."""
    names = "".join(f"{path.relative_to(folder)}\n" for path in sorted(folder.rglob("*")))
    command = ["cpio", "--quiet", "-o", "-H", "newc", "-R", "0:0", "-F", str(archive)]
    subprocess.run(command, cwd=folder, input=names, text=True, check=True)
    return archive.read_bytes()


def test_settings_from_fw_cfg(tmp_path: Path) -> None:
    if missing := qemu_image.missing():
        lacking(f"QEMU guests need: {', '.join(missing)}")
    image = qemu_image.build()
    files = tmp_path / "files"
    files.mkdir()
    (files / "guest.sh").write_bytes(SCRIPT.read_bytes())
    (files / "own-init").write_text(INIT)
    (files / "own-init").chmod(0o755)
    initramfs = tmp_path / "initramfs"
    initramfs.write_bytes(image.initramfs.read_bytes() + cpio(files, tmp_path / "cpio"))
    settings = tmp_path / "settings"
    direct = [
        compiled(vip, own, forwarding=Forwarding.GATEWAYING)
        for vip, own in ((V4, "10.0.0.51"), (V6, "fd00:10::51"))
    ]
    settings.write_text("".join(direct))
    done = subprocess.run(
        [
            *("setpriv", "--pdeathsig", "KILL", "--", "qemu-system-x86_64", "-accel", "tcg"),
            *("-m", "256", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
            *("-serial", "stdio", "-kernel", image.kernel, "-initrd", initramfs),
            *("-append", "console=ttyS0 quiet rdinit=/own-init panic=-1"),
            *("-fw_cfg", f"name=opt/org.xenlb/settings,file={settings}"),
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=BOOT,
        check=False,
    )
    said = done.stdout.splitlines()
    assert "up: 0" in said, done.stdout + done.stderr
    assert "status: 0" in said, done.stdout
    for address in (f"{V4}/32", f"{V6}/128"):
        assert any(f" {address} " in line for line in said), done.stdout
    assert "arp: 1 2" in said, done.stdout
