"""Shell completion of guest names, from the running agent."""

import os
from pathlib import Path

import click

from xenlb.cli.options import Options
from xenlb.control.protocol import ControlError


def complete_guest(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """List the guests whose name begins with the typed text; none without an agent."""
    # Completion does not run the group's callback: its options are only in its context.
    path = ctx.find_root().params.get("socket") or os.environ.get("XENLB_SOCKET")
    options = Options(socket=Path(path)) if path else Options()
    try:
        answer = options.request("status", patience=1.0, service=None)
    except ControlError:
        return []
    names = {
        server["guest"]
        for service in answer["services"]
        for server in service["servers"]
        # an entry of `servers` without a guest in any libvirt has no UUID
        if server["guest"] and server.get("uuid", "") is not None
    }
    return sorted(name for name in names if name.startswith(incomplete))


guest_argument = click.argument("guest", shell_complete=complete_guest)
optional_guest_argument = click.argument("guest", required=False, shell_complete=complete_guest)
