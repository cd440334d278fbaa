"""The verb `run`: the agent."""

from pathlib import Path

import click

from xenlb.cli import log_setup
from xenlb.cli.options import Options, last_good_file, pass_options, state_file


@click.command()
@state_file
@last_good_file
@pass_options
def run(options: Options, state: Path, last_good: Path) -> None:
    """Run the agent in the foreground (what the systemd unit starts)."""
    from xenlb.agent import configuration

    log_setup.set_up(verbose=options.verbose)
    # An invalid configuration ends the command before the agent's modules are imported.
    first = configuration.first_configuration(options.config, last_good)

    from xenlb.agent import main

    main.run(first, config=options.config, socket=options.socket, state=state, last_good=last_good)
