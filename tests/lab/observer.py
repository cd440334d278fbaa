"""Runs in a lab's Dom0 and writes down, with times, what can be seen of the agent's work.

    observer.py                      one JSON object a line on stdout, until SIGTERM
    observer.py knock ADDRESS PORT   ends when a TCP connection there succeeds, and says when

A line has `at`, seconds of CLOCK_BOOTTIME (the agent's own clock), and `what`:

    clock   {wall}                       the same moment on the wall clock
    kernel  {op, address, weight, pid}   a server was added, edited or deleted in the IPVS table:
                                         kprobes in the kernel, so each change is seen, at the
                                         moment it is made, and by whom
    store   {path}                       a word was written to a domain's control/shutdown, or a
                                         domain was introduced or released: a xenstore watch of
                                         our own, so the time is when anybody can have heard it
    agent   {time, kind, text, guest, level}   a line of the agent's event log, from its socket;
                                         `late` too where the event changed nothing
    status  {status, number}             the agent's status, asked for by SIGUSR1

Processes cost up to a second in an emulated Dom0; this one is started once and tests read what it
writes, which costs next to nothing. Standard library only.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

TRACING = Path("/sys/kernel/tracing")
XENSTORE = "/run/xenstored/socket"
AGENT = "/run/xenlb/control.sock"
# struct ip_vs_dest_user_kern (net/netfilter/ipvs/ip_vs_ctl.c), second argument of each of these:
# the address at 0, the weight at 24.
PROBES = "".join(
    f"p:lab/{name} ip_vs_{name}_dest addr=+0(%si):x32 weight=+24(%si):s32\n"
    for name in ("add", "edit", "del")
)
TRACED = re.compile(
    r".*?-(?P<pid>\d+)\s+\[\d+\].*?(?P<at>\d+\.\d+): (?P<op>\w+): .*"
    r"addr=0x(?P<address>[0-9a-f]+) weight=(?P<weight>-?\d+)"
)
WATCH, WATCH_EVENT = 4, 15
HEADER = struct.Struct("=IIII")

_writing = threading.Lock()


def now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def say(what: str, at: float | None = None, **more: object) -> None:
    line = json.dumps({"at": now() if at is None else at, "what": what, **more})
    with _writing:
        print(line, flush=True)


def kernel() -> None:
    """Changes of servers in the IPVS table."""
    if not (TRACING / "trace_clock").exists():
        os.system(f"mount -t tracefs tracefs {TRACING}")
    enable = TRACING / "events/lab/enable"
    if enable.exists():
        enable.write_text("0")
    (TRACING / "trace_clock").write_text("boot")
    # The names of processes, which a probe of the scheduler's records, are not read. To patch the
    # scheduler of a running kernel is what the emulator does worst (debian/releases.py).
    (TRACING / "options/record-cmd").write_text("0")
    (TRACING / "kprobe_events").write_text(PROBES)
    begun = now()
    enable.write_text("1")
    with (TRACING / "trace_pipe").open() as lines:
        say("ready", source="kernel")
        for line in lines:
            found = TRACED.match(line)
            if found is None or float(found["at"]) < begun:  # an older observer's
                continue
            raw = bytes.fromhex(found["address"].zfill(8))
            say(
                "kernel",
                float(found["at"]),
                op=found["op"],
                address=socket.inet_ntoa(raw[::-1]),
                weight=int(found["weight"]),
                pid=int(found["pid"]),
            )


def store() -> None:
    """Requests and deaths, from a watch of our own."""
    stream = socket.socket(socket.AF_UNIX)
    stream.connect(XENSTORE)
    for token in ("@introduceDomain", "@releaseDomain", "/local/domain"):
        payload = f"{token}\0{token}\0".encode()
        stream.sendall(HEADER.pack(WATCH, 0, 0, len(payload)) + payload)
    say("ready", source="store")
    for kind, payload in messages(stream):
        path = payload.partition(b"\0")[0].decode()
        if kind == WATCH_EVENT and (path[0] == "@" or path.endswith("/control/shutdown")):
            say("store", path=path)


def messages(stream: socket.socket) -> Iterator[tuple[int, bytes]]:
    pending = b""
    while data := stream.recv(65536):
        pending += data
        while len(pending) >= HEADER.size:
            kind, _, _, length = HEADER.unpack_from(pending)
            end = HEADER.size + length
            if len(pending) < end:
                break
            yield kind, pending[HEADER.size : end]
            pending = pending[end:]


def ask(verb: str, **more: object) -> Iterator[dict[str, object]]:
    """The lines of the agent's answer; none while it does not run."""
    with socket.socket(socket.AF_UNIX) as stream:
        try:
            stream.connect(AGENT)
            stream.sendall(json.dumps({"verb": verb, **more}).encode() + b"\n")
            for line in stream.makefile():
                yield json.loads(line)
        except OSError:
            return


def agent() -> None:
    """The agent's journal, each line once: an agent begins with those of the one before."""
    told: set[tuple[str, ...]] = set()
    while True:
        for answer in ask("events", follow=True):
            item = answer.get("item")
            if isinstance(item, dict):
                kept = {key: value for key, value in item.items() if key != "number"}
                line = tuple(map(str, kept.values()))
                if line not in told:
                    told.add(line)
                    say("agent", None, **kept)
        time.sleep(0.1)


def answer_signals() -> None:
    number = 0
    while True:
        if signal.sigwait({signal.SIGUSR1, signal.SIGTERM}) == signal.SIGTERM:
            (TRACING / "events/lab/enable").write_text("0")
            os._exit(0)
        number += 1
        answers = list(ask("status"))
        say("status", number=number, status=answers[0].get("ok") if answers else None)


def knock(address: str, port: int) -> None:
    while True:
        try:
            socket.create_connection((address, port), timeout=0.5).close()
        except OSError:
            time.sleep(0.02)
            continue
        print(now(), flush=True)
        return


def in_thread(source: Callable[[], None]) -> None:
    threading.Thread(target=source, name=source.__name__, daemon=True).start()


def main(arguments: list[str]) -> None:
    if arguments:
        knock(arguments[1], int(arguments[2]))
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGTERM})
    before = now()
    wall = time.time()
    say("clock", (before + now()) / 2, wall=wall)
    for source in (kernel, store, agent):
        in_thread(source)
    answer_signals()


if __name__ == "__main__":
    main(sys.argv[1:])
