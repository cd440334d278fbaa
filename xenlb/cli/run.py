"""`xenlb run`: the agent itself, with its log set up."""

from pathlib import Path

import click

from xenlb.cli import logs
from xenlb.cli.invalid import invalid
from xenlb.cli.options import Options, given, state_file
from xenlb.config import ConfigError, load


@click.command()
@state_file
@given
def run(options: Options, state: Path) -> None:
    """The agent, in the foreground (what the systemd unit starts)."""
    logs.set_up(verbose=options.verbose)
    try:
        first = load(options.config)
    except ConfigError as error:
        raise invalid(error) from None

    from xenlb import daemon  # loads libvirt, for nothing where the configuration is wrong

    daemon.run(first, config=options.config, socket=options.socket, state=state)
