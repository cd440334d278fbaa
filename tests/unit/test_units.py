"""The systemd units: how exposed they are, by systemd's own measure, and their limits."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

UNITS = Path(__file__).parents[2] / "etc" / "systemd"
# A unit that is root, with CAP_NET_ADMIN and CAP_NET_RAW in the host's network, has 2.4 at least.
MOST = {"xenlb": 3.1, "xenlb-drain": 1.0}


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not here")
@pytest.mark.parametrize("unit", MOST)
def test_exposure(unit: str) -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", UNITS / f"{unit}.service"],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    if found is None:
        pytest.skip(f"this systemd-analyze has no --offline: {done.stderr.strip()[:200]}")
    assert float(found[1]) <= MOST[unit], done.stdout


@pytest.mark.parametrize("unit", MOST)
def test_limits(unit: str) -> None:
    text = (UNITS / f"{unit}.service").read_text()
    assert re.search(r"^MemoryMax=\d+M$", text, re.MULTILINE)
    assert re.search(r"^TasksMax=\d+$", text, re.MULTILINE)


def test_a_wrong_configuration_is_not_tried_each_second() -> None:
    """The status of a configuration that is wrong, or that root may not read."""
    text = (UNITS / "xenlb.service").read_text()
    assert re.search(r"^RestartPreventExitStatus=3$", text, re.MULTILINE)
