"""The verb `why`."""

import time

import click

from xenlb.cli import format
from xenlb.cli.completion import guest_argument
from xenlb.cli.options import Options, as_json, pass_options, print_json


@click.command()
@guest_argument
@as_json
@pass_options
def why(options: Options, guest: str, *, as_json: bool) -> None:
    """Explain the weight of each server of GUEST (name or UUID): events, checks, drains."""
    answer = options.request("why", guest=guest)
    if as_json:
        print_json(answer)
    else:
        click.echo(format.guest_report(answer, time.time()))
