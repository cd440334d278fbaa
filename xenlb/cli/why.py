"""`xenlb why`: why a guest's servers have the weight they have."""

import json
import time

import click

from xenlb.cli import format
from xenlb.cli.completion import complete
from xenlb.cli.options import Options, as_json, given
from xenlb.control import client


@click.command()
@click.argument("guest", shell_complete=complete)
@as_json
@given
def why(options: Options, guest: str, *, as_json: bool) -> None:
    """Why each server of GUEST (name or UUID) has the weight it has, with times."""
    answer = client.call(options.socket, "why", guest=guest)
    assert isinstance(answer, dict)
    if as_json:
        click.echo(json.dumps(answer, indent=2, ensure_ascii=False))
    else:
        click.echo(format.why(answer, time.time()))
