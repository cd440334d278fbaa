"""sd_notify against a real datagram socket, by path and in the abstract namespace."""

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from xenlb.control.systemd_notify import Notifier


@pytest.fixture(params=["path", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    name = f"{tmp_path}/notify" if request.param == "path" else f"@xenlb-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind(name.replace("@", "\0", 1))
        ear.settimeout(5)
        yield name, ear


def test_states(systemd: tuple[str, socket.socket]) -> None:
    name, ear = systemd
    notifier = Notifier({"NOTIFY_SOCKET": name})
    notifier.ready("3 services,\n6 servers")
    assert ear.recv(4096) == b"READY=1\nSTATUS=3 services, 6 servers"
    notifier.watchdog()
    assert ear.recv(4096) == b"WATCHDOG=1"
    notifier.stopping()
    assert ear.recv(4096) == b"STOPPING=1"


def test_reloading_has_the_monotonic_time(systemd: tuple[str, socket.socket]) -> None:
    name, ear = systemd
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    Notifier({"NOTIFY_SOCKET": name}).reloading()
    state, stamp = ear.recv(4096).decode().split("\n")
    after = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    assert state == "RELOADING=1"
    key, _, value = stamp.partition("=")
    assert key == "MONOTONIC_USEC"
    assert before <= int(value) <= after


def test_without_a_listener_nothing_blocks(systemd: tuple[str, socket.socket]) -> None:
    name, ear = systemd
    notifier = Notifier({"NOTIFY_SOCKET": name})
    for _ in range(10_000):  # far more than a socket nobody reads will take
        notifier.watchdog()
    ear.close()
    notifier.ready()
    Notifier({}).ready()


@pytest.mark.parametrize(
    ("environment", "interval"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 7.5),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 7.5),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_watchdog(environment: dict[str, str], interval: float | None) -> None:
    assert Notifier({"NOTIFY_SOCKET": "/x", **environment}).watchdog_interval == interval
    assert Notifier(environment).watchdog_interval is None
