"""Rounds of taking containers with a real systemd down under load, each way a shutdown can begin:
no request may fail, no download may be cut. rounds.py tells the details; a table is printed.

XENLB_SOAK=1 plays all rounds; without, of the second method one shutdown and one reboot. Side by
side with what operators use without xenlb: `make bench ONLY=drain`.
"""

from __future__ import annotations

import pytest

from tests.lab import rounds
from tests.lab.stages import uml_stage
from tests.lab.uml import UmlLab
from tests.soak import SOAK

ALL = {"virsh shutdown": 20, "poweroff inside": 10, "xenlb shutdown": 10, "virsh reboot": 10}
ROUNDS = {
    "masquerade": ALL if SOAK else {**dict.fromkeys(ALL, 1), "virsh shutdown": 2},
    "gatewaying": ALL if SOAK else {"virsh shutdown": 1, "virsh reboot": 1},
}


@pytest.mark.parametrize("method", list(ROUNDS))
def test_nobody_notices(uml: UmlLab, method: str) -> None:
    uml.reset()
    stage = uml_stage(uml, method, hold=True)
    tallies = [rounds.play(stage, way, count) for way, count in ROUNDS[method].items()]
    rounds.show(tallies, f"xenlb, {method}")
    for tally in tallies:
        assert (tally.failed, tally.cut) == (0, 0), f"{tally.way}: {tally.explained()}"
        assert set(tally.summary["by_server"]) == {"web1", "web2"}
    rounds.every_drain_ended_empty(stage)
