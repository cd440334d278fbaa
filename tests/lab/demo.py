"""`make demo`: the whole thing once, before the operator's eyes.

Boots a lab, runs the agent in it, starts two guests, sends traffic through the service address,
shuts one guest down and starts it again; shows what the agent says while it happens, and counts
the requests that failed. Nothing is staged: the lines are the agent's own journal.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from tests.lab.agent import LabAgent, ServiceAgent
from tests.lab.host import LabError, LabHost, Result, cache_directory
from tests.lab.netns import NetNs

VIP = "192.0.2.10"
CONFIG = """\
libvirt: {uris: ["URI"], keepalive: 3m}
director: {interface: front0}
services:
  web:
    address: 192.0.2.10
    ports: [80]
    scheduler: rr
    forwarding: masquerade
    servers: [{guest: "web*"}]
"""
RATE = 20  # requests a second, each a new connection, no retry
STAY = 6  # seconds that a guest still serves after it was asked to shut down


class Guest(Protocol):
    name: str

    def start(self) -> Result: ...
    def shutdown(self) -> Result: ...
    def wait_gone(self, timeout: float = ...) -> None: ...


@dataclass
class Stage:
    """A lab with two guests defined and a client before it."""

    lab: LabHost
    agent: LabAgent
    guests: Sequence[Guest]
    client: NetNs


@dataclass
class Show:
    """Prints the steps, and between them what the agent does as it does it."""

    steps: int
    began: float = field(default_factory=time.monotonic)
    _number: int = 0
    _followed: int = 0  # lines of the agent's journal that were shown
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def step(self, text: str) -> None:
        self._number += 1
        self.say(f"\n[{self._number}/{self.steps}] {text}")

    def say(self, text: str) -> None:
        with self._lock:
            print(text, flush=True)

    def progress(self, text: str) -> None:
        self.say(f"    {time.monotonic() - self.began:6.1f} s  {text}")

    def indent(self, text: str) -> None:
        self.say("\n".join(f"    {line}".rstrip() for line in text.strip("\n").splitlines()))

    @contextmanager
    def following(self, agent: LabAgent) -> Iterator[None]:
        """Shows the agent's journal, a line as soon as it is written."""
        log = f"/run/lab/demo-events-{self._number}.log"
        follower = agent.lab.spawn([*agent.command, "events", "--follow"], log=log)
        over = threading.Event()

        def show() -> None:
            while True:
                last = over.wait(0.3)
                text = agent.lab.text(log)
                lines = text[: text.rfind("\n") + 1].splitlines()
                for line in lines[self._followed :]:
                    self.say(f"    agent | {line}")
                self._followed = max(self._followed, len(lines))
                if last:
                    return

        thread = threading.Thread(target=show, name="journal")
        thread.start()
        try:
            yield
        finally:
            time.sleep(0.5)  # the last lines are on their way
            over.set()
            thread.join()
            follower.kill()


@contextmanager
def xen_stage(show: Show) -> Iterator[Stage]:
    from tests.lab.xen import XenLab  # noqa: PLC0415 - only the lab that is asked for

    with XenLab(progress=show.progress, debian_guests=False) as lab:
        show.progress(f"Dom0 is up: {lab.out('uname -sr').strip()} on Xen, libvirt answers")
        guests = [lab.define_guest(f"web{n}", f"10.0.0.1{n}", stop_delay=STAY) for n in (1, 2)]
        agent = ServiceAgent(lab, CONFIG.replace("URI", "xen:///system"))
        yield Stage(lab, agent, guests, lab.client("client", "192.0.2.100"))


@contextmanager
def uml_stage(show: Show) -> Iterator[Stage]:
    from tests.lab.uml import UmlLab  # noqa: PLC0415

    with UmlLab() as lab:
        lab.start_libvirtd()
        show.progress("User-mode Linux is up, libvirt answers")
        guests = [lab.define_lxc_guest(f"web{n}", f"10.0.0.1{n}", stop_delay=STAY) for n in (1, 2)]
        agent = LabAgent(lab, CONFIG.replace("URI", "lxc:///"))
        yield Stage(lab, agent, guests, lab.client("client", "192.0.2.100"))


def play(stage: Stage, show: Show, *, drain_first: bool) -> int:
    """The demonstration proper; how many requests failed."""
    agent, lab = stage.agent, stage.lab
    first, second = stage.guests
    show.step("The agent starts; its configuration:")
    show.indent(lab.text("/etc/xenlb/xenlb.yaml"))
    agent.start(ready=120)
    with show.following(agent):
        show.step("Two guests boot. Each joins when it answers, not before")
        for guest in stage.guests:
            guest.start()
        agent.wait_serving(first.name, second.name, timeout=180)
    show.indent(agent.xenlb("status").out)

    show.step(f"Traffic: {RATE} requests a second to {VIP}:80, each a new connection, no retries")
    load = stage.client.load(f"{VIP}:80", rate=RATE, timeout=10)
    time.sleep(3)
    show.indent(f"$ ipvsadm -Sn\n{agent.table()}")

    with show.following(agent):
        if drain_first:
            show.step(f"xenlb drain {first.name}, then virsh shutdown (LXC tells no request)")
            asked = agent.xenlb("drain", first.name, "--no-wait")
            time.sleep(2)
            first.shutdown()
        else:
            show.step(f"virsh shutdown {first.name}: weight 0 now, removal when it is dead")
            asked = first.shutdown()
        agent.wait_server(first.name, lambda s: s["weight"] == 0)
        show.indent(f"$ ipvsadm -Sn\n{agent.table()}")
        agent.wait_server(first.name, lambda s: not s["in_table"], timeout=120)
        first.wait_gone(120)
        show.indent(f"$ ipvsadm -Sn\n{agent.table()}")
        show.step(f"{first.name} starts again and comes back when it serves")
        first.start()
        agent.wait_serving(first.name, timeout=180)
    show.indent(agent.xenlb("status").out)
    time.sleep(2)
    summary = load.stop()

    show.step("What the client saw")
    served = ", ".join(f"{name} {count}" for name, count in sorted(summary["by_server"].items()))
    show.indent(f"requests {summary['sent']}, failed {summary['failed']}; answered by: {served}")
    timings(agent, first.name, asked, show)
    return int(summary["failed"])


def timings(agent: LabAgent, name: str, asked: Result, show: Show) -> None:
    """When weight 0 came, by the clocks of the agent and of the command that asked."""
    lines = [line for line in agent.events() if "-w 0" in line["text"]]
    if not lines:
        return
    stamp = agent.lab.out(["date", "-d", lines[-1]["time"], "+%s.%N"])
    after = float(stamp) - asked.started
    show.indent(
        f"weight 0 came {after * 1000:.0f} ms after the command began,"
        f" which took {asked.seconds * 1000:.0f} ms itself"
    )
    show.indent(f"the agent's own share: {lines[-1]['text'].rpartition('(')[2].rstrip(')')}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--lab", choices=["xen", "uml"], default="xen")
    lab = parser.parse_args().lab
    show = Show(steps=7)
    stage = {"xen": xen_stage, "uml": uml_stage}[lab]
    show.step(
        "A Xen Dom0 boots in QEMU's emulator (the first time its image is built, some minutes)"
        if lab == "xen"
        else "User-mode Linux boots"
    )
    with ExitStack() as stack:
        at: Stage | None = None
        try:
            at = stack.enter_context(stage(show))
            failed = play(at, show, drain_first=lab == "uml")
        except LabError as error:
            evidence = cache_directory() / "artifacts" / "demo"
            print(f"\nThe demonstration failed: {error}", file=sys.stderr)
            if at is not None:
                at.lab.capture(evidence)
                print(f"What the lab left: {evidence}", file=sys.stderr)
                print("Run it again; if it fails again: make lab-shell, and look.", file=sys.stderr)
            return 1
    print(f"\nDone in {time.monotonic() - show.began:.0f} s, {failed} failed requests.")
    return 0 if failed == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
