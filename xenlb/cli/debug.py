"""The verbs `debug …`."""

import click

from xenlb.cli.options import Group, Options, pass_options, print_json


@click.group(cls=Group)
def debug() -> None:
    """Show the inside of the running agent, for bug reports."""


@debug.command()
@pass_options
def state(options: Options) -> None:
    """Print the agent's state as JSON.

    Only root may. The keys may change in any version.
    """
    print_json(options.request("debug-state"))
