#!/usr/bin/python3
"""Makes load and serves it, inside a lab: `traffic.py client …` and `traffic.py server …`.

Standard library only: it runs in guests and name spaces that have nothing else. The client keeps
its pace whatever becomes of the answers (an open loop), opens a new connection for every request
and never retries: what a peer would have noticed is counted. The server closes first, as HTTP/1.0
servers do, so the client's source port is free for the next request at once; with --reuse-ports
that reproduces a busy client whose ports come round while the director still remembers them.

Every answer starts with the server's --name, so a summary tells who served. No IPVS in here.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import json
import os
import signal
import socket
import sys
import time
import urllib.parse
from collections import Counter
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, cast

DRIPS_PER_SECOND = 5
# Seconds that the client may be late before it says so.
STALL = 0.5


def split_address(text: str) -> tuple[str, int]:
    """192.0.2.1:80 or [2001:db8::1]:80."""
    address, _, port = text.rpartition(":")
    return address.strip("[]"), int(port)


def family_of(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def error_name(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "timeout"
    if isinstance(error, OSError) and error.errno:
        return errno.errorcode.get(error.errno, str(error.errno))
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


# The server -------------------------------------------------------------------------------


class Server:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.served = 0

    async def main(self) -> int:
        loop = asyncio.get_running_loop()
        term = asyncio.Event()
        if self.options.ignore_term:
            # Not SIG_IGN: init of a container gets no signal it has no handler for anyway, but
            # the test wants to see that it was asked.
            loop.add_signal_handler(signal.SIGTERM, print, "asked to stop; ignoring it")
        else:
            loop.add_signal_handler(signal.SIGTERM, term.set)
        listeners = [await self._listen(text, self.http) for text in self.options.listen]
        listeners += [await self._listen(text, self.banner) for text in self.options.banner]
        for text in self.options.udp:
            await loop.create_datagram_endpoint(
                lambda: Echo(self.options.name), local_addr=split_address(text)
            )
        where = [
            *self.options.listen,
            *self.options.banner,
            *(f"udp {u}" for u in self.options.udp),
        ]
        print(f"{self.options.name}: serving on {' '.join(where)}", flush=True)
        await term.wait()
        print(f"{self.options.name}: asked to stop at {time.time():.3f}", flush=True)
        if self.options.stop_delay:
            await asyncio.sleep(self.options.stop_delay)
        for listener in listeners:
            listener.close()
        print(f"{self.options.name}: ends after {self.served} requests", flush=True)
        # A guest that powers off does not finish what it was sending.
        sys.stdout.flush()
        os._exit(0)

    async def _listen(self, text: str, handler: Any) -> asyncio.Server:
        address, port = split_address(text)
        return await asyncio.start_server(
            handler, address, port, family=family_of(address), backlog=1024
        )

    async def http(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, EOFError, asyncio.LimitOverrunError):
            head = await reader.readuntil(b"\r\n\r\n")
            target = urllib.parse.urlsplit(head.split()[1].decode("latin-1"))
            await self._answer(target, writer)
            self.served += 1
        writer.close()

    async def _answer(self, target: urllib.parse.SplitResult, writer: asyncio.StreamWriter) -> None:
        host, port = writer.get_extra_info("peername")[:2]
        line = f"{self.options.name} {host} {port}\n".encode()
        status, repeats = "200 OK", 1
        if target.path == "/slow":
            seconds = float(urllib.parse.parse_qs(target.query)["seconds"][0])
            repeats = max(1, round(seconds * DRIPS_PER_SECOND))
        elif target.path == "/health" and self._sick():
            status = "503 Service Unavailable"
        writer.write(
            f"HTTP/1.0 {status}\r\nContent-Type: text/plain\r\n"
            f"Content-Length: {len(line) * repeats}\r\n\r\n".encode()
        )
        for _ in range(repeats):
            if target.path == "/slow":
                await asyncio.sleep(1 / DRIPS_PER_SECOND)
            writer.write(line)
            await writer.drain()

    def _sick(self) -> bool:
        return bool(self.options.sick) and Path(self.options.sick).exists()

    async def banner(self, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = writer.get_extra_info("peername")[:2]
        writer.write(f"{self.options.name} {host} {port}\n".encode())
        self.served += 1
        with contextlib.suppress(OSError):
            await writer.drain()
        writer.close()


class Echo(asyncio.DatagramProtocol):
    def __init__(self, name: str) -> None:
        self.name = name
        self.transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not isinstance: the event loop's own class does not derive from it in Python 3.11.
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        if self.transport:
            self.transport.sendto(f"{self.name} {addr[0]} {addr[1]}\n".encode() + data, addr)


# The client -------------------------------------------------------------------------------


class Ports:
    """Source ports in turn; None lets the kernel choose."""

    def __init__(self, text: str | None) -> None:
        low, _, high = (text or "").partition("-")
        self.range = range(int(low), int(high) + 1) if text else range(0)
        self.next = 0

    def bind(self, sock: socket.socket, address: str | None) -> None:
        if not self.range:
            if address:
                # Leaves the choice of the port to connect(), so that 60,000 ports suffice for
                # each destination, not for all of them.
                sock.setsockopt(socket.IPPROTO_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT
                sock.bind((address, 0))
            return
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        unspecified = "::" if sock.family == socket.AF_INET6 else "0.0.0.0"
        for _ in self.range:
            port = self.range[self.next]
            self.next = (self.next + 1) % len(self.range)
            try:
                sock.bind((address or unspecified, port))
                return
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
        raise OSError(errno.EADDRINUSE, "no source port of --reuse-ports is free")


class Failed(Exception):
    """A request that a peer would call failed; the text says at which step and how."""


class Exchange:
    """One connection, one request, one answer; remembers how far it came."""

    def __init__(self, client: Client, path: str) -> None:
        self.client = client
        self.path = path
        self.step = "connect"
        self.server: str | None = None

    async def go(self, seconds: float) -> str:
        """The name of the server that answered in full within `seconds`."""
        options = self.client.options
        address, port = split_address(options.target)
        kind = socket.SOCK_DGRAM if options.udp else socket.SOCK_STREAM
        try:
            with socket.socket(family_of(address), kind) as sock:
                sock.setblocking(False)
                self.client.ports.bind(sock, options.bind)
                async with asyncio.timeout(seconds):
                    await asyncio.get_running_loop().sock_connect(sock, (address, port))
                    self.step = "answer"
                    await self._converse(sock)
        except (OSError, TimeoutError) as error:
            raise Failed(f"{self.step}: {error_name(error)}") from error
        if self.server is None:
            raise Failed("answer: closed without a word")
        return self.server

    async def _converse(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        options = self.client.options
        if options.udp:
            await loop.sock_sendall(sock, b"?")
            self._name(await loop.sock_recv(sock, 2048))
            return
        if not options.plain:
            await loop.sock_sendall(sock, f"GET {self.path} HTTP/1.0\r\n\r\n".encode())
        answer = bytearray()
        while data := await loop.sock_recv(sock, 65536):
            answer += data
            self._look(answer)
        if options.plain:
            return
        head, separator, body = bytes(answer).partition(b"\r\n\r\n")
        if not answer:
            raise Failed("answer: closed without a word")
        status = head.split(b"\r\n")[0].split()[1:2]
        if status != [b"200"]:
            raise Failed(f"answer: HTTP status {status}")
        length = int(head.lower().partition(b"content-length:")[2].split()[0])
        if not separator or len(body) != length:
            raise Failed(f"answer: cut at {len(body)} of {length} bytes")

    def _look(self, answer: bytearray) -> None:
        """Notes the server's name as soon as its first line is there."""
        if self.server is None:
            start = 0 if self.client.options.plain else answer.find(b"\r\n\r\n") + 4
            if (self.client.options.plain or start >= 4) and answer.find(b"\n", start) >= 0:
                self._name(bytes(answer[start:]))

    def _name(self, body: bytes) -> None:
        self.server = body.split(maxsplit=1)[0].decode()


class Client:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.ports = Ports(options.reuse_ports)
        self.sent = self.ok = self.failed = 0
        self.failures: list[dict[str, Any]] = []
        self.by_server: Counter[str] = Counter()
        self.latencies: list[float] = []
        self.first: float | None = None
        self.last: float | None = None
        self.downloads: dict[str, Any] = {"started": 0, "finished": 0, "cut": 0, "cuts": []}
        # When this process itself did not run for a while: the machine stood still, not a server.
        self.stalls: list[dict[str, float]] = []
        self.stop = asyncio.Event()
        # Open until the process ends; each line goes out at once.
        self.live = open(options.live, "a", buffering=1) if options.live else None  # noqa: SIM115

    async def main(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop.set)
        background: set[asyncio.Task[None]] = set()
        start(background, self._tell_live())
        for _ in range(self.options.downloads):
            start(background, self._download())
        print(f"client: {self.options.rate}/s to {self.options.target}", flush=True)
        await self._pace()
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        self._write_summary()
        return 0

    async def _pace(self) -> None:
        """Starts requests on time until told to stop, then lets those under way end."""
        began, count = time.monotonic(), 0
        end = began + self.options.duration if self.options.duration else float("inf")
        requests: set[asyncio.Task[None]] = set()
        most = self.options.count or float("inf")
        while not self.stop.is_set() and count < most and (now := time.monotonic()) < end:
            due = 1 + int((now - began) * self.options.rate) if self.options.rate else 0
            # After a stall (the lab shares its CPU) the backlog of a second at most is made up.
            count = max(count, due - int(self.options.rate))
            while count < min(due, most):
                count += 1
                start(requests, self._request())
            following = count / self.options.rate if self.options.rate else 0.1
            due_at = max(time.monotonic() + 0.001, min(end, began + following))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.stop.wait(), due_at - time.monotonic())
            if (late := time.monotonic() - due_at) > STALL:
                self.stalls.append({"t": time.time(), "seconds": late})
        while requests:
            await asyncio.wait(requests)

    async def _request(self) -> None:
        wall, clock = time.time(), time.monotonic()
        self.sent += 1
        self.first = self.first or wall
        self.last = wall
        exchange = Exchange(self, self.options.path)
        try:
            server = await exchange.go(self.options.timeout)
        except Failed as error:
            self.failed += 1
            self.failures.append({"t": wall, "error": str(error), "server": exchange.server})
        else:
            self.ok += 1
            self.by_server[server] += 1
            self.latencies.append(time.monotonic() - clock)

    async def _download(self) -> None:
        """One download after the other, until stopped; what the stop interrupts is not a cut."""
        seconds = self.options.download_seconds
        while not self.stop.is_set():
            exchange = Exchange(self, f"/slow?seconds={seconds}")
            wall = time.time()
            self.downloads["started"] += 1
            try:
                await exchange.go(seconds * 3 + 10)
                self.downloads["finished"] += 1
            except Failed as error:
                self.downloads["cut"] += 1
                self.downloads["cuts"].append(
                    {
                        "t": time.time(),
                        "started": wall,
                        "error": str(error),
                        "server": exchange.server,
                    }
                )
                await asyncio.sleep(0.1)

    async def _tell_live(self) -> None:
        before = (0, 0, 0, Counter[str]())
        while self.live:
            await asyncio.sleep(1)
            now = (self.sent, self.ok, self.failed, self.by_server.copy())
            line = {
                "t": time.time(),
                "sent": now[0] - before[0],
                "ok": now[1] - before[1],
                "failed": now[2] - before[2],
                "by_server": dict(now[3] - before[3]),
            }
            self.live.write(json.dumps(line) + "\n")
            before = now

    def _write_summary(self) -> None:
        ordered = sorted(self.latencies)

        def quantile(share: float) -> float | None:
            return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else None

        summary = {
            "sent": self.sent,
            "ok": self.ok,
            "failed": self.failed,
            "failures": self.failures,
            "by_server": dict(self.by_server),
            "first": self.first,
            "last": self.last,
            "latencies": {"p50": quantile(0.5), "p99": quantile(0.99), "max": quantile(1)},
            "downloads": self.downloads,
            "stalls": self.stalls,
        }
        text = json.dumps(summary, indent=1) + "\n"
        if not self.options.summary:
            sys.stdout.write(text)
            return
        # By rename: whoever waits for the file never reads half of it.
        partial = Path(f"{self.options.summary}.part")
        partial.write_text(text)
        partial.rename(self.options.summary)


def start(tasks: set[asyncio.Task[None]], work: Coroutine[Any, Any, None]) -> None:
    task = asyncio.create_task(work)
    tasks.add(task)
    task.add_done_callback(tasks.discard)


# The command line -------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(description="makes load and serves it, for the tests")
    commands = top.add_subparsers(required=True)

    server = commands.add_parser("server", help="HTTP/1.0 on --listen, a banner, UDP echo")
    server.set_defaults(main=lambda options: Server(options).main())
    server.add_argument("--name", required=True)
    server.add_argument("--listen", metavar="ADDR:PORT", action="append", default=[])
    server.add_argument("--banner", metavar="ADDR:PORT", action="append", default=[])
    server.add_argument("--udp", metavar="ADDR:PORT", action="append", default=[])
    server.add_argument("--stop-delay", metavar="S", type=float, default=0)
    server.add_argument("--ignore-term", action="store_true")
    server.add_argument("--sick", metavar="FILE", help="GET /health is 503 while it exists")

    client = commands.add_parser("client", help="load until --duration or SIGTERM")
    client.set_defaults(main=lambda options: Client(options).main())
    client.add_argument("target", metavar="ADDR:PORT")
    client.add_argument("--rate", metavar="PER_SECOND", type=float, default=10)
    client.add_argument("--duration", metavar="S", type=float, default=0, help="0: until SIGTERM")
    client.add_argument("--count", metavar="N", type=int, default=0, help="end after N requests")
    client.add_argument("--timeout", metavar="S", type=float, default=2)
    client.add_argument("--path", default="/")
    client.add_argument("--bind", metavar="ADDR")
    client.add_argument("--reuse-ports", metavar="LOW-HIGH")
    client.add_argument("--downloads", metavar="K", type=int, default=0)
    client.add_argument("--download-seconds", metavar="S", type=float, default=10)
    client.add_argument("--plain", action="store_true", help="read a --banner, no HTTP")
    client.add_argument("--udp", action="store_true")
    client.add_argument("--summary", metavar="FILE", help="standard output if left out")
    client.add_argument("--live", metavar="FILE", help="one JSON line a second")
    return top


def main(argv: list[str]) -> int:
    options = parser().parse_args(argv)
    work: Callable[[argparse.Namespace], Coroutine[Any, Any, int]] = options.main
    return asyncio.run(work(options))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
