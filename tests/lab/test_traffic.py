"""The load generator and its server, on loopback: what the drain tests rely on."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

TRAFFIC = str(Path(__file__).with_name("traffic.py"))
Start = Callable[..., subprocess.Popen[str]]


def free_port(kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    with socket.socket(socket.AF_INET, kind) as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.fixture
def start() -> Iterator[Start]:
    running: list[subprocess.Popen[str]] = []

    def run(*arguments: object) -> subprocess.Popen[str]:
        command = [sys.executable, TRAFFIC, *map(str, arguments)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        running.append(process)
        assert process.stdout
        process.stdout.readline()  # the startup line
        return process

    yield run
    for process in running:
        process.kill()
        process.communicate()


def finish(client: subprocess.Popen[str]) -> dict[str, Any]:
    out, _ = client.communicate(timeout=30)
    assert client.returncode == 0
    summary: dict[str, Any] = json.loads(out)
    return summary


def test_counts_by_server_at_the_asked_pace(start: Start, tmp_path: Path) -> None:
    port = free_port()
    start("server", "--name", "a", "--listen", f"127.0.0.1:{port}")
    live = tmp_path / "live"
    client = start("client", f"127.0.0.1:{port}", "--rate", 50, "--duration", 2.5, "--live", live)
    summary = finish(client)
    assert summary["sent"] == summary["ok"] == summary["by_server"]["a"]
    assert 50 < summary["sent"] <= 126  # what it misses for more than a second is not made up
    assert summary["failed"] == 0
    assert summary["latencies"]["p50"] <= summary["latencies"]["p99"]
    lines = [json.loads(line) for line in live.read_text().splitlines()]
    assert len(lines) in {1, 2}
    assert sum(line["ok"] for line in lines) == sum(line["by_server"]["a"] for line in lines)


def test_failures_are_told_with_time_and_step(start: Start) -> None:
    before = time.time()
    closed = finish(start("client", f"127.0.0.1:{free_port()}", "--rate", 5, "--duration", 1))
    assert closed["failed"] == closed["sent"] > 0
    assert {failure["error"] for failure in closed["failures"]} == {"connect: ECONNREFUSED"}
    assert all(before < failure["t"] < time.time() for failure in closed["failures"])
    with socket.create_server(("127.0.0.1", 0)) as silent:
        target = f"127.0.0.1:{silent.getsockname()[1]}"
        stuck = finish(start("client", target, "--rate", 4, "--duration", 0.6, "--timeout", 0.3))
    assert {failure["error"] for failure in stuck["failures"]} == {"answer: timeout"}


def test_a_killed_server_cuts_downloads(start: Start) -> None:
    port = free_port()
    server = start("server", "--name", "a", "--listen", f"127.0.0.1:{port}")
    options = ("--rate", 0, "--downloads", 3, "--download-seconds", 1)
    client = start("client", f"127.0.0.1:{port}", *options)
    time.sleep(1.7)
    server.kill()
    time.sleep(0.2)
    client.send_signal(signal.SIGTERM)
    downloads = finish(client)["downloads"]
    assert downloads["finished"] == 3
    cut = [entry for entry in downloads["cuts"] if entry["server"] == "a"]
    assert len(cut) == 3
    assert all("cut at" in entry["error"] or "RESET" in entry["error"] for entry in cut)


def test_few_source_ports_are_used_again(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sink:
        port = sink.getsockname()[1]
        client = start(
            "client", f"127.0.0.1:{port}", "--rate", 20, "--duration", 1, "--plain",
            "--bind", "127.0.0.9", "--reuse-ports", "40000-40002",
        )  # fmt: skip
        peers = []
        sink.settimeout(1.5)
        try:
            while True:
                connection, peer = sink.accept()
                peers.append(peer)
                connection.sendall(b"sink\n")
                connection.shutdown(socket.SHUT_WR)
                connection.recv(1)
                connection.close()
        except TimeoutError:
            pass
        assert finish(client)["failed"] == 0
    assert len(peers) > 15
    assert {host for host, _ in peers} == {"127.0.0.9"}
    assert {number for _, number in peers} == {40000, 40001, 40002}


def test_banner_udp_and_ipv6(start: Start) -> None:
    tcp, udp = free_port(), free_port(socket.SOCK_DGRAM)
    start(
        "server", "--name", "a", "--listen", f"[::1]:{tcp}", "--banner", f"127.0.0.1:{tcp}",
        "--udp", f"127.0.0.1:{udp}",
    )  # fmt: skip
    for target, option in ((f"[::1]:{tcp}", ()), (f"127.0.0.1:{tcp}", ("--plain",)),
                           (f"127.0.0.1:{udp}", ("--udp",))):  # fmt: skip
        summary = finish(start("client", target, "--duration", 0.5, *option))
        assert summary["by_server"] == {"a": summary["sent"]}


def test_sigterm_of_a_server(start: Start) -> None:
    port, other = free_port(), free_port()
    slow = start("server", "--name", "s", "--listen", f"127.0.0.1:{port}", "--stop-delay", 0.5)
    slow.send_signal(signal.SIGTERM)
    time.sleep(0.1)
    assert urllib.request.urlopen(f"http://127.0.0.1:{port}/").read().startswith(b"s 127.0.0.1")
    assert slow.wait(5) == 0
    deaf = start("server", "--name", "d", "--listen", f"127.0.0.1:{other}", "--ignore-term")
    deaf.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert urllib.request.urlopen(f"http://127.0.0.1:{other}/").read().startswith(b"d ")


def test_a_sick_server_says_so(start: Start, tmp_path: Path) -> None:
    port = free_port()
    sick = tmp_path / "sick"
    start("server", "--name", "a", "--listen", f"127.0.0.1:{port}", "--sick", sick)
    url = f"http://127.0.0.1:{port}/health"
    assert urllib.request.urlopen(url).status == 200
    sick.touch()
    with pytest.raises(urllib.error.HTTPError, match="503") as caught:
        urllib.request.urlopen(url)
    caught.value.close()
