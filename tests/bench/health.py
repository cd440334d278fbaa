"""What checks cost: 5,000 servers asked every 5 s whether they accept connections.

    make bench ONLY=health

First on this machine's own kernel, over loopback: the share of a core that the runner of xenlb
takes, the kernel's part of its connections included (also what the kernel does for the server at
the other end, which on loopback is done in the same breath). The goal is a quarter of a core.

Then as many servers that have all passed at once, and are let in; and then do not answer any more.
Both times: how long it takes from a guest's being asked to shut down until the kernel's batch is on
its way. The table is the tests' fake, as this kernel may have no IPVS.

Then beside keepalived's TCP_CHECK, in the User-mode Linux lab. Its kernel counts a process's time
in ticks of 10 ms, by which who wakes at a tick and is done before the next costs nothing; so it is
looked at from outside: the time that the whole lab takes, with server and all, less what it takes
at rest. System calls cost many times there what they cost elsewhere.
"""

import argparse
import asyncio
import json
import logging
import os
import resource
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ipaddress import IPv4Address
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import UUID

from tests.fakes.kernel import FakeKernel
from tests.lab import peers
from tests.lab.host import CHECKOUT, venv_directory
from tests.lab.uml import UmlLab
from xenlb import clock
from xenlb.agent.loop import Agent
from xenlb.health.runner import HealthRunner
from xenlb.ipvs.op import Op, OpFailed, SetServer
from xenlb.ipvs.table import IPAddress
from xenlb.model.domain import DomainDescription, DomainState, GuestId, RequestKind
from xenlb.model.events import GuestsListed, ProbeFinished, ShutdownRequested
from xenlb.model.health import Health, apply_result
from xenlb.model.settings import Check, Member, Port, ServiceSettings, Settings
from xenlb.model.state import State
from xenlb.model.target import Target

TARGETS = 5000
INTERVAL = 5.0
SERVICES = 500
WARM_UP = 15.0  # seconds, three rounds: until the first herd has dissolved
MEASURED = 20.0
REQUESTS = 100
ENTERING = 2.0  # seconds, or less
HANGING = 30.0
GOAL = 0.25
CHECK = Check(interval=INTERVAL)
LOOPBACK = IPv4Address("127.1.0.0")
GUESTS = IPv4Address("10.0.0.1")
# In the lab: addresses that the name space of the server has on its lo, all of them.
BEHIND = IPv4Address("10.1.0.0")
PORT = 8000
KEEPALIVED_CHECK = "TCP_CHECK { connect_timeout 3 }"


# The servers --------------------------------------------------------------------------------------


def serve(listener: socket.socket) -> None:
    """Accepts and hangs up, for good."""
    while True:
        connection, _ = listener.accept()
        connection.close()


@contextmanager
def server_beside() -> Iterator[int]:
    """The port of a server in a process of its own, on another core if there is one."""
    with socket.create_server(("0.0.0.0", 0), backlog=4096) as listener:
        port = int(listener.getsockname()[1])
        pid = os.fork()
        if pid == 0:
            cores = sorted(os.sched_getaffinity(0))
            os.sched_setaffinity(0, {cores[-1]})
            serve(listener)
    try:
        yield port
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@contextmanager
def deaf_server() -> Iterator[int]:
    """The port of a listener whose queue is full: the kernel drops whoever knocks."""
    with socket.create_server(("0.0.0.0", 0), backlog=0) as listener:
        where = ("127.0.0.1", int(listener.getsockname()[1]))
        knocking = []
        for _ in range(3):
            client = socket.socket()
            client.setblocking(False)
            client.connect_ex(where)
            knocking.append(client)
        time.sleep(0.1)
        yield where[1]
        for client in knocking:
            client.close()


# xenlb --------------------------------------------------------------------------------------------


async def probe_for_good(base: IPv4Address, port: int) -> None:
    """The runner, and a model of nothing but verdicts; how many are up goes to standard output."""
    emitted: list[ProbeFinished] = []
    runner = HealthRunner(emitted.append, clock.now)
    now = clock.now()
    health: dict[Target, Health] = {
        Target(check=CHECK, address=base + number, port=port): Health(valid_from=now)
        for number in range(1, TARGETS + 1)
    }
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(runner.run())
        runner.set_targets(dict(health))
        while True:
            await asyncio.sleep(1)
            for result in emitted:
                health[result.target] = apply_result(health[result.target], result, CHECK)
            emitted.clear()
            runner.set_targets(dict(health))
            print(sum(each.up is True for each in health.values()), flush=True)


def on_loopback() -> tuple[float, float]:
    """Shares of a core: in the program, and in the kernel for it."""
    with server_beside() as port:
        command = [sys.executable, "-m", "tests.bench.health", "--probe", str(LOOPBACK), str(port)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                os.sched_setaffinity(process.pid, {min(os.sched_getaffinity(0))})
                time.sleep(WARM_UP)
                began, before = time.monotonic(), _times(process.pid)
                time.sleep(MEASURED)
                took = time.monotonic() - began
                user, system = (
                    (after - earlier) / took
                    for after, earlier in zip(_times(process.pid), before, strict=True)
                )
            finally:
                process.kill()
            said = process.stdout.read().split() if process.stdout else []
    if said[-1:] != [str(TARGETS)]:
        sys.exit(f"only {said[-1:]} of {TARGETS} servers were up")
    return user, system


def _times(pid: int) -> tuple[float, float]:
    """Seconds of CPU of a process so far, in user and kernel mode."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    tick = os.sysconf("SC_CLK_TCK")
    return int(fields[11]) / tick, int(fields[12]) / tick


class Batches(FakeKernel):
    """Notes when each server was to be quiesced."""

    def __init__(self) -> None:
        super().__init__()
        self.quiesced: dict[IPAddress, float] = {}

    def apply(self, ops: Sequence[Op]) -> tuple[OpFailed, ...]:
        now = clock.now()
        for op in ops:
            if isinstance(op, SetServer) and op.server.weight == 0:
                self.quiesced[op.server.key.address] = now
        return super().apply(ops)


def world(port: int) -> tuple[Settings, GuestsListed]:
    """Guests in a service of their own, without a check; and 5,000 hosts in 500 services."""
    uri = "xen:///system"
    vip = IPv4Address("192.0.2.0")
    guests = ServiceSettings(
        name="guests",
        address=vip,
        ports=(Port(number=25),),
        checks=(),
        servers=tuple(Member(guest=f"g{n}", address=GUESTS + n) for n in range(REQUESTS)),
    )
    each = TARGETS // SERVICES
    hosts = tuple(
        ServiceSettings(
            name=f"s{number}",
            address=vip + 1 + number,
            ports=(Port(number=port),),
            checks=(CHECK,),
            servers=tuple(Member(host=LOOPBACK + 1 + number * each + n) for n in range(each)),
        )
        for number in range(SERVICES)
    )
    described = tuple(
        DomainDescription(
            guest=GuestId(uri=uri, uuid=UUID(int=n + 1)),
            name=f"g{n}",
            domain_state=DomainState.RUNNING,
            incarnation=n,
        )
        for n in range(REQUESTS)
    )
    listed = GuestsListed(at=clock.now(), requested_at=clock.now(), uri=uri, guests=described)
    return Settings(uris=(uri,), services=(guests, *hosts)), listed


async def quiesce(port: int) -> dict[str, list[float]]:
    """Seconds from each request until the batch: while all targets are let in, while they hang."""
    kernel = Batches()
    with TemporaryDirectory(prefix="xenlb-bench-") as folder:
        agent = Agent(
            config=Path(folder) / "none",
            state_file=Path(folder) / "state.json",
            socket=Path(folder) / "control.sock",
            kernel=kernel,
            reader=kernel,
        )
        runner = HealthRunner(agent.emit, clock.now)

        def follow(_: State, state: State) -> None:
            runner.set_targets(state.remembered.health)

        agent.on_state_change = follow
        settings, listed = world(port)
        agent.configure(settings)
        agent.emit(listed)
        tasks = [asyncio.create_task(agent.run())]
        await agent.first_sync_done.wait()
        now, let_in = clock.now(), asyncio.get_running_loop().create_future()
        *others, last = [
            ProbeFinished(at=now, target=target, started=now, up=True, detail="was up")
            for target in agent.state.remembered.health
        ]
        for up in others:
            agent.emit(up)
        agent.emit(last, let_in)
        half = REQUESTS // 2
        entering = await _requests(agent, kernel, listed.guests[:half], ENTERING / half, let_in)
        await let_in
        tasks.append(asyncio.create_task(runner.run()))
        # All through the failures: three timeouts of 3 s for each, 4,096 probes at once.
        hanging = await _requests(agent, kernel, listed.guests[half:], HANGING / half)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    return {"let in": entering, "hanging": hanging}


async def _requests(
    agent: Agent,
    kernel: Batches,
    guests: Sequence[DomainDescription],
    pause: float,
    end: asyncio.Future[None] | None = None,
) -> list[float]:
    """One a `pause`, until `end` is done; from a thread, which does not wait for a round to end."""
    loop, took = asyncio.get_running_loop(), []
    for described in guests:
        taken = loop.create_future()

        def ask(
            described: DomainDescription = described, taken: asyncio.Future[None] = taken
        ) -> float:
            time.sleep(pause)
            asked = ShutdownRequested(
                at=clock.now(),
                guest=described.guest,
                incarnation=described.incarnation,
                kind=RequestKind.POWEROFF,
            )
            loop.call_soon_threadsafe(agent.emit, asked, taken)
            return asked.at

        at = await asyncio.to_thread(ask)
        await taken
        if end is not None and end.done():
            break
        took.append(kernel.quiesced[GUESTS + int(described.name[1:])] - at)
    return took


# Beside keepalived --------------------------------------------------------------------------------


def in_the_lab() -> dict[str, float]:
    """Shares of a core that the whole lab takes: at rest, and with each at work."""
    python = str(venv_directory() / "bin/python")
    module = [python, "-m", "tests.bench.health"]
    shares = {}
    with UmlLab() as lab:
        servers = lab.server_ns("servers", "10.0.0.21")
        servers.run(["ip", "route", "add", "local", f"{BEHIND}/16", "dev", "lo"])
        lab.run(["ip", "route", "add", f"{BEHIND}/16", "via", "10.0.0.21"])
        lab.run("modprobe -a ip_vs ip_vs_rr")
        listen = servers.argv([*module, "--serve", str(PORT)])
        lab.spawn(listen, cwd=str(CHECKOUT))
        time.sleep(5)
        shares["at rest"] = _share(lab, 10)
        ours = lab.spawn([*module, "--probe", str(BEHIND), str(PORT)], cwd=str(CHECKOUT))
        time.sleep(WARM_UP)
        shares["xenlb"] = _share(lab, MEASURED)
        if ours.log().split()[-1] != str(TARGETS):
            sys.exit(f"only {ours.log().split()[-1]} of {TARGETS} servers were up")
        ours.kill()
        theirs = peers.keepalived_many(
            lab,
            [
                [str(BEHIND + 1 + service * 10 + n) for n in range(TARGETS // SERVICES)]
                for service in range(SERVICES)
            ],
            port=PORT,
            interval=int(INTERVAL),
            check=KEEPALIVED_CHECK,
        )
        time.sleep(WARM_UP * 2)
        shares["keepalived"] = _share(lab, MEASURED)
        if not theirs.alive() or f"{TARGETS} up" not in _up(lab):
            sys.exit(f"keepalived is not at work ({_up(lab)}): {theirs.log()[-2000:]}")
    return shares


def _up(lab: UmlLab) -> str:
    return f"{lab.out('ipvsadm -Sn | grep -c -e -r').strip()} up"


def _share(lab: UmlLab, seconds: float) -> float:
    began, before = time.monotonic(), _of_all(lab.supervisor_pid)
    time.sleep(seconds)
    return (_of_all(lab.supervisor_pid) - before) / (time.monotonic() - began)


def _of_all(pid: int) -> float:
    """Seconds of CPU of a process and all below it that live."""
    total = sum(_times(pid))
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            total += _of_all(int(child))
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--serve", type=int, metavar="PORT", help="accept and hang up, for good")
    parser.add_argument("--probe", nargs=2, metavar=("BASE", "PORT"), help="probe, for good")
    parser.add_argument("--quiesce", type=int, metavar="PORT", help="time requests; JSON")
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (16384, 16384))
    if options.serve is not None:
        with socket.create_server(("0.0.0.0", options.serve), backlog=4096) as listener:
            serve(listener)
    if options.probe is not None:
        base, port = options.probe
        asyncio.run(probe_for_good(IPv4Address(base), int(port)))
    if options.quiesce is not None:
        print(json.dumps(asyncio.run(quiesce(options.quiesce))))
        return
    print(f"health: {TARGETS:,} tcp checks at {INTERVAL:g} s (two minutes)", flush=True)
    user, system = on_loopback()
    missed = ", missed" if user + system >= GOAL else ""
    print(
        f"  the runner: {user + system:.1%} of a core ({user:.1%} program, {system:.1%} kernel;"
        f" goal {GOAL:.0%}{missed})",
        flush=True,
    )
    logging.disable(logging.WARNING)  # each of them is worth a line of the journal, thrice
    with deaf_server() as port:
        found = asyncio.run(quiesce(port))
    for when, took in found.items():
        milliseconds = sorted(1000 * each for each in took)
        print(
            f"  all of them {when}, from a request to its batch: median"
            f" {statistics.median(milliseconds):.1f} ms, at most {milliseconds[-1]:.1f} ms"
            f" ({len(took)} requests)",
            flush=True,
        )
    shares = in_the_lab()
    rest = shares.pop("at rest")
    for name, share in shares.items():
        print(f"  in the lab, with servers and kernel: {name:<10} {share - rest:.1%} of a core")
    print("load of the machine:", *(f"{load:.1f}" for load in os.getloadavg()))


if __name__ == "__main__":
    main()
