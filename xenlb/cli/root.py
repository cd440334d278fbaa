"""The command `xenlb`: options in front of the verb, finding the verb, and how errors end.

A verb's module is imported when it is used; `xenlb status` must not pay for the agent's imports.
"""

import errno
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import click

from xenlb import __version__
from xenlb.cli.options import ANY_PATH, CONFIG, SOCKET, Failure, Options
from xenlb.control.protocol import FAILED, NOT_PERMITTED, USAGE, ControlError

# verb → where its command is
VERBS = {
    "run": "xenlb.cli.run:run",
    "check": "xenlb.cli.check:check",
    "plan": "xenlb.cli.once:plan",
    "apply": "xenlb.cli.once:apply",
    "status": "xenlb.cli.status:status",
    "why": "xenlb.cli.why:why",
    "events": "xenlb.cli.events:events",
    "drain": "xenlb.cli.drain:drain",
    "undrain": "xenlb.cli.drain:undrain",
    "shutdown": "xenlb.cli.drain:shutdown",
    "reboot": "xenlb.cli.drain:reboot",
    "guest": "xenlb.cli.guest:guest",
    "director": "xenlb.cli.director:director",
    "reload": "xenlb.cli.reload:reload",
}
INTERRUPTED = 128 + 2  # as a shell reports SIGINT


class Verbs(click.Group):
    """A group whose commands are looked up in VERBS."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        place = VERBS.get(cmd_name)
        if place is None:
            return None
        module, _, name = place.partition(":")
        command = getattr(importlib.import_module(module), name)
        assert isinstance(command, click.Command)
        return command


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--config",
    type=ANY_PATH,
    default=CONFIG,
    envvar="XENLB_CONFIG",
    show_default=True,
    help="The configuration.",
)
@click.option(
    "--socket",
    type=ANY_PATH,
    default=SOCKET,
    envvar="XENLB_SOCKET",
    show_default=True,
    help="Where the agent listens.",
)
@click.option("-v", "--verbose", count=True, help="Say more; twice: everything.")
@click.version_option(__version__, prog_name="xenlb", message="%(prog)s %(version)s")
@click.pass_obj
def group(options: Options, config: Path, socket: Path, verbose: int) -> None:
    """Keeps the kernel's IPVS table in step with the life cycle of libvirt guests."""
    options.config = config
    options.socket = socket
    options.verbose = verbose


def run(arguments: Sequence[str]) -> int:
    """Runs one command; its exit status. No exception gets out, and no traceback unasked."""
    options = Options()
    try:
        result = group.main(
            args=list(arguments) or ["--help"],
            prog_name="xenlb",
            standalone_mode=False,
            obj=options,
        )
        sys.stdout.flush()
        status = result if isinstance(result, int) else 0
        return status if arguments else USAGE
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "xenlb"
        return complain(error.format_message(), hint=f"see {command} --help", status=USAGE)
    except click.ClickException as error:
        return complain(error.format_message(), status=FAILED)
    except (Failure, ControlError) as error:
        for line in error.details if isinstance(error, Failure) else ():
            click.echo(line, err=True)
        return complain(error.message, hint=error.hint, status=error.status)
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except BrokenPipeError:
        # The reader has what it wanted (`xenlb events | head`); the exit must not stumble again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED  # as click does it where the pipe breaks in the middle
    except OSError as error:
        return _system(error, verbose=options.verbose)
    except Exception as error:  # the promise: never a traceback unasked
        if options.verbose:
            traceback.print_exc()
        return complain(
            f"an error in xenlb itself: {type(error).__name__}: {error}",
            hint="" if options.verbose else "xenlb --verbose … shows where; please report it",
        )


def _system(error: OSError, *, verbose: int) -> int:
    if verbose:
        traceback.print_exc()
    what = f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error)
    if error.errno in {errno.EPERM, errno.EACCES}:
        return complain(what, hint="run it as root", status=NOT_PERMITTED)
    return complain(what, hint="" if verbose else "xenlb --verbose … shows where")


def complain(message: str, *, hint: str = "", status: int = FAILED) -> int:
    """One sentence and a hint on stderr; gives the exit status back."""
    click.echo(f"xenlb: {message}" + (f"\n  {hint}" if hint else ""), err=True)
    return status
