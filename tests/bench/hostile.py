"""How late the agent is for everybody else while guests and readers do what they can against it.

    make bench ONLY=hostile

An agent in a process of its own, over loopback, with the tests' fake kernel and libvirt's test
driver. Ten servers of each kind answer its checks: bodies in chunks of one byte, equal headers for
a regular expression, packets of one byte, bait for a pattern, floods, silence in place of a TLS
handshake. Ten clients flood the guests' listener. Ten Xen guests write requests and words into the
xenstore as often as xenstored lets them; ten others answer without end when the agent looks inside.
40 readers ask for the status in a loop. Told are the loop's longest gap, the longest of the loop's
own processor time, which a busy machine does not add to, and the time from a guest's being asked to
shut down until the kernel's batch. The same agent without all of them comes first.
"""

import argparse
import asyncio
import json
import logging
import os
import re
import resource
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import UUID

from tests.bench.health import Batches
from tests.fakes.xenstored import FakeXenstored
from xenlb import clock
from xenlb.agent.handlers import Handlers
from xenlb.agent.loop import Agent
from xenlb.agent.main import exempt_from_collection
from xenlb.agent.sources import Sources
from xenlb.config import parse
from xenlb.control.lock import Lock
from xenlb.control.server import ControlServer
from xenlb.hypervisor.xenstore.source import XenstoreSource
from xenlb.model.domain import DomainDescription, DomainState, GuestId, RequestKind
from xenlb.model.events import GuestsListed, ShutdownRequested

EACH = 10  # hostile servers of a kind, and clients
READERS = 40
REQUESTS = 200
PAUSE = 0.05  # s between two requests
LONGEST = 15.0  # s; where the machine is busy there are fewer requests
GAP, LATE = 0.050, 0.050  # s; the goals
URI = "test:///default"
GUESTS = IPv4Address("10.0.0.1")
HOSTILE_GUESTS, FIRST_DOMAIN = IPv4Address("10.1.0.1"), 1000
WRITES = 200  # a second, which C xenstored allows a domain
SSH = "#!/bin/sh\nexec cat /dev/zero\n"  # what it is to log in to a hostile guest

Serve = Callable[[socket.socket], None]

# Hostile servers ----------------------------------------------------------------------------------

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKS = OK + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * 20_000
HEADERS = OK + b"X: aaaaaaaaaaaaaaaaaaaaaaaaaaaa!\r\n" * 777 + b"\r\n"


def says(data: bytes) -> Serve:
    def serve(connection: socket.socket) -> None:
        connection.recv(1000)
        connection.sendall(data)
        connection.recv(1000)

    return serve


def drips(connection: socket.socket) -> None:
    """A byte in each packet."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for byte in CHUNKS[:20_000]:
        connection.sendall(bytes([byte]))


def floods(connection: socket.socket) -> None:
    while True:
        connection.sendall(b"up,100% " * 8192)


def bait(connection: socket.socket) -> None:
    connection.sendall(b"a" * 40 + b"!")
    connection.recv(1000)


def silent(connection: socket.socket) -> None:
    connection.recv(1000)
    time.sleep(30)


# The check of each kind, and its server.
HTTP = "type: http, interval: 1s"
KINDS: dict[str, tuple[str, Serve]] = {
    "chunks of a byte": (f"{{{HTTP}, body: zz}}", says(CHUNKS)),
    "equal headers": (f"{{{HTTP}, header: 'X: (\\w+\\s?)+$'}}", says(HEADERS)),
    "packets of a byte": (f"{{{HTTP}, body: zz}}", drips),
    "bait for a pattern": ("{type: tcp, interval: 1s, expect: '(a|aa)+$'}", bait),
    "floods": ("{type: tcp, interval: 1s, expect: zz}", floods),
    "agents that flood": ("{type: agent, interval: 1s}", floods),
    "silence for TLS": ("{type: tls, interval: 1s, tls: {verify: false}}", silent),
}


def _serve(listener: socket.socket, serve: Serve) -> None:
    def one(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            serve(connection)

    while True:
        connection, _ = listener.accept()
        threading.Thread(target=one, args=(connection,), daemon=True).start()


@contextmanager
def beside(work: Callable[[], None]) -> Iterator[None]:
    """In a process of its own, on the last core, until the end."""
    pid = os.fork()
    if pid == 0:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        try:
            work()
            signal.pause()
        finally:
            os._exit(0)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def in_threads(*works: Callable[[], None]) -> Callable[[], None]:
    def start() -> None:
        for work in works:
            threading.Thread(target=work, daemon=True).start()

    return start


@contextmanager
def hostile_servers() -> Iterator[dict[str, list[int]]]:
    """The ports of each kind."""
    with ExitStack() as stack:
        ports: dict[str, list[int]] = {}
        for kind, (_, serve) in KINDS.items():
            listeners = [
                stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=64))
                for _ in range(EACH)
            ]
            ports[kind] = [listener.getsockname()[1] for listener in listeners]
            works = [
                lambda listener=listener, serve=serve: _serve(listener, serve)
                for listener in listeners
            ]
            stack.enter_context(beside(in_threads(*works)))
        yield ports


def reads_status(path: Path) -> None:
    while True:
        with suppress(OSError), socket.socket(socket.AF_UNIX) as asking:
            asking.settimeout(30)
            asking.connect(str(path))
            asking.sendall(b'{"verb": "status"}\n')
            while asking.recv(1 << 16):
                pass


def floods_listener(port: int) -> None:
    while True:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1) as asking:
            asking.sendall(b"x" * 200)
        time.sleep(0.002)


def floods_xenstore(path: Path) -> None:
    """Requests to shut down, and the words of a hold, of all hostile guests in turn."""

    async def writing() -> None:
        async with FakeXenstored(str(path)) as xenstored:
            for n in range(EACH):
                xenstored.create(FIRST_DOMAIN + n, str(hostile_guest(n).guest.uuid))
            began, written = time.monotonic(), 0
            while True:
                word = ("poweroff", "leaving", "", "staying")[written % 4]
                for n in range(EACH):
                    node = "data/xenlb" if written % 2 else "control/shutdown"
                    xenstored.write(f"/local/domain/{FIRST_DOMAIN + n}/{node}", word)
                written += 1
                await asyncio.sleep(max(0.0, began + written / WRITES - time.monotonic()))

    asyncio.run(writing())


# The agent ----------------------------------------------------------------------------------------


def hostile_guest(number: int) -> DomainDescription:
    return DomainDescription(
        guest=GuestId(uri=URI, uuid=UUID(int=100_000 + number)),
        name=f"h{number}",
        domain_state=DomainState.RUNNING,
        incarnation=FIRST_DOMAIN + number,
    )


def looked_into(folder: Path) -> str:
    """The URI of a libvirt with guests i0, i1 … that run."""
    file = folder / "node.xml"
    # With identifiers: each connection of the test driver makes the guests anew.
    domains = "".join(
        f"<domain type='test'><name>i{n}</name><uuid>{UUID(int=200_000 + n)}</uuid>"
        "<memory>8192</memory><os><type>hvm</type></os></domain>"
        for n in range(EACH)
    )
    file.write_text(f"<node>{domains}</node>")
    return f"test://{file}"


def configuration(folder: Path, listen: int, ports: dict[str, list[int]]) -> str:
    uris = [URI]
    guests = ", ".join(f"{{guest: g{n}, address: {GUESTS + n}}}" for n in range(REQUESTS))
    services = [f"  guests: {{address: 192.0.2.1, ports: [25], check: none, servers: [{guests}]}}"]
    if ports:
        uris.append(looked_into(folder))
        hostile = ", ".join(f"{{guest: i{n}, address: {HOSTILE_GUESTS + n}}}" for n in range(EACH))
        services.append(
            "  hostile: {address: 192.0.2.1, ports: [26], check: none, guest-side: {delivery: ssh,"
            f" on-boot: verify}}, servers: [{hostile}]}}"
        )
    for number, (kind, of_kind) in enumerate(ports.items()):
        check, _ = KINDS[kind]
        for n, port in enumerate(of_kind):
            services.append(
                f"  s{number}-{n}: {{address: 192.0.2.{number + 2}, ports: [{port}],"
                f" check: {check}, servers: [{{host: 127.0.0.1}}]}}"
            )
    return "\n".join(
        (
            f"libvirt: {{uris: {uris}}}",
            f"guests: {{listen: '127.0.0.1:{listen}'}}",
            "director: {addresses: leave, sysctls: check}",
            "defaults: {forwarding: masquerade}",
            "services:",
            *services,
        )
    )


def xenstore_socket(folder: Path) -> Path:
    return folder / "xenstored"


async def measured(folder: Path, listen: int, ports: dict[str, list[int]]) -> dict[str, object]:
    """The gaps of the loop, by the clock and by its processor time, and the delays of the requests
    (s), and what is said of the checks."""
    kernel, control = Batches(), folder / "control.sock"
    lock = Lock(control)
    lock.take()
    agent = Agent(
        config=folder / "none",
        state_file=folder / "state.json",
        socket=control,
        kernel=kernel,
        reader=kernel,
    )
    sources = Sources(agent)
    verbs = Handlers(agent, sources.director_problems)
    async with ControlServer(control, verbs.handlers(), lock=lock):
        agent.on_state_change = sources.on_state_change
        agent.configure(parse(configuration(folder, listen, ports), "bench"))
        own = asyncio.create_task(agent.run())
        sources.start()
        await agent.first_sync_done.wait()
        while not any(guest.id.uri == URI for guest in agent.state.guests.values()):
            await asyncio.sleep(0.05)  # the listing of libvirt's own guests
        guests = [
            DomainDescription(
                guest=GuestId(uri=URI, uuid=UUID(int=n + 1)),
                name=f"g{n}",
                domain_state=DomainState.RUNNING,
                incarnation=n,
            )
            for n in range(REQUESTS)
        ]
        xenstore = XenstoreSource(
            URI, agent.emit, clock.now, socket_path=str(xenstore_socket(folder))
        )
        reading = asyncio.create_task(xenstore.run())
        hostile = map(hostile_guest, range(EACH)) if ports else ()
        now = clock.now()
        begun = asyncio.get_running_loop().create_future()
        agent.emit(
            GuestsListed(at=now, requested_at=now, uri=URI, guests=(*guests, *hostile)), begun
        )
        await begun
        exempt_from_collection()
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        gaps: list[tuple[float, float]] = []
        ticking = asyncio.create_task(_tick(gaps))
        late = await _requests(agent, kernel, guests)
        for task in (ticking, own, reading):
            task.cancel()
        details = {health.detail for health in agent.state.remembered.health.values()}
        await sources.stop()
        await asyncio.wait([ticking, own, reading])
    by_clock, by_processor = map(max, zip(*gaps, strict=True))
    return {
        "gap": by_clock,
        "processor": by_processor,
        "late": late,
        "details": sorted(details),
    }


async def _tick(gaps: list[tuple[float, float]]) -> None:
    """How long the loop is not free, more than the millisecond that is slept."""
    last, taken = time.perf_counter(), time.thread_time()
    while True:
        await asyncio.sleep(0.001)
        before, was = last, taken
        last, taken = time.perf_counter(), time.thread_time()
        gaps.append((last - before - 0.001, taken - was))


async def _requests(agent: Agent, kernel: Batches, guests: list[DomainDescription]) -> list[float]:
    """From a thread, which does not wait for a round to end."""
    loop = asyncio.get_running_loop()
    late: list[float] = []
    until = clock.now() + LONGEST
    for described in guests:
        if clock.now() > until:
            break
        taken = loop.create_future()

        def ask(
            described: DomainDescription = described, taken: asyncio.Future[None] = taken
        ) -> float:
            time.sleep(PAUSE)
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
        late.append(kernel.quiesced[GUESTS + int(described.name[1:])] - at)
    return late


# Both runs ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Seconds; `details`: of the checks."""

    gap: float
    processor: float
    late: list[float]
    details: list[str]


def run(*, hostile: bool) -> Found:
    with TemporaryDirectory(prefix="xenlb-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        with socket.create_server(("127.0.0.1", 0)) as free:
            listen = free.getsockname()[1]
        ports = stack.enter_context(hostile_servers()) if hostile else {}
        if hostile:
            stack.enter_context(beside(lambda: floods_xenstore(xenstore_socket(folder))))
        ssh = folder / "bin" / "ssh"
        ssh.parent.mkdir()
        ssh.write_text(SSH)
        ssh.chmod(0o755)
        command = [sys.executable, "-m", "tests.bench.hostile", "--agent", name, str(listen)]
        agent = stack.enter_context(
            subprocess.Popen(
                [*command, json.dumps(ports)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "PATH": f"{ssh.parent}:{os.environ['PATH']}"},
            )
        )
        stack.callback(agent.kill)
        assert agent.stdin is not None
        assert agent.stdout is not None
        os.sched_setaffinity(agent.pid, {min(os.sched_getaffinity(0))})
        if agent.stdout.readline() != "ready\n":
            sys.exit("the agent did not come to its work")
        if hostile:
            works = [lambda: reads_status(folder / "control.sock")] * READERS
            works += [lambda: floods_listener(listen)] * EACH
            stack.enter_context(beside(in_threads(*works)))
            time.sleep(1)
        agent.stdin.write("\n")
        agent.stdin.close()
        return Found(**json.loads(agent.stdout.read()))


def _row(label: str, found: Found) -> str:
    late = found.late
    p99 = sorted(late)[round(0.99 * (len(late) - 1))]
    goals = (("gap", found.gap, GAP), ("p99", p99, LATE))
    missed = [name for name, value, goal in goals if value > goal]
    values = (found.gap, found.processor, statistics.median(late), p99, max(late))
    numbers = " ".join(f"{1000 * value:9.1f}" for value in values)
    row = f"  {label:<16}{numbers} {len(late):>9}"
    return row + (f"  missed: {', '.join(missed)}" if missed else "")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--agent", nargs=3, metavar=("FOLDER", "LISTEN", "PORTS"))
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (16384, 16384))
    if options.agent is not None:
        folder, listen, ports = options.agent
        logging.disable(logging.CRITICAL)
        print(json.dumps(asyncio.run(measured(Path(folder), int(listen), json.loads(ports)))))
        return 0
    print(
        f"hostile: {EACH} servers of {len(KINDS)} kinds, {EACH} clients of the listener, {2 * EACH}"
        f" guests that flood, {READERS} readers of status; {REQUESTS} requests"
        f" (goals: gap {1000 * GAP:.0f} ms, p99 {1000 * LATE:.0f} ms)",
        flush=True,
    )
    heads = ("gap", "processor", "p50", "p99", "worst", "requests")
    print(f"  {'ms':<16}" + " ".join(f"{head:>9}" for head in heads), flush=True)
    for label, hostile in (("without them", False), ("with them", True)):
        found = run(hostile=hostile)
        print(_row(label, found), flush=True)
    seen = Counter(re.sub(r"127.0.0.1 port [0-9]+", "it", detail) for detail in found.details)
    for detail, count in seen.items():
        print(f"    {count:3}  {detail}")
    print("load of the machine:", *(f"{load:.1f}" for load in os.getloadavg()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
