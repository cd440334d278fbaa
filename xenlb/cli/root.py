"""The command `xenlb`: options in front of the verb, finding the verb, and how errors end.

A verb's module is imported when it is used; `xenlb status` must not pay for the agent's imports.
"""

import errno
import importlib
import json
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import click

from xenlb import __version__
from xenlb.cli.options import ANY_PATH, CONFIG, SOCKET, Failure, Options
from xenlb.control.protocol import FAILED, NOT_PERMITTED, USAGE, ControlError

# verb → where its command is, and what `xenlb --help` says of it
VERBS = {
    "run": ("run:run", "the agent, in the foreground"),
    "check": ("check:check", "validate the configuration"),
    "plan": ("plan_apply:plan", "show what apply would change"),
    "apply": ("plan_apply:apply", "make the kernel's table as configured, once"),
    "status": ("status:status", "services and servers, and why"),
    "why": ("why:why", "all that is known of a guest"),
    "events": ("events:events", "what the agent saw and did"),
    "drain": ("drain:drain", "take a guest out of service, and wait"),
    "undrain": ("drain:undrain", "put a guest back into service"),
    "shutdown": ("drain:shutdown", "drain a guest, then shut it down"),
    "reboot": ("drain:reboot", "drain a guest, then reboot it"),
    "guest": ("guest:guest", "what xenlb has inside a guest"),
    "director": ("director:director", "files for this host itself"),
    "reload": ("reload:reload", "read the configuration again"),
}
# Options in front of the verb that are also taken behind it; True: with a value.
GLOBAL = {"--config": True, "--socket": True, "--verbose": False, "-v": False}
INTERRUPTED = 128 + 2  # as a shell reports SIGINT


class VerbGroup(click.Group):
    """A group whose commands are looked up in VERBS."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        module, _, name = VERBS[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(f"xenlb.cli.{module}"), name)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            from xenlb.model.suggestions import quoted, suggestion

            hint = suggestion(args[0], VERBS)
            raise click.UsageError(
                f"there is no verb {quoted(args[0])}" + (f"; {hint}" if hint else ""), ctx
            )
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(verb, said) for verb, (_, said) in VERBS.items()])


@click.group(cls=VerbGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--config",
    type=ANY_PATH,
    default=CONFIG,
    envvar="XENLB_CONFIG",
    show_default=True,
    help="The configuration file.",
)
@click.option(
    "--socket",
    type=ANY_PATH,
    default=SOCKET,
    envvar="XENLB_SOCKET",
    show_default=True,
    help="The agent's control socket.",
)
@click.option("-v", "--verbose", count=True, help="Log more; twice: also libraries.")
@click.version_option(__version__, prog_name="xenlb", message="%(prog)s %(version)s")
@click.pass_obj
def group(options: Options, config: Path, socket: Path, verbose: int) -> None:
    """Keeps the kernel's IPVS table in step with the life cycle of libvirt guests."""
    options.config = config
    options.socket = socket
    options.verbose = verbose


def hoisted(arguments: Sequence[str]) -> list[str]:
    """The global options that stand behind the verb, in front of it."""
    front: list[str] = []
    rest: list[str] = []
    items = iter(arguments)
    for item in items:
        name, _, value = item.partition("=")
        if item == "--":
            return [*front, *rest, item, *items]
        if name not in GLOBAL or (value and not GLOBAL[name]):
            rest.append(item)
        elif GLOBAL[name] and not value:
            front += [item, *([following] if (following := next(items, None)) is not None else [])]
        else:
            front.append(item)
    return front + rest


def run(arguments: Sequence[str]) -> int:
    """Runs one command; its exit status. No exception gets out, and no traceback unasked."""
    status, error = _run(arguments)
    if error is not None and "--json" in arguments:
        click.echo(json.dumps({"error": {**error, "status": status}}))
    return status


Error = dict[str, str]


def _run(arguments: Sequence[str]) -> tuple[int, Error | None]:
    options = Options()
    try:
        result = group.main(
            args=hoisted(arguments) or ["--help"],
            prog_name="xenlb",
            standalone_mode=False,
            obj=options,
        )
        sys.stdout.flush()
        status = result if isinstance(result, int) else 0
        return status if arguments else USAGE, None
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
        return INTERRUPTED, None
    except BrokenPipeError:
        # The reader has what it wanted (`xenlb events | head`); the exit must not stumble again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED, None  # as click does it where the pipe breaks in the middle
    except OSError as error:
        return _system(error, verbose=options.verbose)
    except Exception as error:  # the promise: never a traceback unasked
        if options.verbose:
            traceback.print_exc()
        return complain(
            f"an error in xenlb itself: {type(error).__name__}: {error}",
            hint=""
            if options.verbose
            else "please report it, with the output of xenlb --verbose …",
        )


def _system(error: OSError, *, verbose: int) -> tuple[int, Error]:
    if verbose:
        traceback.print_exc()
    what = f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error)
    if error.errno in {errno.EPERM, errno.EACCES}:
        return complain(what, hint="run it as root", status=NOT_PERMITTED)
    known = verbose or error.filename
    return complain(what, hint="" if known else "xenlb --verbose … shows the call that failed")


def complain(message: str, *, hint: str = "", status: int = FAILED) -> tuple[int, Error]:
    """One sentence and a hint on stderr."""
    click.echo(f"xenlb: {message}" + (f"\n  {hint}" if hint else ""), err=True)
    return status, {"message": message, "hint": hint}
