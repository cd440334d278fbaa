"""`xenlb plan` and `xenlb apply`: one pass without a daemon."""

import gc
import json
import logging
from collections.abc import Sequence
from errno import EACCES, EPERM
from pathlib import Path

import click

from xenlb.cli import log_setup
from xenlb.cli.invalid_config import invalid
from xenlb.cli.options import Failure, Options, as_json, given, state_file
from xenlb.control.protocol import FAILED, NOT_PERMITTED
from xenlb.model.problem import ConfigError

taken_over = click.option(
    "--take-over",
    metavar="SERVICE",
    multiple=True,
    help="Also remove what other tools have put into SERVICE (may be repeated).",
)


@click.command()
@state_file
@taken_over
@as_json
@given
def plan(options: Options, state: Path, *, take_over: tuple[str, ...], as_json: bool) -> int:
    """Prints what `apply` would do; exit status 1 when that is anything."""
    return _pass(options, state, change=False, take_over=take_over, as_json=as_json)


@click.command()
@state_file
@taken_over
@as_json
@given
def apply(options: Options, state: Path, *, take_over: tuple[str, ...], as_json: bool) -> int:
    """Makes the kernel's table what the configuration and the guests want, once.

    With --take-over a running agent does it, if there is one.
    """
    if take_over and (done := _by_agent(options, take_over)) is not None:
        if as_json:
            click.echo(
                json.dumps({"operations": done, "failed": [], "notes": [], "summary": ""}, indent=2)
            )
        else:
            click.echo("\n".join(done))
        return 0
    return _pass(options, state, change=True, take_over=take_over, as_json=as_json)


def _by_agent(options: Options, services: Sequence[str]) -> list[str] | None:
    """What the agent has done for each service; None where no agent runs."""
    from xenlb.control import client
    from xenlb.control.protocol import UNREACHABLE, ControlError

    done: list[str] = []
    for service in services:
        try:
            answer = client.call(options.socket, "take-over", service=service)
        except ControlError as error:
            if error.status == UNREACHABLE and not done:
                return None
            raise
        assert isinstance(answer, dict)
        done += answer["done"]
    return done


def _pass(
    options: Options, state: Path, *, change: bool, take_over: Sequence[str], as_json: bool
) -> int:
    from xenlb.config import load
    from xenlb.control.lock import Lock, make_folder
    from xenlb.ipvs.errors import IpvsError, explain
    from xenlb.oneshot.reconcile_once import OnceError, run_once

    log_setup.set_up(verbose=options.verbose, level=logging.WARNING)
    # Nothing of a large table is garbage before the end; looking for it costs a third of the time.
    gc.disable()
    lock = Lock(options.socket)
    try:
        settings = load(options.config)
        if change:  # beside an agent, each would undo what the other does
            lock.take()
            make_folder(state)
        once = run_once(settings, state_path=state, change=change, take_over=take_over)
    except ConfigError as error:
        raise invalid(error) from None
    except OnceError as error:
        raise Failure(error.message, hint=error.hint) from error
    except IpvsError as error:
        status = NOT_PERMITTED if error.errno in {EPERM, EACCES} else FAILED
        raise Failure(error.message, hint=error.hint, status=status) from error
    finally:
        lock.release()
        gc.freeze()  # or the first collection, at the latest that of the exit, goes through it all
        gc.enable()
    failed = [(f"ipvsadm {failure.op}", explain(failure)) for failure in once.failed]
    if as_json:
        answer = {
            "operations": [f"ipvsadm {op}" for op in once.ops],
            "failed": [
                {"operation": op, "message": why.message, "hint": why.hint} for op, why in failed
            ],
            "notes": list(once.notes),
            "summary": once.summary,
        }
        click.echo(json.dumps(answer, indent=2))
    else:
        said = "changes" if change else "would change"
        _print(once.ops, failed, (*once.notes, *([f"{said}: {once.summary}"] * bool(once.summary))))
    return FAILED if failed or (once.ops and not change) else 0


def _print(
    ops: Sequence[object], failed: Sequence[tuple[str, object]], notes: Sequence[str]
) -> None:
    if ops:
        click.echo("\n".join(f"ipvsadm {op}" for op in ops))
    for note in notes:
        click.echo(f"xenlb: {note}", err=True)
    for op, why in failed:
        click.echo(f"xenlb: {op}: {why}", err=True)
