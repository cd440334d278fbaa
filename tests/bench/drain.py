"""What clients lose when a guest is taken down: xenlb, and what operators use without it.

    make bench ONLY=drain

In the User-mode Linux lab, Debian guests with systemd, under the load of tests/lab/rounds.py: 100
requests a second, each a new connection without retry, and five downloads of 10 s. `virsh shutdown`
of one guest after the other, ROUNDS times. The peers are in tests/lab/peers.py.

xenlb's row is that of scheduler rr; the rows by scheduler are of those that keep a client, or a
destination, at one server.
"""

import sys
from collections.abc import Callable
from functools import partial

from tests.lab import peers, rounds
from tests.lab.rounds import VIP, Stage
from tests.lab.stages import ADDRESSES, NAMES, uml_stage, uml_stage_of_a_peer
from tests.lab.uml import UmlLab

ROUNDS = 5
DOWN = 10.0  # seconds that a guest stays off: longer than keepalived takes to notice
WAY = "virsh shutdown"
SCHEDULERS = ("sh", "mh", "dh", "lblc")


def by_keepalived(lab: UmlLab, method: str) -> Stage:
    lab.start_libvirtd()
    peers.sysctls(lab, method)
    peers.keepalived(lab, {VIP: peers.TCP_CHECK}, method=method, addresses=ADDRESSES)
    return uml_stage_of_a_peer(lab, method)


def by_hook(lab: UmlLab, method: str) -> Stage:
    peers.sysctls(lab, method)
    guests = dict(zip(NAMES, ADDRESSES, strict=True))
    peers.hook(lab, vip=VIP, method=method, guests=guests, driver="lxc")
    lab.start_libvirtd()
    return uml_stage_of_a_peer(lab, method)


def with_xenlb(lab: UmlLab, method: str, *, scheduler: str = "rr") -> Stage:
    return uml_stage(lab, method, hold=True, scheduler=scheduler)


def without_hold(lab: UmlLab, method: str) -> Stage:
    return uml_stage(lab, method, hold=False)


CONTENDERS: dict[str, Callable[[UmlLab, str], Stage]] = {
    "xenlb": with_xenlb,
    **{f"xenlb, {name}": partial(with_xenlb, scheduler=name) for name in SCHEDULERS},
    "xenlb, hold removed": without_hold,
    "keepalived, TCP_CHECK 1 s": by_keepalived,
    "ipvsadm -d in libvirt's hook": by_hook,
}


def main() -> int:
    print(rounds.HEAD, flush=True)
    for method in ("masquerade", "gatewaying"):
        for label, setting in CONTENDERS.items():
            with UmlLab() as lab:
                tally = rounds.play(
                    setting(lab, method), WAY, ROUNDS, down=DOWN, said=lambda _: None
                )
                print(tally.row(f"{label}, {method}"), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
