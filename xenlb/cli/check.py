"""`xenlb check`."""

import json
from dataclasses import asdict
from pathlib import Path

import click

from xenlb.cli.options import ANY_PATH, Options, as_json, given
from xenlb.config import ConfigError, read
from xenlb.control.protocol import FAILED
from xenlb.model.problem import Problem


@click.command()
@click.argument("file", type=ANY_PATH, required=False)
@click.option(
    "--anywhere", is_flag=True, help="Do not look whether this host has what the file names."
)
@as_json
@given
def check(options: Options, file: Path | None, *, anywhere: bool, as_json: bool) -> int:
    """Validates the configuration (or FILE) and prints every problem of it.

    A problem is also an interface, a program, a user or a file that it names and this host has not,
    and a program of an exec check that others than root could have replaced.
    What is allowed and yet likely to be a mistake is a warning; the exit status is of the problems
    alone.
    """
    file = file or options.config
    problems: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = ()
    services = 0
    try:
        loaded = read(file, anywhere=anywhere)
        services, warnings = len(loaded.settings.services), loaded.settings.warnings
        problems = () if anywhere else loaded.lacking()
    except ConfigError as error:
        problems = error.problems
    if as_json:
        found = [asdict(problem) for problem in problems]
        warned = [asdict(warning) for warning in warnings]
        answer = {"file": str(file), "problems": found, "warnings": warned}
        click.echo(json.dumps(answer, indent=2))
    elif problems:
        for problem in problems:
            click.echo(problem)
    else:
        for warning in warnings:
            click.echo(f"warning: {warning}")
        click.echo(f"{file}: {services} service{'s' * (services != 1)}, no problem")
    return FAILED if problems else 0
