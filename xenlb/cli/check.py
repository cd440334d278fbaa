"""The verb `check`."""

from dataclasses import asdict
from pathlib import Path

import click

from xenlb.cli.format import count
from xenlb.cli.options import ANY_PATH, Options, as_json, pass_options, print_json
from xenlb.config import ConfigError, load_config
from xenlb.control.protocol import FAILED
from xenlb.model.problem import Problem


@click.command()
@click.argument("file", type=ANY_PATH, required=False)
@click.option("--anywhere", is_flag=True, help="Do not check the file against this host.")
@as_json
@pass_options
def check(options: Options, file: Path | None, *, anywhere: bool, as_json: bool) -> int:
    """Validate the configuration (or FILE) and print every problem.

    An interface, a program, a user or a file that this host lacks is a problem. So is a program of
    an exec check that a user other than root can replace. Likely mistakes are printed as warnings;
    they do not change the exit status.
    """
    file = file or options.config
    problems: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = ()
    services = 0
    try:
        loaded = load_config(file, any_host=anywhere)
        services, warnings = len(loaded.settings.services), loaded.settings.warnings
        problems = () if anywhere else loaded.missing_requirements()
    except ConfigError as error:
        problems = error.problems
    if as_json:
        print_json(
            {
                "file": str(file),
                "problems": [asdict(problem) for problem in problems],
                "warnings": [asdict(warning) for warning in warnings],
            }
        )
    elif problems:
        click.echo("\n".join(map(str, problems)))
    else:
        for warning in warnings:
            click.echo(f"warning: {warning}")
        click.echo(f"{file}: {count(services, 'service')}, no problem")
    return FAILED if problems else 0
