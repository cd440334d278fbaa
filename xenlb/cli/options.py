"""What every verb is given, and how a verb fails."""

from dataclasses import dataclass
from pathlib import Path

import click

from xenlb.control.protocol import FAILED, USAGE

CONFIG = "/etc/xenlb/xenlb.yaml"
SOCKET = "/run/xenlb/control.sock"
STATE = "/run/xenlb/state.json"
KEY = "/var/lib/xenlb/key"
LAST_GOOD = "/var/lib/xenlb/last-good.yaml"


@dataclass(slots=True)
class Options:
    """The options in front of the verb."""

    config: Path = Path(CONFIG)
    socket: Path = Path(SOCKET)
    verbose: int = 0

    @property
    def templates(self) -> Path:
        """Beside the configuration: /etc/xenlb/templates, unless that is another."""
        return self.config.parent / "templates"


class Group(click.Group):
    """A verb with verbs of its own; without one of them it prints its help, and ends with 2.

    click before 8.2 ends with 0 then.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args:
            click.echo(ctx.get_help(), err=True)
            ctx.exit(USAGE)
        return super().parse_args(ctx, args)


# Whether a file may be read is found where it is read: who may not, is told so with status 5, and a
# verb that needs no socket or state file does not ask for it.
ANY_PATH = click.Path(path_type=Path, readable=False)

given = click.make_pass_decorator(Options)
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
state_file = click.option(
    "--state",
    type=ANY_PATH,
    default=STATE,
    envvar="XENLB_STATE",
    show_default=True,
    help="The agent's state file.",
)
last_good_file = click.option(
    "--last-good",
    type=ANY_PATH,
    default=LAST_GOOD,
    envvar="XENLB_LAST_GOOD",
    show_default=True,
    help="Where the last good configuration is kept.",
)
key_file = click.option(
    "--key",
    type=ANY_PATH,
    default=KEY,
    envvar="XENLB_KEY",
    show_default=True,
    help="File with the agent's secret key (created on first use).",
)


class Failure(Exception):
    """A verb failed: one sentence, what to do about it, the exit status; details come before."""

    def __init__(
        self, message: str, *, hint: str = "", status: int = FAILED, details: tuple[str, ...] = ()
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.status = status
        self.details = details
