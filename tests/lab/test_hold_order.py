"""The hold is the first to stop, under a real systemd and by Debian's insserv for sysvinit."""

import re
import shutil
import subprocess
import tempfile
from ipaddress import ip_address
from pathlib import Path
from uuid import UUID

import pytest

from tests.lab.host import cache_directory
from tests.lab.service import nest
from xenlb.guestside.render.export import write_tree
from xenlb.guestside.render.systems import hold_files
from xenlb.guestside.requirements.hold import NotifyVia, compile_hold
from xenlb.model.guest_side import Init
from xenlb.model.settings import DrainPolicy, Port, ServiceSettings

# Init scripts of mail and web servers, and those of the system that stop it.
PACKAGES = ("insserv", "initscripts", "cron", "exim4-base", "nginx-common", "openssh-server")


def rendered(folder: Path, init: Init) -> None:
    service = ServiceSettings(
        name="mail",
        address=ip_address("192.0.2.10"),
        ports=(Port(number=25),),
        drain=DrainPolicy(timeout=9),
    )
    hold = compile_hold([service], UUID(int=1), tell=NotifyVia.VIRTIO)
    write_tree(hold_files(hold, init, overrides=folder / "none"), folder)


@pytest.mark.parametrize(
    "how",
    [
        "poweroff",
        "reboot",
        "halt",
        # `systemctl kexec` wants a kernel that was loaded before, then does this.
        "start kexec.target --job-mode=replace-irreversibly",
    ],
)
def test_systemd_stops_nothing_before_it(tmp_path: Path, how: str) -> None:
    """No service of multi-user.target and no socket, and the port stays open until the end."""
    if why := nest.missing():
        pytest.skip(why)
    rendered(tmp_path / "files", Init.SYSTEMD)
    nest.run(tmp_path, "shutdown.sh", how, timeout=60)
    shutil.rmtree(tmp_path / "layers", ignore_errors=True)
    console = (tmp_path / "console").read_text()
    assert "ordering cycle" not in console
    said = (tmp_path / "said").read_text().splitlines()
    lines = [line.removeprefix("xenlb-hold: ") for line in said]
    assert [re.sub(r"\d+ s$", "N s", line) for line in lines[:4]] == [
        "mail starts",
        "this guest serves; the host is notified (virtio)",
        "0 connections to port 25; waiting until none is left, at most N s",
        "no connections left after N s",
    ], console[-3000:]
    later = sorted({*lines[4:]})
    assert later == ["mail stops, the port is open", "socket stops"], console[-3000:]


def debian(packages: tuple[str, ...]) -> Path:
    """These packages unpacked, from the cache or fetched: insserv is not installed, as it would
    take part in every later installation of a package."""
    folder = cache_directory() / "sysvinit"
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as work:
        command = ["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", *packages]
        done = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.fail(f"cannot be fetched (try apt-get update):\n{done.stderr}", pytrace=False)
        for package in Path(work).glob("*.deb"):
            subprocess.run(["dpkg-deb", "-x", package, Path(work) / "root"], check=True)
        (Path(work) / "root").rename(folder)
    return folder


@pytest.mark.parametrize("runlevel", ["0", "1", "6"])
def test_sysvinit_stops_nothing_before_it(tmp_path: Path, runlevel: str) -> None:
    """Scripts of one number may run at the same time; it is alone in its own."""
    root = tmp_path / "root"
    shutil.copytree(debian(PACKAGES), root, symlinks=True)
    rendered(root, Init.SYSVINIT)
    for level in "0123456S":
        (root / f"etc/rc{level}.d").mkdir(exist_ok=True)
    done = subprocess.run(
        [
            *(root / "sbin/insserv", "--show-all", "--path", root / "etc/init.d"),
            *("--config", root / "etc/insserv.conf", "--insserv-dir", root / "etc/insserv"),
            *("--override", root / "none"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    stops: dict[int, list[str]] = {}
    starts: dict[int, list[str]] = {}
    for line in done.stdout.splitlines():
        kind, number, levels, script = line.split(":")
        if kind == "K" and runlevel in levels.split():
            stops.setdefault(int(number), []).append(script)
        if kind == "S" and "2" in levels.split():
            starts.setdefault(int(number), []).append(script)
    assert stops.pop(min(stops)) == ["xenlb-hold"], done.stdout + done.stderr
    assert {"exim4", "nginx"} <= {script for scripts in stops.values() for script in scripts}
    before = {s for number, scripts in starts.items() for s in scripts if number < max(starts)}
    assert {"exim4", "nginx", "ssh"} <= before
    assert "xenlb-hold" in starts[max(starts)]
