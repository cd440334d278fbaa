"""The same rounds as test_rounds_uml.py with Xen guests, in the Dom0 of the Xen lab.

A round takes a minute in the emulator: `make soak` plays all, `make test` one, the end that only
the guest tells of. A shutdown by libvirt under load is in test_other_release_xen.py, and the other
ways are played in User-mode Linux.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from tests.lab import rounds
from tests.lab.rounds import Stage, Tally
from tests.lab.stages import xen_stage
from tests.lab.xen import XenLab

ALL = {"virsh shutdown": 20, "poweroff inside": 10, "xenlb shutdown": 10, "virsh reboot": 10}


@pytest.fixture
def lab(xen: XenLab) -> Iterator[XenLab]:
    xen.reset()
    yield xen
    xen.reset()


def nothing_lost(stage: Stage, tallies: Sequence[Tally], label: str) -> None:
    rounds.show(tallies, label)
    for tally in tallies:
        assert (tally.failed, tally.cut) == (0, 0), f"{tally.way}: {tally.explained()}"
        assert set(tally.summary["by_server"]) == {"web1", "web2"}
    rounds.every_drain_ended_empty(stage)


@pytest.mark.soak
@pytest.mark.parametrize("method", ["masquerade", "gatewaying"])
def test_nobody_notices(lab: XenLab, method: str) -> None:
    stage = xen_stage(lab, method, hold=True)
    tallies = [rounds.play(stage, way, count) for way, count in ALL.items()]
    nothing_lost(stage, tallies, f"xenlb, {method}")


def test_nobody_notices_an_end_from_inside(lab: XenLab) -> None:
    stage = xen_stage(lab, "masquerade", hold=True)
    tallies = [rounds.play(stage, "poweroff inside", 1, stays_off=True)]
    nothing_lost(stage, tallies, "xenlb, masquerade")
