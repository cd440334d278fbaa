"""`xenlb drain` and `xenlb undrain`: out of service and back, by hand."""

import os
import time
from collections.abc import Sequence

import click

from xenlb.cli import layout
from xenlb.cli.guests import complete
from xenlb.cli.layout import Answer
from xenlb.cli.options import Failure, Options, given
from xenlb.control import client

UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
POLL = 0.5  # seconds


def seconds(_: click.Context, __: click.Parameter, written: str | None) -> float | None:
    """A duration as the configuration writes it, in seconds."""
    if written is None:
        return None
    number = written.rstrip("mhs")
    unit = UNITS.get(written[len(number) :])
    if unit is None or not number.isascii() or not number.isdigit():
        raise click.BadParameter(f"“{written}” is no duration; write 500ms, 30s, 5m or 2h")
    return int(number) * unit


@click.command()
@click.argument("guest", shell_complete=complete)
@click.option(
    "--timeout", metavar="DURATION", callback=seconds, help="How long connections may take to end."
)
@click.option("--no-wait", is_flag=True, help="Return when it has begun.")
@given
def drain(options: Options, guest: str, *, timeout: float | None, no_wait: bool) -> None:
    """Takes GUEST (name or UUID) out of service, and waits until its connections have ended.

    Nothing new reaches it from the first moment on; Ctrl-C ends the waiting, not the drain.
    """
    answer = client.call(options.socket, "drain", guest=guest, timeout=timeout, by=_operator())
    assert isinstance(answer, dict)
    click.echo(f"{answer['guest']} gets no new connections")
    if not no_wait:
        _wait(options, answer)


def _wait(options: Options, answer: Answer) -> None:
    """Until no connection is left, for two looks in a row; tells whenever the count changes."""
    name, uuid = answer["guest"], answer["uuid"]
    told, quiet = -1, 0
    while quiet < 2:
        why = client.call(options.socket, "why", guest=uuid)
        assert isinstance(why, dict)
        drain = why["drain"]
        if drain is None:
            if why["phase"] == "absent":
                click.echo(f"{name} has stopped")
                return
            raise Failure(f"{name} was put back into service meanwhile", hint=f"xenlb why {name}")
        left = _connections(why["servers"])
        quiet = 0 if left else quiet + 1
        time_left = layout.until(drain["deadline"], time.time()) if drain["deadline"] else ""
        if left and time_left == "0s":
            raise Failure(
                f"{name} still has {left} connection{'s' * (left != 1)}, and its time is up",
                hint="it stays out of service; xenlb drain --timeout gives it longer",
            )
        if left and left != told:
            limit = f", {time_left} left" if time_left else ""
            click.echo(f"{name}: {left} connection{'s' * (left != 1)}{limit}")
            told = left
        time.sleep(POLL)
    click.echo(f"{name} is drained")


def _connections(servers: Sequence[Answer]) -> int:
    """What the drain waits for: established connections; all entries where the policy says so."""
    return sum(
        server["active_connections"]
        + (server["inactive_connections"] if server.get("drain_until") == "all" else 0)
        for server in servers
    )


@click.command()
@click.argument("guest", shell_complete=complete)
@given
def undrain(options: Options, guest: str) -> None:
    """Puts GUEST back into service."""
    answer = client.call(options.socket, "undrain", guest=guest, by=_operator())
    assert isinstance(answer, dict)
    click.echo(f"{answer['guest']} is in service again")


def _operator() -> str:
    """Who it is, for the journal; under sudo the person, not root."""
    person = os.environ.get("SUDO_USER", "")
    return f"{person[:48]} (sudo)" if person else "root"
