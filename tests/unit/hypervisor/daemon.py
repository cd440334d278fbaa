"""A libvirtd for one test, with libvirt's test driver, in a temporary folder.

It runs unprivileged (a session daemon), so that it touches nothing of the machine's.
"""

import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

BINARY = "/usr/sbin/libvirtd"
NOBODY = 65534


class Daemon:
    """`uri` reaches its one domain, `test`, which runs when the daemon starts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "run" / "libvirt" / "libvirt-sock"
        self.uri = f"test+unix:///default?socket={self.socket}"
        self._process: subprocess.Popen[bytes] | None = None
        if os.geteuid() == 0:
            os.chown(folder, NOBODY, NOBODY)

    def start(self) -> None:
        home = str(self.folder)
        environment = {"PATH": os.environ["PATH"], "HOME": home}
        environment |= {
            f"XDG_{name}": f"{home}/{folder}"
            for name, folder in (
                ("RUNTIME_DIR", "run"),
                ("CONFIG_HOME", "config"),
                ("CACHE_HOME", "cache"),
                ("DATA_HOME", "data"),
            )
        }
        with (self.folder.parent / f"{self.folder.name}.log").open("ab") as log:
            self._process = subprocess.Popen(
                [BINARY],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                user=NOBODY if os.geteuid() == 0 else None,
                group=NOBODY if os.geteuid() == 0 else None,
                extra_groups=[] if os.geteuid() == 0 else None,
            )
        deadline = time.monotonic() + 20
        while not self._answers():
            assert self._process.poll() is None, self._log()
            assert time.monotonic() < deadline, self._log()
            time.sleep(0.05)

    def _answers(self) -> bool:
        return subprocess.run(self._virsh("list"), capture_output=True, check=False).returncode == 0

    def _virsh(self, *commands: str) -> list[str]:
        return ["virsh", "--quiet", "--connect", self.uri, "; ".join(commands)]

    def _log(self) -> str:
        return (self.folder.parent / f"{self.folder.name}.log").read_text()[-2000:]

    def virsh(self, *commands: str) -> None:
        """Run virsh commands in another process. Blocks."""
        subprocess.run(self._virsh(*commands), check=True, timeout=30, stdout=subprocess.DEVNULL)

    @property
    def ended(self) -> bool:
        """Whether it has ended by itself."""
        return self._process is not None and self._process.poll() is not None

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """Kill it, as the OOM killer does; the socket's file stays."""
        if self._process is None:
            return
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        self._process = None
