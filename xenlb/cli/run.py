"""`xenlb run`: the agent itself, with its log set up."""

from pathlib import Path

import click

from xenlb.cli import log_setup
from xenlb.cli.invalid_config import invalid
from xenlb.cli.options import Options, given, last_good_file, state_file
from xenlb.config import ConfigError


@click.command()
@state_file
@last_good_file
@given
def run(options: Options, state: Path, last_good: Path) -> None:
    """The agent, in the foreground (what the systemd unit starts)."""
    from xenlb.agent import configuration

    log_setup.set_up(verbose=options.verbose)
    try:
        first = configuration.start(options.config, last_good)
    except ConfigError as error:
        raise invalid(error) from None

    from xenlb.agent import main

    main.run(first, config=options.config, socket=options.socket, state=state, last_good=last_good)
