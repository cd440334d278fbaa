"""`xenlb events`: the agent's journal of what it saw and did."""

import json
import sys

import click

from xenlb.cli import format
from xenlb.cli.options import Options, as_json, given
from xenlb.control import client


@click.command()
@click.option("-f", "--follow", is_flag=True, help="Go on with new ones, until Ctrl-C.")
@as_json
@given
def events(options: Options, *, follow: bool, as_json: bool) -> None:
    """What the agent saw and did; with --json one object a line."""
    patience = None if follow else 15.0
    for entry in client.stream(options.socket, "events", patience=patience, follow=follow):
        assert isinstance(entry, dict)
        click.echo(json.dumps(entry, ensure_ascii=False) if as_json else format.event(entry))
        sys.stdout.flush()
