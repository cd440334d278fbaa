"""Booting systemd in namespaces of its own, by one of the scripts beside this file."""

import os
import subprocess
from pathlib import Path

HERE = Path(__file__).parent
NAMESPACES = ["--mount", "--pid", "--net", "--uts", "--ipc", "--cgroup", "--propagation=private"]
TRY = (
    "mount -t tmpfs t /mnt && mkdir /mnt/u /mnt/w &&"
    " mount -t overlay -o lowerdir=/,upperdir=/mnt/u,workdir=/mnt/w o /mnt"
)


def _cgroup2() -> Path | None:
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, place, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(place)
    return None


def missing() -> str:
    """Why systemd cannot be nested here; "" where it can."""
    if os.getuid() != 0:
        return "root is needed to nest a systemd"
    if not Path("/lib/systemd/systemd").exists():
        return "there is no systemd"
    if _cgroup2() is None:
        return "no cgroup2 is mounted"
    tried = subprocess.run(
        ["unshare", *NAMESPACES, "--fork", "sh", "-c", TRY],
        capture_output=True,
        text=True,
        check=False,
    )
    return f"this machine refuses it: {tried.stderr.strip()}" if tried.returncode else ""


def run(folder: Path, script: str, *arguments: str, timeout: int) -> int:
    """Runs `SCRIPT FOLDER ARGUMENTS...` there until its systemd has ended; its exit status. What
    it says on the console is in FOLDER/console."""
    mounted = _cgroup2()
    assert mounted is not None
    group = mounted / f"xenlb-test-{os.getpid()}"
    group.mkdir()
    limit = ["timeout", "--kill-after=5", str(timeout)]
    nest = [str(HERE / script), str(folder), *arguments]
    command = [*limit, "unshare", *NAMESPACES, "--fork", "--kill-child", *nest]
    try:
        with (folder / "console").open("w") as console:
            return subprocess.run(
                ["sh", "-c", f'echo $$ >{group}/cgroup.procs && exec "$@"', "sh", *command],
                stdout=console,
                stderr=console,
                stdin=subprocess.DEVNULL,
                check=False,
            ).returncode
    finally:
        for below in sorted(group.rglob("*/"), reverse=True):
            if below.is_dir():
                below.rmdir()
        group.rmdir()
