"""The unit under a real systemd: start, sandbox, reload, watchdog, restart, stop.

systemd runs as process 1 of its own namespaces, over a copy-on-write image of this machine; no
virtual machine is needed. This kernel need not have IPVS: the agent waits for it, as it should.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.host import CHECKOUT

HERE = Path(__file__).parent / "service"
NAMESPACES = ["--mount", "--pid", "--net", "--uts", "--ipc", "--cgroup", "--propagation=private"]
TRY = (
    "mount -t tmpfs t /mnt && mkdir /mnt/u /mnt/w &&"
    " mount -t overlay -o lowerdir=/,upperdir=/mnt/u,workdir=/mnt/w o /mnt"
)
# CAP_CHOWN, CAP_NET_ADMIN and CAP_NET_RAW, as bits of /proc/PID/status
CAPABILITIES = f"{1 << 0 | 1 << 12 | 1 << 13:016x}"


def _cgroup2() -> Path | None:
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, place, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(place)
    return None


def _missing() -> str:
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


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """What probe.sh found, by its keys."""
    if why := _missing():
        pytest.skip(why)
    folder = tmp_path_factory.mktemp("nest")
    mounted = _cgroup2()
    assert mounted is not None
    group = mounted / f"xenlb-test-{os.getpid()}"
    group.mkdir()
    limit = ["timeout", "--kill-after=5", "180"]
    nest = [str(HERE / "nest.sh"), str(folder), str(CHECKOUT)]
    command = [*limit, "unshare", *NAMESPACES, "--fork", "--kill-child", *nest]
    try:
        with (folder / "console").open("w") as console:
            done = subprocess.run(
                ["sh", "-c", f'echo $$ >{group}/cgroup.procs && exec "$@"', "sh", *command],
                stdout=console,
                stderr=console,
                stdin=subprocess.DEVNULL,
                check=False,
            )
        shown = "\n".join(
            f"--- {path.name}\n{path.read_text()[-3000:]}"
            for path in folder.iterdir()
            if path.is_file()
        )
        assert done.returncode == 0, shown
        print(shown)  # pytest shows it with a failure
        lines = (folder / "said").read_text().splitlines()
        yield dict(line.split("=", 1) for line in lines)
    finally:
        for below in sorted(group.rglob("*/"), reverse=True):
            if below.is_dir():
                below.rmdir()
        group.rmdir()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("start", "0 active notify"),
        ("caps", f"{CAPABILITIES} {CAPABILITIES}"),
        ("confined", "1 2"),
        ("socket", "660 root:libvirt"),
        ("address", "there"),
        ("status", "1"),
        ("member_reads", "1"),
        ("member_reloads", "5"),
        ("reload", "0 active"),
        ("watched", "0 same"),
        ("stuck", "1 active"),
        ("killed", "2 active"),
        ("other_agent", "1"),
        ("stop", "0 success"),
        ("kept", "address state"),
        ("wrong_configuration", "failed 3 0"),
    ],
)
def test_the_service(said: dict[str, str], key: str, value: str) -> None:
    assert said[key].strip() == value
