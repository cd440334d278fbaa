"""A second host on a link, for tests that run in a network of their own (director/netns.py)."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.unit.director.netns import sh

HERE, PEER = "10.9.0.1", "10.9.0.2"
HERE6, PEER6 = "fd00:9::1", "fd00:9::2"


# Receives datagrams and says nothing.
SILENT = """
import socket, sys, time
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
    silent.bind(("0.0.0.0", int(sys.argv[1])))
    time.sleep(300)
"""


@contextmanager
def peer(*, listens: int = 0) -> Iterator[Callable[[str], str]]:
    """Yield a function that runs a script on the other host, with PEER and PEER6. `listens`: a
    UDP port there that says nothing."""
    command = [sys.executable, "-c", SILENT, str(listens)] if listens else ["sleep", "300"]
    process = subprocess.Popen(["unshare", "--net", *command])
    try:
        mine = os.readlink("/proc/self/ns/net")
        until = time.monotonic() + 20
        while os.readlink(f"/proc/{process.pid}/ns/net") == mine:
            assert time.monotonic() < until, "unshare made no network"
            time.sleep(0.01)

        def there(script: str) -> str:
            enter = f"nsenter --target {process.pid} --net "
            lines = filter(None, map(str.strip, script.splitlines()))
            return sh("\n".join(enter + line for line in lines))

        sh(f"""
        ip link add v0 type veth peer name v1
        ip link set v1 netns {process.pid}
        ip addr add {HERE}/24 dev v0
        ip addr add {HERE6}/64 dev v0 nodad
        ip link set v0 up
        ip link set lo up
        """)
        there(f"""
        ip addr add {PEER}/24 dev v1
        ip addr add {PEER6}/64 dev v1 nodad
        ip link set v1 up
        ip link set lo up
        """)
        while listens and not there("ss -Hlnu"):
            assert time.monotonic() < until, f"port {listens} is not open"
            time.sleep(0.01)
        yield there
    finally:
        process.kill()
        process.wait()
