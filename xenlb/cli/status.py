"""`xenlb status`: what the agent says, as a table or as JSON."""

import json
import sys
import time

import click

from xenlb.cli.format import Answer
from xenlb.cli.options import Options, as_json, given
from xenlb.control import client
from xenlb.control.protocol import ControlError


@click.command()
@click.argument("service", required=False)
@click.option("--watch", is_flag=True, help="Show it again every second, until Ctrl-C.")
@click.option("--failed", is_flag=True, help="Only services and servers that need attention.")
@click.option("--check", is_flag=True, help="One line, and the exit status of a Nagios plugin.")
@as_json
@given
def status(
    options: Options,
    service: str | None,
    *,
    watch: bool,
    failed: bool,
    check: bool,
    as_json: bool,
) -> int | None:
    """Services, servers, their phase, weight and connections, and why.

    With --check the exit status is 0 (all is well), 1 (something needs an operator), 2 (a service
    without a serving server, or no agent) or 3 (not known).
    """
    if check:
        if watch or as_json or failed:
            raise click.UsageError("--check goes with no other option")
        from xenlb.cli import status_check

        try:
            level, line = status_check.verdict(ask(options, service))
        except ControlError as error:
            level, line = status_check.failed(error)
        click.echo(line)
        return level
    if as_json:
        click.echo(
            json.dumps(ask(options, service), indent=None if watch else 2, ensure_ascii=False)
        )
        while watch:
            sys.stdout.flush()
            time.sleep(1)
            click.echo(json.dumps(ask(options, service), ensure_ascii=False))
        return None
    from xenlb.cli import status_terminal

    if watch:
        status_terminal.watch(lambda: ask(options, service), only_trouble=failed)
    else:
        status_terminal.show(ask(options, service), only_trouble=failed)
    return None


def ask(options: Options, service: str | None) -> Answer:
    """The agent's status, of one service or all."""
    answer = client.call(options.socket, "status", service=service)
    assert isinstance(answer, dict)
    return answer
