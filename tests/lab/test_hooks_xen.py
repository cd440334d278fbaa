"""What a call of the hook script costs in a real Dom0, where `make install` has put it.

Which calls libvirt makes is in test_agent_xen.py. Times are printed (-s), never asserted.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.timings import Figures
from tests.lab.xen import Guest, XenLab

HOOK = "/etc/libvirt/hooks/libxl.d/xenlb"
CALLS = 20
# Microseconds of each call of a command, a line each; dash has no clock, and date is a process.
TIMED = """
for ((n = 0; n < $1; n++)); do
    begun=$EPOCHREALTIME
    "${@:2}" </run/lab/one.xml
    ended=$EPOCHREALTIME
    echo $((${ended/./} - ${begun/./}))
done
"""


@pytest.fixture(scope="module")
def lab(xen: XenLab) -> Iterator[XenLab]:
    xen.reset()
    yield xen
    xen.reset()


@pytest.fixture(scope="module")
def guest(lab: XenLab) -> Guest:
    return lab.define_guest("one", "10.0.0.11", metadata=f"<x xmlns='urn:x'>{'a' * 100_000}</x>")


@pytest.mark.soak
def test_what_a_call_costs(lab: XenLab, guest: Guest) -> None:
    """Alone, with the XML of a guest that runs; libvirt's own share in a call is not in it."""
    if guest.alive():
        guest.destroy()
    lab.start(guest)
    lab.run("virsh -q -c xen:///system dumpxml one >/run/lab/one.xml")
    lab.write("/run/lab/nothing", "#!/bin/sh\nexit 0\n", 0o755)
    # The script's own work, many times in one process: all but the start of a shell.
    body = lab.text(HOOK).replace("exit 0", "continue")
    loop = f"for n in $(seq {CALLS}); do\n{{\n{body}\n}} </run/lab/one.xml\ndone\n"
    lab.write("/run/lab/libxl.d/xenlb", loop)
    call = [HOOK, "one", "started", "begin", "-"]
    figures = Figures()

    def timed(name: str, *command: str, share: int = 1) -> None:
        timer = ["bash", "-c", TIMED, "bash", "1" if share > 1 else str(CALLS), *command]
        for line in lab.out(timer, timeout=300).split():
            figures.note(name, int(line) / 1e6 / share)

    timed("a shell script that does nothing", "/run/lab/nothing")
    lab.run("rm -rf /run/xenlb; mkdir -p /run/xenlb")
    timed("the hook, no agent", *call)
    lab.run(": >/run/xenlb/hooks")
    timed("the hook", *call)
    timed("its own work", "/bin/sh", "/run/lab/libxl.d/xenlb", *call[1:], share=CALLS)
    print(f"\nxen: one call of the hook, in Dom0\n{figures.table()}")
    lines = lab.text("/run/xenlb/hooks").splitlines()
    told = f"libxl\tstarted\tbegin\t{guest.uuid}\t{guest.domid()}\tone"
    assert lines == [told] * (2 * CALLS)
