"""`xenlb check`."""

import json
from dataclasses import asdict
from pathlib import Path

import click

from xenlb.cli.options import Options, as_json, given
from xenlb.config import ConfigError, load
from xenlb.control.protocol import FAILED
from xenlb.model.problem import Problem


@click.command()
@click.argument("file", type=click.Path(path_type=Path), required=False)
@as_json
@given
def check(options: Options, file: Path | None, *, as_json: bool) -> int:
    """Validates the configuration (or FILE) and prints every problem of it.

    Also what is allowed and yet likely to be a mistake, as a warning; the exit status is of the
    problems alone.
    """
    file = file or options.config
    problems: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = ()
    services = 0
    try:
        settings = load(file)
        services, warnings = len(settings.services), settings.warnings
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
