"""Notify systemd of the agent's state: sd_notify(3) and the watchdog.

Without systemd every call does nothing. No call blocks or raises: balancing goes on even if systemd
does not listen.
"""

import logging
import os
import socket
import time
from collections.abc import Mapping

log = logging.getLogger(__name__)


class Notifier:
    """Sends notifications; `environment` is the process's.

    `watchdog_interval`: the seconds between two calls of watchdog(), None without a watchdog.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        name = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + name[1:] if name.startswith("@") else name
        self.watchdog_interval = _watchdog_interval(environment) if name else None

    def ready(self, status: str = "") -> None:
        """Report the end of the start or of a reload, with a line for `systemctl status`."""
        self._send("READY=1", status)

    def reloading(self, status: str = "") -> None:
        """Report that a reload begins; systemd 253 and later match it to their request by time."""
        microseconds = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send(f"RELOADING=1\nMONOTONIC_USEC={microseconds}", status)

    def stopping(self, status: str = "") -> None:
        """Report that the agent stops, with a line for `systemctl status`."""
        self._send("STOPPING=1", status)

    def watchdog(self) -> None:
        """Report that the agent is alive."""
        self._send("WATCHDOG=1", "")

    def _send(self, state: str, status: str) -> None:
        if not self._address:
            return
        lines = [state]
        if status:
            lines.append("STATUS=" + " ".join(status.split()))
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sender:
                sender.sendto("\n".join(lines).encode(), self._address)
        except OSError as error:
            log.debug("systemd was not notified of %s: %s", lines, error)


def _watchdog_interval(environment: Mapping[str, str]) -> float | None:
    """A quarter of the time that systemd allows between two notifications, in seconds.

    sd_watchdog_enabled(3) recommends half. A notification would then be too late after a host was
    suspended for as long.
    """
    if environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    microseconds = environment.get("WATCHDOG_USEC", "")
    if not microseconds.isdigit() or microseconds == "0":
        return None
    return int(microseconds) / 4_000_000
