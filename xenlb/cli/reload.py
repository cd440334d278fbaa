"""`xenlb reload`: the agent reads its configuration again, now."""

import click

from xenlb.cli.options import Options, given
from xenlb.control import client


@click.command()
@given
def reload(options: Options) -> None:
    """Re-reads the configuration and says what that changed; a wrong one is refused and the last
    good one kept."""
    answer = client.call(options.socket, "reload", patience=60)
    assert isinstance(answer, dict)
    click.echo(f"configuration loaded: {answer['changes']}")
