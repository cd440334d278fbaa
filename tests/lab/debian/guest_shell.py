"""Commands with which the labs reach into a guest; each runs on its host (Dom0, the director)."""

from __future__ import annotations

import base64
import shlex
from pathlib import Path

from tests.lab.host import LabHost

GUEST_SH = str(Path(__file__).resolve().parents[1] / "guest-sh")


def answers(lab: LabHost, address: str, port: int, *, timeout: float) -> bool:
    """Waits until a TCP connection from the host to there succeeds."""
    # In one process: a probe that forks anew each time would take the CPU the guest boots on.
    loop = f"until exec 3<>/dev/tcp/{address}/{port}; do sleep 0.1; done 2>/dev/null"
    command = ["timeout", str(timeout * lab.patience), "bash", "-c", loop]
    return lab.run(command, timeout=timeout + 30, check=False).rc == 0


def write(path: str, data: str | bytes, *, mode: int) -> str:
    """The shell command that writes a file in the guest; its folder is made."""
    content = data.encode() if isinstance(data, str) else data
    where = shlex.quote(path)
    return (
        f'mkdir -p "$(dirname {where})" && '
        f"base64 -d >{where} <<END && chmod {mode:o} {where}\n"
        f"{base64.encodebytes(content).decode()}END"
    )
