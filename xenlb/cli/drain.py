"""`xenlb drain`, `undrain`, `shutdown` and `reboot`: out of service and back, by hand.

The agent does it all; whoever waits for it is in drain_progress.py.
"""

import os

import click

from xenlb.cli.completion import complete
from xenlb.cli.drain_progress import DOES, Waiter
from xenlb.cli.options import Options, given
from xenlb.control import client

UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def seconds(_: click.Context, __: click.Parameter, written: str | None) -> float | None:
    """A duration as the configuration writes it, in seconds."""
    if written is None:
        return None
    number = written.rstrip("mhs")
    unit = UNITS.get(written[len(number) :])
    if unit is None or not number.isascii() or not number.isdigit():
        raise click.BadParameter(f"'{written}' is no duration; write 500ms, 30s, 5m or 2h")
    return int(number) * unit


timed = click.option(
    "--timeout", metavar="DURATION", callback=seconds, help="How long connections may take to end."
)
forced = click.option(
    "--force", is_flag=True, help="Also where a service is left without enough servers."
)
no_wait = click.option("--no-wait", is_flag=True, help="Return when it has begun.")


@click.command()
@click.argument("guest", required=False, shell_complete=complete)
@click.option("--all", "everybody", is_flag=True, help="Every guest of this host.")
@timed
@forced
@no_wait
@given
def drain(
    options: Options,
    guest: str | None,
    *,
    everybody: bool,
    timeout: float | None,
    force: bool,
    no_wait: bool,
) -> None:
    """Takes GUEST (name or UUID) out of service, and waits until its connections have ended.

    It gets no new connections from the first moment on; Ctrl-C ends the waiting, not the drain. A
    drain that would leave a service without a serving server, or below its keep-in-service, is
    refused without --force. With --all, the guests of this host: as many at once as leave every
    service its keep-in-service share, the others when those are done.
    """
    if everybody:
        _named_or_all(guest is None)
        answer = client.call(options.socket, "drain-all", timeout=timeout, by=_operator())
        assert isinstance(answer, dict)
        names = [each["guest"] for each in answer["guests"]]
        click.echo(f"no new connections: {', '.join(names) or 'no guest'}")
        if not no_wait:
            Waiter(options.socket).all(answer, timeout=timeout, by=_operator())
        elif answer["kept"]:
            click.echo(f"kept in service: {', '.join(answer['kept'])}")
        return
    _named_or_all(guest is not None)
    _drain(options, guest, then=None, timeout=timeout, force=force, no_wait=no_wait)


def _drain(
    options: Options,
    guest: str | None,
    *,
    then: str | None,
    timeout: float | None,
    force: bool,
    no_wait: bool,
) -> None:
    answer = client.call(
        options.socket,
        "drain",
        guest=guest,
        timeout=timeout,
        then=then,
        force=force,
        by=_operator(),
    )
    assert isinstance(answer, dict)
    follows = "" if then is None else f", then it is asked to {DOES[then]}"
    click.echo(f"{answer['guest']} gets no new connections{follows}")
    if not no_wait:
        Waiter(options.socket).one(answer)


def _named_or_all(right: bool) -> None:
    if not right:
        raise click.UsageError("name a guest, or give --all")


@click.command()
@click.argument("guest", shell_complete=complete)
@timed
@forced
@no_wait
@given
def shutdown(
    options: Options, guest: str, *, timeout: float | None, force: bool, no_wait: bool
) -> None:
    """Drains GUEST, then asks it to shut down, and waits until it has stopped.

    The agent does both; Ctrl-C stops waiting, not the shutdown. After the drain's timeout the guest
    is asked in any case; the connections that are cut then are counted.
    """
    _drain(options, guest, then="poweroff", timeout=timeout, force=force, no_wait=no_wait)


@click.command()
@click.argument("guest", shell_complete=complete)
@timed
@forced
@no_wait
@given
def reboot(
    options: Options, guest: str, *, timeout: float | None, force: bool, no_wait: bool
) -> None:
    """Drains GUEST, then asks it to reboot, and waits until it serves again.

    The agent does it all; Ctrl-C stops waiting, not the reboot.
    """
    _drain(options, guest, then="reboot", timeout=timeout, force=force, no_wait=no_wait)


@click.command()
@click.argument("guest", required=False, shell_complete=complete)
@click.option("--all", "everybody", is_flag=True, help="Every guest that an operator has drained.")
@given
def undrain(options: Options, guest: str | None, *, everybody: bool) -> None:
    """Puts GUEST back into service; also cancels a shutdown or reboot that the guest ignores."""
    _named_or_all(everybody != (guest is not None))
    if everybody:
        answer = client.call(options.socket, "undrain-all", by=_operator())
        assert isinstance(answer, dict)
        click.echo(f"in service again: {', '.join(answer['guests']) or 'no guest was drained'}")
        return
    answer = client.call(options.socket, "undrain", guest=guest, by=_operator())
    assert isinstance(answer, dict)
    again = "again" if answer.get("changed", True) else "already"
    click.echo(f"{answer['guest']} is in service {again}")


def _operator() -> str:
    """Who it is, for the journal; under sudo the person, not root."""
    person = os.environ.get("SUDO_USER", "")
    return f"{person[:48]} (sudo)" if person else "root"
