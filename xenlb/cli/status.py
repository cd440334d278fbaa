"""`xenlb status`: what the agent says, as a table or as JSON."""

import json
import sys
import time

import click

from xenlb.cli.layout import Answer
from xenlb.cli.options import Options, as_json, given
from xenlb.control import client


@click.command()
@click.argument("service", required=False)
@click.option("--watch", is_flag=True, help="Show it again every second, until Ctrl-C.")
@click.option("--failed", is_flag=True, help="Only services and servers that need attention.")
@as_json
@given
def status(
    options: Options, service: str | None, *, watch: bool, failed: bool, as_json: bool
) -> None:
    """Services, servers, their phase, weight and connections, and why."""
    if as_json:
        click.echo(
            json.dumps(ask(options, service), indent=None if watch else 2, ensure_ascii=False)
        )
        while watch:
            sys.stdout.flush()
            time.sleep(1)
            click.echo(json.dumps(ask(options, service), ensure_ascii=False))
        return
    from xenlb.cli import terminal

    if watch:
        terminal.watch(lambda: ask(options, service), only_trouble=failed)
    else:
        terminal.show(ask(options, service), only_trouble=failed)


def ask(options: Options, service: str | None) -> Answer:
    """The agent's status, of one service or all."""
    answer = client.call(options.socket, "status", service=service)
    assert isinstance(answer, dict)
    return answer
