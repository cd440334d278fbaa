"""The unit under a real systemd: start, sandbox, reload, watchdog, restart, stop.

systemd runs as process 1 of its own namespaces, over a copy-on-write image of this machine; no
virtual machine is needed. This kernel need not have IPVS: the agent waits for it, as it should.
"""

import shutil
from collections.abc import Iterator

import pytest

from tests.lab.host import CHECKOUT
from tests.lab.service import nest

# CAP_CHOWN, KILL, SETGID, SETUID, NET_ADMIN and NET_RAW, as bits of /proc/PID/status
CAPABILITIES = f"{1 << 0 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 12 | 1 << 13:016x}"


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """What probe.sh found, by its keys."""
    if why := nest.missing():
        pytest.skip(why)
    folder = tmp_path_factory.mktemp("nest")
    try:
        status = nest.run(folder, "nest.sh", str(CHECKOUT), timeout=180)
        shown = "\n".join(
            f"--- {path.name}\n{path.read_text()[-3000:]}"
            for path in folder.iterdir()
            if path.is_file()
        )
        assert status == 0, shown
        print(shown)  # pytest shows it with a failure
        lines = (folder / "said").read_text().splitlines()
        yield dict(line.split("=", 1) for line in lines)
    finally:
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
        ("last_good", "active 1"),
        ("wrong_configuration", "failed 3 0"),
        ("exec_check", "False /bin/sh says CRITICAL: 65534 0 0"),
        ("exec_check_hangs", "ended"),
        ("sysctls", "of the network alone"),
    ],
)
def test_the_service(said: dict[str, str], key: str, value: str) -> None:
    assert said[key].strip() == value
