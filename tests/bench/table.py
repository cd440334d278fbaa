"""1,000 services with 10 servers each: xenlb against ipvsadm, in a real kernel.

    make bench ONLY=table

boots the User-mode Linux lab, runs this program in it (`--here`), and prints medians. Whole
processes are timed, as an operator would wait for them, of xenlb as `make install` puts it on a
machine; and beside them the parts of ours that speak to the kernel. After every change the table
is read with `ipvsadm -Sn` and must be the one that was asked for. Noise of the machine is shown as
the least and the most of all runs.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.ipvsadm.parse import parse
from tests.lab.host import CHECKOUT, venv_directory
from tests.lab.uml import UmlLab
from xenlb.ipvs import text
from xenlb.ipvs.diff import Owned, diff
from xenlb.ipvs.kernel import Kernel
from xenlb.ipvs.op import Op, SetServer
from xenlb.ipvs.table import Table

RESTORE = "ipvsadm --restore"
SAVE = "ipvsadm -Sn"
WEIGHT = "ipvsadm -e (one weight)"
# What is timed, what it is held against, and the ratio it should at least have.
ROWS = [
    (RESTORE, None, None),
    ("xenlb apply", RESTORE, 5.0),
    ("  its batch: Kernel.apply()", RESTORE, None),
    (SAVE, None, None),
    ("xenlb apply, nothing to do", SAVE, 1.0),
    ("xenlb plan, nothing to do", SAVE, 1.0),
    ("  its reading: Kernel.read()", SAVE, None),
    ("  its difference: diff()", SAVE, None),
    (WEIGHT, None, None),
    ("  one weight: Kernel.apply()", WEIGHT, None),
]


def address(first: int, number: int, last: int) -> str:
    return f"{first}.{number // 250}.{number % 250 + 1}.{last}"


def rules(services: int, servers: int) -> str:
    """The table as ipvsadm saves and restores it; every server is another machine."""
    lines = []
    for service in range(services):
        vip = f"-t {address(198, service, 1)}:80"
        lines.append(f"-A {vip} -s wlc")
        lines += [
            f"-a {vip} -r {address(10, service, server + 1)}:80 -m -w 1"
            for server in range(servers)
        ]
    return "".join(f"{line}\n" for line in lines)


def configuration(services: int, servers: int) -> str:
    """The same table as xenlb's configuration."""
    lines = ["director: {interface: lo, addresses: leave, sysctls: check}", "services:"]
    for service in range(services):
        lines += [
            f"  s{service}:",
            f"    address: {address(198, service, 1)}",
            "    ports: [80]",
            "    forwarding: masquerade",
            "    check: none",
            "    servers:",
        ]
        lines += [f"      - host: {address(10, service, server + 1)}" for server in range(servers)]
    return "".join(f"{line}\n" for line in lines)


class Bench:
    """Runs in the lab, in a directory of its own."""

    def __init__(self, directory: Path, command: list[str], services: int, servers: int) -> None:
        self.rules = directory / "rules"
        self.rules.write_text(rules(services, servers))
        self.configuration = directory / "xenlb.yaml"
        self.configuration.write_text(configuration(services, servers))
        self.state = directory / "state.json"
        self.want = parse(self.rules.read_text())
        self.xenlb = command
        self.seconds: dict[str, list[float]] = {}

    def time(self, name: str, work: Callable[[], object]) -> None:
        began = time.perf_counter()
        work()
        self.seconds.setdefault(name, []).append(time.perf_counter() - began)

    def process(self, name: str, *words: str, stdin: Path | None = None) -> None:
        """Time one process; what it prints goes into a pipe, as into any other program."""
        with (stdin or Path(os.devnull)).open() as given:
            began = time.perf_counter()
            done = subprocess.run(words, stdin=given, capture_output=True, check=False)
            took = time.perf_counter() - began
        if done.returncode:
            sys.exit(f"{' '.join(words)}: exit status {done.returncode}\n{done.stderr.decode()}")
        self.seconds.setdefault(name, []).append(took)

    def clear(self) -> None:
        subprocess.run(["ipvsadm", "-C"], check=True)
        self.state.unlink(missing_ok=True)

    def check(self, after: str) -> None:
        saved = subprocess.run(["ipvsadm", "-Sn"], stdout=subprocess.PIPE, text=True, check=True)
        if saved.stdout != text.dump(self.want):
            sys.exit(f"after {after} the table is not the one that was asked for")

    def round(self) -> None:
        ours = [*self.xenlb, "--config", str(self.configuration)]
        state = ["--state", str(self.state)]
        self.clear()
        self.process(RESTORE, "ipvsadm", "--restore", stdin=self.rules)
        self.check(RESTORE)
        self.clear()
        self.process("xenlb apply", *ours, "apply", *state)
        self.check("xenlb apply")
        self.process(SAVE, "ipvsadm", "-Sn")
        self.process("xenlb apply, nothing to do", *ours, "apply", *state)
        self.process("xenlb plan, nothing to do", *ours, "plan", *state)
        self.check("xenlb plan")
        key, entry = next(iter(self.want.entries.items()))
        server = next(iter(entry.servers.values()))
        lighter = SetServer(service=key, server=replace(server, weight=0))
        self.process(WEIGHT, "ipvsadm", *str(lighter).split())
        self.parts(lighter, SetServer(service=key, server=server))

    def parts(self, lower: Op, higher: Op) -> None:
        with Kernel() as kernel:
            self.time("  one weight: Kernel.apply()", lambda: kernel.apply([higher]))
            self.check("the change of a weight")
            self.clear()
            ops = diff(self.want, Table(), Owned())
            self.time("  its batch: Kernel.apply()", lambda: kernel.apply(ops))
            self.check("the batch")
            have = kernel.read(counters=False).table
            self.time("  its reading: Kernel.read()", lambda: kernel.read(counters=False))
            self.time("  its difference: diff()", lambda: diff(self.want, have, Owned()))
            kernel.apply([lower])


def here(command: list[str], services: int, servers: int, rounds: int) -> None:
    directory = Path("/run/xenlb-bench")
    directory.mkdir(exist_ok=True)
    bench = Bench(directory, command, services, servers)
    # The first of all loads modules and fills the page cache; it is not counted.
    bench.round()
    bench.seconds.clear()
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
        bench.round()
    bench.clear()
    print(json.dumps(bench.seconds))


def show(seconds: dict[str, list[float]], services: int, servers: int) -> None:
    rounds = len(seconds[RESTORE])
    print(f"{services:,} services with {servers} servers each; median of {rounds} runs, in ms")
    print(f"{'':32}{'median':>9}{'least':>9}{'most':>9}  against ipvsadm")
    medians = {name: statistics.median(runs) for name, runs in seconds.items()}
    for name, peer, goal in ROWS:
        runs = seconds[name]
        numbers = (medians[name], min(runs), max(runs))
        line = f"{name:32}" + "".join(f"{1000 * number:9.1f}" for number in numbers)
        if peer is not None:
            ratio = medians[peer] / medians[name]
            line += f"  {ratio:,.2f} × as fast"
            if goal is not None:
                line += f" (goal {goal:g}{', missed' if ratio < goal else ''})"
        print(line)


def install(root: str) -> list[str]:
    """Installs xenlb below `root`; the command, as the launcher there runs it."""
    subprocess.run(
        [sys.executable, "tools/planner.py", f"--venv={venv_directory()}", f"--destdir={root}"],
        cwd=CHECKOUT,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return [f"{root}/usr/local/lib/xenlb/bin/python", "-I", "-m", "xenlb.cli"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--here", action="store_true", help="as root, in the lab: measure")
    parser.add_argument("--services", type=int, default=1000)
    parser.add_argument("--servers", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--command", default="xenlb", help="with --here: the words before the verb")
    options = parser.parse_args()
    if options.here:
        here(options.command.split(), options.services, options.servers, options.rounds)
        return
    words = [f"--{name}={getattr(options, name)}" for name in ("services", "servers", "rounds")]
    print("table: booting the lab and running the rounds (a minute)", flush=True)
    with TemporaryDirectory(prefix="xenlb-bench-") as root, UmlLab() as lab:
        words.append(f"--command={' '.join(install(root))}")
        done = lab.run(
            [f"{venv_directory()}/bin/python", "-m", "tests.bench.table", "--here", *words],
            cwd=str(CHECKOUT),
            timeout=1800,
        )
    print("load of the machine:", *(f"{load:.1f}" for load in os.getloadavg()))
    show(json.loads(done.out), options.services, options.servers)


if __name__ == "__main__":
    main()
