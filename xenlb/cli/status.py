"""`xenlb status`: what the agent says, as a table or as JSON."""

import json
import sys
import time

import click

from xenlb.cli import layout
from xenlb.cli.options import Options, as_json, given
from xenlb.control import client


@click.command()
@click.argument("service", required=False)
@click.option("--watch", is_flag=True, help="Show it again every second, until Ctrl-C.")
@as_json
@given
def status(options: Options, service: str | None, *, watch: bool, as_json: bool) -> None:
    """Services, servers, their phase, weight and connections, and why."""
    if not watch:
        answer = ask(options, service)
        if as_json:
            click.echo(json.dumps(answer, indent=2, ensure_ascii=False))
        elif sys.stdout.isatty():
            from xenlb.cli import terminal  # rich: 50 ms

            terminal.show(answer)
        else:
            click.echo(layout.text(answer, time.time()))
    elif as_json:
        while True:
            click.echo(json.dumps(ask(options, service), ensure_ascii=False))
            time.sleep(1)
    else:
        from xenlb.cli import terminal

        terminal.watch(lambda: ask(options, service))


def ask(options: Options, service: str | None) -> layout.Answer:
    """The agent's status, of one service or all."""
    answer = client.call(options.socket, "status", service=service)
    assert isinstance(answer, dict)
    return answer
