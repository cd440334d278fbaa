"""Names of guests for shell completion, from the running agent; none where there is none."""

import os
from pathlib import Path

import click

from xenlb.cli.options import SOCKET
from xenlb.control import client
from xenlb.control.protocol import ControlError


def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    # Completion does not run the group's callback: its options are only in its context.
    root = ctx.find_root()
    path = root.params.get("socket") or os.environ.get("XENLB_SOCKET") or SOCKET
    try:
        answer = client.call(Path(path), "status", patience=1.0, service=None)
    except ControlError:
        return []
    assert isinstance(answer, dict)
    names = {
        server["guest"]
        for service in answer["services"]
        for server in service["servers"]
        if server["guest"] and server.get("uuid", "") is not None  # a row without one is no guest
    }
    return sorted(name for name in names if name.startswith(incomplete))


named = click.argument("guest", shell_complete=complete)
