"""Telling systemd how the agent is: the datagrams of sd_notify(3), and the watchdog's interval.

Without systemd every call does nothing. Nothing here ever blocks or raises: systemd not
listening is no reason to stop balancing.
"""

import logging
import os
import socket
import time
from collections.abc import Mapping

log = logging.getLogger(__name__)


class Notifier:
    """The service's line to systemd; `environment` is the process's."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        name = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + name[1:] if name.startswith("@") else name
        self.watchdog_interval = _watchdog_interval(environment) if name else None

    def ready(self, status: str = "") -> None:
        """Start-up or reload is over."""
        self._send("READY=1", status)

    def reloading(self, status: str = "") -> None:
        """A reload begins; systemd 253 and later ties it to its request by the time."""
        microseconds = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send(f"RELOADING=1\nMONOTONIC_USEC={microseconds}", status)

    def stopping(self, status: str = "") -> None:
        self._send("STOPPING=1", status)

    def status(self, status: str) -> None:
        """The line that `systemctl status xenlb` shows."""
        self._send("", status)

    def watchdog(self) -> None:
        """A sign of life; due at least every `watchdog_interval` seconds."""
        self._send("WATCHDOG=1", "")

    def _send(self, state: str, status: str) -> None:
        if not self._address:
            return
        lines = [state] if state else []
        if status:
            lines.append("STATUS=" + " ".join(status.split()))
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as out:
                out.sendto("\n".join(lines).encode(), self._address)
        except OSError as error:
            log.debug("systemd was not told %s: %s", lines, error)


def _watchdog_interval(environment: Mapping[str, str]) -> float | None:
    """A quarter of what systemd allows between two signs of life, in seconds; None: no watchdog.

    sd_watchdog_enabled(3) says half; a host that stands still as long as that comes too late then.
    """
    if environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    microseconds = environment.get("WATCHDOG_USEC", "")
    if not microseconds.isdigit() or microseconds == "0":
        return None
    return int(microseconds) / 4_000_000
