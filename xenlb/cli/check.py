"""`xenlb check`."""

import json
from dataclasses import asdict
from pathlib import Path

import click

from xenlb.cli.options import ANY_PATH, Options, as_json, given
from xenlb.config import ConfigError, notes, read
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

    A problem is also an interface, a program, a user or a file that it names and this host has not.
    """
    file = file or options.config
    problems: tuple[Problem, ...] = ()
    said: tuple[str, ...] = ()
    services = 0
    try:
        loaded = read(file)
        services, said = len(loaded.settings.services), notes(loaded.settings)
        problems = () if anywhere else loaded.lacking()
    except ConfigError as error:
        problems = error.problems
    if as_json:
        found = [asdict(problem) for problem in problems]
        answer = {"file": str(file), "problems": found} | ({"notes": list(said)} if said else {})
        click.echo(json.dumps(answer, indent=2))
    elif problems:
        for problem in problems:
            click.echo(problem)
    else:
        click.echo(f"{file}: {services} service{'s' * (services != 1)}, no problem")
        for note in said:
            click.echo(f"note: {note}")
    return FAILED if problems else 0
