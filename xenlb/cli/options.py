"""Options and helpers that several verbs share, and how a verb fails."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from xenlb.control import client
from xenlb.control.protocol import FAILED, USAGE

Answer = Mapping[str, Any]
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]
# The verb that needs a file reports with status 5 that it may not read it. click would report that
# as wrong usage, also for a verb that does not open the file.
ANY_PATH = click.Path(path_type=Path, readable=False)


@dataclass(slots=True)
class Options:
    """The options in front of the verb."""

    config: Path = Path("/etc/xenlb/xenlb.yaml")
    socket: Path = Path("/run/xenlb/control.sock")
    verbose: int = 0

    @property
    def templates(self) -> Path:
        """The folder of the operator's templates, beside the configuration."""
        return self.config.parent / "templates"

    def request(self, verb: str, **arguments: Any) -> Answer:
        """Return the agent's answer to one request. Raises ControlError."""
        answer = client.call(self.socket, verb, **arguments)
        assert isinstance(answer, dict)
        return answer


class Group(click.Group):
    """A verb with verbs of its own."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Without arguments print the help and end with status 2; click before 8.2 ends with 0."""
        if not args and not ctx.resilient_parsing:  # completion parses without the last word
            click.echo(ctx.get_help(), err=True)
            ctx.exit(USAGE)
        return super().parse_args(ctx, args)


class Failure(Exception):
    """A verb failed: one sentence, a hint, the exit status, and lines to print before it."""

    def __init__(
        self, message: str, *, hint: str = "", status: int = FAILED, details: tuple[str, ...] = ()
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.status = status
        self.details = details


def with_options(*options: Decorator) -> Decorator:
    """Return a decorator that adds several options to a command, in this order."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def file_option(flag: str, default: str | Path, variable: str, text: str) -> Decorator:
    """Return an option for a file that an environment variable names, too."""
    return click.option(
        flag, type=ANY_PATH, default=default, envvar=variable, show_default=True, help=text
    )


def print_json(value: object, *, indent: int | None = 2) -> None:
    """Print a value as JSON; with indent None on one line."""
    click.echo(json.dumps(value, indent=indent, ensure_ascii=False))


pass_options: Decorator = click.make_pass_decorator(Options)
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
state_file = file_option(
    "--state", "/run/xenlb/state.json", "XENLB_STATE", "The agent's state file."
)
last_good_file = file_option(
    "--last-good",
    "/var/lib/xenlb/last-good.yaml",
    "XENLB_LAST_GOOD",
    "The agent's copy of the last good configuration.",
)
key_file = file_option(
    "--key",
    "/var/lib/xenlb/key",
    "XENLB_KEY",
    "File with the agent's secret key (created on first use).",
)
