"""The verb `reload`."""

import click

from xenlb.cli.options import Options, pass_options


@click.command()
@pass_options
def reload(options: Options) -> None:
    """Read the configuration again and report what changed.

    An invalid configuration is refused; the agent keeps the last good one.
    """
    answer = options.request("reload", patience=60)
    click.echo(f"configuration loaded: {answer['changes']}")
