"""The verbs `plan` and `apply`: one pass without the agent."""

import gc
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from xenlb.cli import log_setup
from xenlb.cli.options import Options, as_json, pass_options, print_json, state_file, with_options
from xenlb.control.protocol import FAILED, UNREACHABLE, ControlError

pass_arguments = with_options(
    state_file,
    click.option(
        "--take-over",
        metavar="SERVICE",
        multiple=True,
        help="Also remove the servers that other tools have put into SERVICE (repeatable).",
    ),
    as_json,
    pass_options,
)


@click.command()
@pass_arguments
def plan(options: Options, **choices: Any) -> int:
    """Print what `apply` would do; the exit status is 1 if that is anything."""
    return _run_pass(options, change=False, **choices)


@click.command()
@pass_arguments
def apply(options: Options, *, take_over: tuple[str, ...], **choices: Any) -> int:
    """Bring the kernel's table in line with the configuration and the guests, once.

    With --take-over the running agent does it, if there is one.
    """
    if take_over and (done := _take_over_by_agent(options, take_over)) is not None:
        if choices["as_json"]:
            print_json({"operations": done, "failed": [], "notes": [], "summary": ""})
        else:
            click.echo("\n".join(done))
        return 0
    return _run_pass(options, change=True, take_over=take_over, **choices)


def _take_over_by_agent(options: Options, services: Sequence[str]) -> list[str] | None:
    """Return the agent's operations; None if no agent runs."""
    done: list[str] = []
    for service in services:
        try:
            done += options.request("take-over", service=service)["done"]
        except ControlError as error:
            if error.status == UNREACHABLE and not done:
                return None
            raise
    return done


def _run_pass(
    options: Options, *, state: Path, change: bool, take_over: Sequence[str], as_json: bool
) -> int:
    from xenlb.config import load
    from xenlb.control.lock import Lock, make_folder
    from xenlb.ipvs.errors import explain
    from xenlb.oneshot.reconcile_once import run_once

    log_setup.set_up(verbose=options.verbose, level=logging.WARNING)
    # A pass over a large table makes no garbage before its end. Collections would take a third of
    # its time.
    gc.disable()
    lock = Lock(options.socket)
    try:
        settings = load(options.config)
        if change:  # agent and apply would undo each other's changes
            lock.take()
            make_folder(state)
        once = run_once(settings, state_path=state, change=change, take_over=take_over)
    finally:
        lock.release()
        gc.freeze()  # keeps the collection at the exit from visiting all objects
        gc.enable()
    failures = [(f"ipvsadm {failure.op}", explain(failure)) for failure in once.failed]
    operations = [f"ipvsadm {op}" for op in once.ops]
    if as_json:
        failed = [
            {"operation": operation, "message": reason.message, "hint": reason.hint}
            for operation, reason in failures
        ]
        answer = {"operations": operations, "failed": failed, "notes": once.notes}
        print_json({**answer, "summary": once.summary})
    else:
        if operations:
            click.echo("\n".join(operations))
        summary = [f"{'changes' if change else 'would change'}: {once.summary}"] * bool(
            once.summary
        )
        failed_lines = [f"{operation}: {reason}" for operation, reason in failures]
        for line in (*once.notes, *summary, *failed_lines):
            click.echo(f"xenlb: {line}", err=True)
    return FAILED if failures or (operations and not change) else 0
