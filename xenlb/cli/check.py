"""`xenlb check`, and loading the configuration for the verbs that need it."""

import json
from dataclasses import asdict
from pathlib import Path

import click

from xenlb.cli.options import Failure, Options, as_json, given
from xenlb.config import ConfigError, load
from xenlb.control.protocol import FAILED, INVALID_CONFIGURATION
from xenlb.model.problem import Problem
from xenlb.model.settings import Settings


@click.command()
@click.argument("file", type=click.Path(path_type=Path), required=False)
@as_json
@given
def check(options: Options, file: Path | None, *, as_json: bool) -> int:
    """Validates the configuration (or FILE) and prints every problem of it."""
    file = file or options.config
    problems: tuple[Problem, ...] = ()
    services = 0
    try:
        services = len(load(file).services)
    except ConfigError as error:
        problems = error.problems
    if as_json:
        found = [asdict(problem) for problem in problems]
        click.echo(json.dumps({"file": str(file), "problems": found}, indent=2))
    elif problems:
        for problem in problems:
            click.echo(problem)
    else:
        click.echo(f"{file}: {services} service{'s' * (services != 1)}, no problem")
    return FAILED if problems else 0


def settings(file: Path) -> Settings:
    """The settings of a file, for verbs that cannot do without."""
    try:
        return load(file)
    except ConfigError as error:
        count = len(error.problems)
        raise Failure(
            f"the configuration has {count} problem{'s' * (count != 1)}",
            hint="correct the file; xenlb check tells when it is right",
            status=INVALID_CONFIGURATION,
            details=tuple(str(problem) for problem in error.problems),
        ) from None
