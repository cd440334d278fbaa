"""hold.sh as a guest runs it: in each shell it must run in, below a root of its own."""

import os
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

import xenlb.guestside.render

SCRIPT = Path(xenlb.guestside.render.__file__).parent / "templates" / "hold.sh"
SYSTEM = "/usr/bin:/bin:/usr/sbin:/sbin"  # not what a caller has put in front
# What each is called with; whoever lacks one of these cannot vouch for the script.
SHELLS: dict[str, list[str]] = {
    "dash": ["/usr/bin/dash"],
    "busybox": ["/usr/bin/busybox", "sh"],
    "bash": ["/usr/bin/bash", "--posix"],
}
HEADER = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid"
# What every guest has; bash, nc and so on are added where a test is about them.
PLAIN_TOOLS = ("sleep", "sed", "cat", "dd", "rm", "mkdir", "mkfifo", "sha256sum", "ls")


def line(local: str, state: str = "01", remote: str = "640200C0:D431") -> str:
    """A line of /proc/net/tcp."""
    return f"   0: {local} {remote} {state} 00000000:00000000 00:00000000 00000000     0        0 1"


class Root:
    """A guest's root: settings, /proc/net/tcp with the lines given, /run."""

    def __init__(self, folder: Path) -> None:
        self.path = folder
        for below in ("etc", "proc/net", "run"):
            (folder / below).mkdir(parents=True)
        self.conf = folder / "etc/xenlb-hold.conf"
        (folder / "proc/uptime").symlink_to("/proc/uptime")
        self.connections([])

    def settings(self, *lines: str) -> None:
        self.conf.write_text("".join(f"{each}\n" for each in lines))

    def connections(self, lines: Iterable[str], *, six: Iterable[str] = ()) -> None:
        for name, each in (("tcp", lines), ("tcp6", six)):
            (self.path / "proc/net" / name).write_text("\n".join([HEADER, *each, ""]))

    def real_connections(self) -> None:
        for name in ("tcp", "tcp6"):
            path = self.path / "proc/net" / name
            path.unlink()
            path.symlink_to(f"/proc/net/{name}")

    def environment(self, tools: Sequence[str] = PLAIN_TOOLS) -> dict[str, str]:
        """PATH has these tools and no others."""
        folder = self.path / f"bin-{abs(hash(tuple(tools)))}"
        if not folder.exists():
            folder.mkdir()
            for tool in tools:
                place = "/usr/bin/busybox" if tool == "nc" else shutil.which(tool, path=SYSTEM)
                assert place, f"this machine has no {tool}"
                (folder / tool).symlink_to(os.path.realpath(place))
        return {"PATH": str(folder), "XENLB_HOLD_ROOT": str(self.path)}

    def start(
        self, shell: str, *arguments: str, tools: Sequence[str] = PLAIN_TOOLS
    ) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [*SHELLS[shell], str(SCRIPT), *arguments],
            env=self.environment(tools),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, shell: str, *arguments: str, tools: Sequence[str] = PLAIN_TOOLS) -> "Said":
        return Said.of(self.start(shell, *arguments, tools=tools))


class Said:
    """What a run came to: its status, and what it said, without its name in front."""

    def __init__(self, status: int, lines: list[str], errors: str) -> None:
        self.status, self.lines, self.errors = status, lines, errors

    @classmethod
    def of(cls, process: "subprocess.Popen[str]") -> "Said":
        out, errors = process.communicate(timeout=60)
        lines = [each.removeprefix("xenlb-hold: ") for each in out.splitlines()]
        return cls(process.returncode, lines, errors)
