"""What the tests of Debian guests share: a unit that delays the stop of the guest's service, and
requests that show how long it serves."""

from __future__ import annotations

import re

from tests.lab.host import LabHost

HOLD_SECONDS = 6
# Seconds of the hold after which somebody is still served. Not all of them: a busy machine may keep
# the requests waiting as it ends.
SERVED_SECONDS = 3
SILENCE = 3.0  # seconds without an answer that mean the end of them, on a quick machine
UNIT = "hold.service"
# What is After= another unit stops before it.
FILES = {
    f"/etc/systemd/system/{UNIT}": """\
[Unit]
Description=Delays the stop of the service
After=web.service

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/true
ExecStop=/usr/local/bin/hold

[Install]
WantedBy=multi-user.target
""",
    "/usr/local/bin/hold": f"#!/bin/sh\nsleep {HOLD_SECONDS}\n",
}
SCRIPT = "hold"
SCRIPTS = {
    f"/etc/init.d/{SCRIPT}": f"""\
#!/bin/sh
### BEGIN INIT INFO
# Provides:          hold
# Required-Start:    web
# Required-Stop:     web
# Default-Start:     2 3 4 5
# Default-Stop:      0 1 6
# Short-Description: Delays the stop of the service
### END INIT INFO
if [ "$1" = stop ]; then
    sleep {HOLD_SECONDS}
    echo "Stopped hold" >>/var/log/lab.log
fi
""",
}
# In one process, and until the first request that is refused.
REQUESTS = """
while exec 3<>/dev/tcp/$1/80; do
    printf 'GET / HTTP/1.0\r\n\r\n' >&3
    read -r -t 20 status <&3 || break
    echo "$EPOCHREALTIME $status"
    exec 3>&-
    sleep 0.1
done 2>/dev/null
"""


class Requests:
    """A request to a guest every tenth of a second, until the guest answers no more."""

    def __init__(self, lab: LabHost, address: str) -> None:
        self._lab = lab
        self._process = lab.spawn(["bash", "-c", REQUESTS, "-", address])
        lab.wait_until(lambda: "200 OK" in self._process.log(), 20, "a first answer")

    def last_answer(self) -> float:
        """Waits for the last one that is answered, and says when that was (the lab's clock)."""
        silence = SILENCE * self._lab.patience
        # A request may also be neither answered nor refused: when the guest's network goes first.
        self._lab.wait_until(
            lambda: not self._process.alive() or self._lab.time() - self._latest() > silence,
            120,
            "the guest to answer no more",
            every=0.3,
        )
        self._process.kill()
        return self._latest()

    def _latest(self) -> float:
        return float(self._process.log().splitlines()[-1].split()[0])


def stops(log: str) -> list[str]:
    """The units of these tests in the order of their stops, from a console or a journal."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", log)
    return re.findall(r"Stopped (hold|web|lab-network)\b", plain)
