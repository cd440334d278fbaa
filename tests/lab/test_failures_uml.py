"""Servers that die: how soon xenlb, keepalived and ldirectord take them out, side by side.

failures.py tells how it is measured. The tables are printed, and kept as failures-CHECK.txt where
the tests leave what they have to show.
"""

from __future__ import annotations

import pytest

from tests.lab.failures import RATE, XENLB, Arena
from tests.lab.host import artifacts_directory
from tests.lab.uml import UmlLab

ROUNDS = 6
# What a check of this type can notice.
DEATHS = {
    "tcp": ["process killed", "packets dropped", "virsh suspend"],
    "http": ["process killed", "process stopped"],
}
# Who is held against whom: the ones that look again before they take a server out, and those that
# take it out for one failed check.
PEERS = {"xenlb": ["keepalived"], "xenlb, fall: 1": ["keepalived, retry 0", "ldirectord"]}
# Requests. The checks of all run at the same interval, 1 s, but not at the same moment: a death may
# come just before one's and just after another's; and a stall of this lab's one CPU may do the same
# once more. Half of the requests of this time go to the dead server.
LUCK = 2 * RATE / 2


@pytest.mark.soak
@pytest.mark.parametrize("check", list(DEATHS))
def test_the_dead_leave_no_later_than_with_its_peers(uml: UmlLab, check: str) -> None:
    uml.reset()
    outcome = Arena(uml, check).play(DEATHS[check], ROUNDS)
    table = outcome.table()
    print(f"\n{check} checks\n{table}", flush=True)
    artifacts_directory().mkdir(parents=True, exist_ok=True)
    (artifacts_directory() / f"failures-{check}.txt").write_text(table + "\n")
    for each in outcome.rounds:
        for name in XENLB:
            assert each.out[name] is not None, f"{each.death}: {name} left it in"
            assert each.back[name] is not None, f"{each.death}: {name} did not take it back"
    for death in DEATHS[check]:
        for name, peers in PEERS.items():
            for peer in peers:
                mine, theirs = outcome.failed(name, death), outcome.failed(peer, death)
                assert mine <= theirs + LUCK * ROUNDS, f"{death}: {name} {mine}, {peer} {theirs}"
