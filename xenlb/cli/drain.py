"""The verbs `drain`, `undrain`, `shutdown` and `reboot`. The agent does the work."""

import os
from typing import Any

import click

from xenlb.cli.completion import guest_argument, optional_guest_argument
from xenlb.cli.drain_progress import NOUNS, DrainWatch
from xenlb.cli.options import Options, pass_options, with_options

UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}  # seconds


def parse_duration(_: click.Context, __: click.Parameter, text: str | None) -> float | None:
    """Return the seconds of a duration such as 30s. Raises BadParameter."""
    if text is None:
        return None
    number = text.rstrip("mhs")
    unit = UNITS.get(text[len(number) :])
    if unit is None or not number.isascii() or not number.isdigit():
        raise click.BadParameter(f"'{text}' is not a duration such as 500ms, 30s, 5m or 2h")
    return int(number) * unit


drain_options = with_options(
    click.option(
        "--timeout",
        metavar="DURATION",
        callback=parse_duration,
        help="How long connections may take to end.",
    ),
    click.option("--force", is_flag=True, help="Even if a service is left with too few servers."),
    click.option("--no-wait", is_flag=True, help="Return at once; the agent goes on."),
)


@click.command()
@optional_guest_argument
@click.option("--all", "all_guests", is_flag=True, help="Every guest of this host.")
@drain_options
@pass_options
def drain(options: Options, guest: str | None, *, all_guests: bool, **choices: Any) -> None:
    """Take GUEST (name or UUID) out of service and wait until its connections have ended.

    GUEST gets no new connections from the start. Ctrl-C stops waiting, not the drain. A drain that
    leaves a service without a serving server, or below its keep-in-service, needs --force. With
    --all, as many guests drain at once as the keep-in-service of every service allows; the others
    follow.
    """
    _require_guest_or_all(guest, all_guests=all_guests)
    if guest is not None:
        return _drain(options, guest, then=None, **choices)
    operator, timeout = _operator(), choices["timeout"]
    answer = options.request("drain-all", timeout=timeout, by=operator)
    names = [drained["guest"] for drained in answer["guests"]]
    click.echo(f"no new connections: {', '.join(names) or 'no guest'}")
    if not choices["no_wait"]:
        DrainWatch(options).wait_for_all(answer, timeout=timeout, by=operator)
    elif answer["kept"]:
        click.echo(f"in service still (keep-in-service): {', '.join(answer['kept'])}")
    return None


@click.command()
@guest_argument
@drain_options
@pass_options
def shutdown(options: Options, guest: str, **choices: Any) -> None:
    """Drain GUEST, shut it down by libvirt and wait until it has stopped.

    When the drain times out, the shutdown follows all the same; the connections that are left are
    counted. Ctrl-C stops waiting, not the shutdown.
    """
    _drain(options, guest, then="poweroff", **choices)


@click.command()
@guest_argument
@drain_options
@pass_options
def reboot(options: Options, guest: str, **choices: Any) -> None:
    """Drain GUEST, reboot it by libvirt and wait until it serves again.

    Ctrl-C stops waiting, not the reboot.
    """
    _drain(options, guest, then="reboot", **choices)


@click.command()
@optional_guest_argument
@click.option("--all", "all_guests", is_flag=True, help="Every guest that was drained by hand.")
@pass_options
def undrain(options: Options, guest: str | None, *, all_guests: bool) -> None:
    """Put GUEST back into service.

    This also cancels a pending shutdown or reboot that GUEST ignores.
    """
    _require_guest_or_all(guest, all_guests=all_guests)
    if guest is None:
        answer = options.request("undrain-all", by=_operator())
        click.echo(f"in service again: {', '.join(answer['guests']) or 'no guest was drained'}")
        return
    answer = options.request("undrain", guest=guest, by=_operator())
    again = "again" if answer.get("changed", True) else "already"
    click.echo(f"{answer['guest']} is in service {again}")


def _drain(
    options: Options,
    guest: str,
    *,
    then: str | None,
    timeout: float | None,
    force: bool,
    no_wait: bool,
) -> None:
    answer = options.request(
        "drain", guest=guest, timeout=timeout, then=then, force=force, by=_operator()
    )
    follows = "" if then is None else f", {NOUNS[then]} follows"
    click.echo(f"{answer['guest']} gets no new connections{follows}")
    if not no_wait:
        DrainWatch(options).wait_for_guest(answer)


def _require_guest_or_all(guest: str | None, *, all_guests: bool) -> None:
    if all_guests != (guest is None):
        raise click.UsageError("name a guest, or give --all")


def _operator() -> str:
    """Return the name for the agent's journal: the user of sudo, else root."""
    user = os.environ.get("SUDO_USER", "")
    return f"{user[:48]} (sudo)" if user else "root"
