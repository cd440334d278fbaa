"""The verb `status`: the agent's answer as a table, as JSON, or for a monitoring system."""

import sys
import time
from functools import partial

import click

from xenlb.cli.options import Options, as_json, pass_options, print_json
from xenlb.control.protocol import ControlError


@click.command()
@click.argument("service", required=False)
@click.option("--watch", is_flag=True, help="Show it again every second, until Ctrl-C.")
@click.option("--failed", is_flag=True, help="Only services and servers that need attention.")
@click.option("--check", is_flag=True, help="One line and the exit status of a Nagios plugin.")
@as_json
@pass_options
def status(
    options: Options,
    service: str | None,
    *,
    watch: bool,
    failed: bool,
    check: bool,
    as_json: bool,
) -> int | None:
    """Show services and servers: phase, weight, connections, health and reason.

    The exit status of --check is 0 (OK), 1 (an operator is needed), 2 (a service has no serving
    server, or the agent cannot be reached) or 3 (unknown).
    """
    request = partial(options.request, "status", service=service)
    if check:
        if watch or as_json or failed:
            raise click.UsageError("--check cannot be combined with other options")
        from xenlb.cli import status_check

        try:
            level, line = status_check.evaluate(request())
        except ControlError as error:
            level, line = status_check.evaluate_error(error)
        click.echo(line)
        return level
    if as_json:
        print_json(request(), indent=None if watch else 2)
        while watch:
            sys.stdout.flush()
            time.sleep(1)
            print_json(request(), indent=None)
        return None
    from xenlb.cli import status_terminal

    if watch:
        status_terminal.watch(request, only_trouble=failed)
    else:
        status_terminal.show(request(), only_trouble=failed)
    return None
