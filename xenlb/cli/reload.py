"""`xenlb reload`: the agent reads its configuration again, now."""

import click

from xenlb.cli.options import Options, given
from xenlb.control import client


@click.command()
@given
def reload(options: Options) -> None:
    """Re-reads the configuration; a wrong one is refused and the last good one kept."""
    client.call(options.socket, "reload", patience=60)
    click.echo("the configuration is read and in use")
