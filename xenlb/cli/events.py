"""The verb `events`."""

import sys

import click

from xenlb.cli import format
from xenlb.cli.options import Options, as_json, pass_options, print_json
from xenlb.control import client


@click.command()
@click.option("-f", "--follow", is_flag=True, help="Print new events until Ctrl-C.")
@as_json
@pass_options
def events(options: Options, *, follow: bool, as_json: bool) -> None:
    """Print the agent's journal of events; with --json one object a line."""
    patience = None if follow else 15.0
    for event in client.stream(options.socket, "events", patience=patience, follow=follow):
        assert isinstance(event, dict)
        if as_json:
            print_json(event, indent=None)
        else:
            click.echo(format.event(event))
        sys.stdout.flush()
