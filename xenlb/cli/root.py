"""The command `xenlb`: options in front of the verb, look-up of the verb, and how errors end.

A verb's module is imported when the verb is used: `xenlb status` does not load the agent.
"""

import errno
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import click

from xenlb import __version__
from xenlb.cli.options import Failure, Options, file_option, print_json
from xenlb.control import protocol
from xenlb.control.protocol import FAILED, ControlError

# verb → the module and name of its command, and its line in `xenlb --help`
VERBS = {
    "run": ("run:run", "run the agent in the foreground"),
    "check": ("check:check", "validate the configuration"),
    "plan": ("plan_apply:plan", "show what apply would change"),
    "apply": ("plan_apply:apply", "bring the kernel's table in line, once"),
    "status": ("status:status", "show services and servers, with reasons"),
    "why": ("why:why", "explain the weights of a guest"),
    "events": ("events:events", "show the agent's journal of events"),
    "drain": ("drain:drain", "take a guest out of service, and wait"),
    "undrain": ("drain:undrain", "put a guest back into service"),
    "shutdown": ("drain:shutdown", "drain a guest, then shut it down"),
    "reboot": ("drain:reboot", "drain a guest, then reboot it"),
    "guest": ("guest:guest", "set up the inside of a guest"),
    "director": ("director:director", "make files for this host"),
    "reload": ("reload:reload", "read the configuration again"),
    "debug": ("debug:debug", "show the agent's state as JSON"),
}
# Options in front of the verb that are also taken behind it; True: with a value.
GLOBAL = {"--config": True, "--socket": True, "--verbose": False, "-v": False}
INTERRUPTED = 128 + 2  # as a shell reports SIGINT


class VerbGroup(click.Group):
    """A group whose commands are looked up in VERBS."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return all verbs."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return the command of a verb."""
        if cmd_name not in VERBS:
            return None
        module, _, name = VERBS[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(f"xenlb.cli.{module}"), name)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command. A UsageError for an unknown verb suggests a similar one."""
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            from xenlb.untrusted.printable import quoted
            from xenlb.untrusted.suggestions import did_you_mean

            hint = did_you_mean(args[0], VERBS)
            raise click.UsageError(
                f"there is no verb {quoted(args[0])}" + (f"; {hint}" if hint else ""), ctx
            )
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of verbs without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(verb, summary) for verb, (_, summary) in VERBS.items()])


@click.group(cls=VerbGroup, context_settings={"help_option_names": ["-h", "--help"]})
@file_option("--config", Options().config, "XENLB_CONFIG", "The configuration file.")
@file_option("--socket", Options().socket, "XENLB_SOCKET", "The agent's control socket.")
@click.option("-v", "--verbose", count=True, help="Log more; twice: also libraries.")
@click.version_option(__version__, prog_name="xenlb", message="%(prog)s %(version)s")
@click.pass_obj
def group(options: Options, config: Path, socket: Path, verbose: int) -> None:
    """Keep the kernel's IPVS table in step with the life cycle of libvirt guests."""
    options.config = config
    options.socket = socket
    options.verbose = verbose


def move_global_options_first(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with the global options in front of the verb."""
    front: list[str] = []
    others: list[str] = []
    items = iter(arguments)
    for item in items:
        name, _, value = item.partition("=")
        if item == "--":
            return [*front, *others, item, *items]
        if name not in GLOBAL or (value and not GLOBAL[name]):
            others.append(item)
        else:
            front.append(item)
            if GLOBAL[name] and not value:
                front.extend(islice(items, 1))
    return front + others


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit status.

    No exception leaves this function. A traceback is printed with --verbose only.
    """
    status, error = _run(arguments)
    try:
        if error is not None and "--json" in arguments:
            print_json({"error": {**error, "status": status}}, indent=None)
        sys.stdout.flush()
    except OSError:  # Python flushes stdout again at its exit, which must not fail
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return status


Error = dict[str, str]


def _run(arguments: Sequence[str]) -> tuple[int, Error | None]:
    options = Options()
    try:
        result = group.main(
            args=move_global_options_first(arguments) or ["--help"],
            prog_name="xenlb",
            standalone_mode=False,
            obj=options,
        )
        sys.stdout.flush()
        status = result if isinstance(result, int) else 0
        return status if arguments else protocol.USAGE, None
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "xenlb"
        return _report(error.format_message(), hint=f"see {command} --help", status=protocol.USAGE)
    except click.ClickException as error:
        return _report(error.format_message())
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED, None
    except BrokenPipeError:  # the reader has ended (`xenlb events | head`)
        return FAILED, None  # as click does for a broken pipe
    except (Failure, ControlError) as error:
        for line in error.details if isinstance(error, Failure) else ():
            click.echo(line, err=True)
        return _report(error.message, hint=error.hint, status=error.status)
    except Exception as error:
        return _report_exception(error, verbose=bool(options.verbose))


def _report_exception(error: Exception, *, verbose: bool) -> tuple[int, Error]:
    """Report an exception of another room, or a bug."""
    from xenlb.cli.format import count
    from xenlb.model.problem import ConfigError

    denied = getattr(error, "errno", None) in {errno.EPERM, errno.EACCES}
    if isinstance(error, ConfigError):
        for problem in error.problems:
            click.echo(problem, err=True)
        return _report(
            f"the configuration has {count(len(error.problems), 'problem')}",
            hint="correct the file; xenlb check verifies it",
            status=protocol.INVALID_CONFIGURATION,
        )
    # The errors of guestside, hypervisor, ipvs and oneshot have a sentence and a hint.
    message, hint = getattr(error, "message", None), getattr(error, "hint", None)
    if isinstance(message, str) and isinstance(hint, str):
        denied = denied or not getattr(error, "permitted", True)
        return _report(message, hint=hint, status=protocol.NOT_PERMITTED if denied else FAILED)
    if verbose:
        traceback.print_exc()
    if isinstance(error, OSError):
        file, reason = error.filename, str(error.strerror or error)
        text = f"{file}: {reason}" if file else reason
        if denied:
            return _report(text, hint="run it as root", status=protocol.NOT_PERMITTED)
        if error.errno == errno.ENOSPC:
            hint = "df /run /var/lib shows which file system is full"
            return _report(f"a file cannot be written: {text}", hint=hint)
        known = verbose or file
        return _report(text, hint="" if known else "xenlb --verbose … shows the call that failed")
    return _report(
        f"an error in xenlb itself: {type(error).__name__}: {error}",
        hint="" if verbose else "please report it, with the output of xenlb --verbose …",
    )


def _report(message: str, *, hint: str = "", status: int = FAILED) -> tuple[int, Error]:
    """Print one sentence and a hint on stderr; return the exit status and the JSON of the error."""
    click.echo(f"xenlb: {message}" + (f"\n  {hint}" if hint else ""), err=True)
    return status, {"message": message, "hint": hint}
