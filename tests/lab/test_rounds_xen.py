"""The same rounds as test_rounds_uml.py with Xen guests, in the Dom0 of the Xen lab.

XENLB_SOAK=1 plays all rounds; without, a request that Xen shows and one that only the guest tells,
of the first method: a round takes a minute in the emulator, and the other ways are played in
User-mode Linux.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.lab import rounds
from tests.lab.stages import xen_stage
from tests.lab.xen import XenLab

SOAK = os.environ.get("XENLB_SOAK") == "1"
ALL = {"virsh shutdown": 20, "poweroff inside": 10, "xenlb shutdown": 10, "virsh reboot": 10}
SHORT = {"masquerade": {"virsh shutdown": 1, "poweroff inside": 1}}
ROUNDS = dict.fromkeys(("masquerade", "gatewaying"), ALL) if SOAK else SHORT


@pytest.fixture
def lab(xen: XenLab) -> Iterator[XenLab]:
    xen.reset()
    yield xen
    xen.reset()


@pytest.mark.parametrize("method", list(ROUNDS))
def test_nobody_notices(lab: XenLab, method: str) -> None:
    stage = xen_stage(lab, method, hold=True)
    tallies = [rounds.play(stage, way, count) for way, count in ROUNDS[method].items()]
    rounds.show(tallies, f"xenlb, {method}")
    for tally in tallies:
        assert (tally.failed, tally.cut) == (0, 0), f"{tally.way}: {tally.explained()}"
        assert set(tally.summary["by_server"]) == {"web1", "web2"}
    rounds.every_drain_ended_empty(stage)
