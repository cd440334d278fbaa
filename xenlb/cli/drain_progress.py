"""Progress of drains, shutdowns and reboots, which the agent does and a command waits for.

A terminal shows one line that is overwritten. A pipe gets a new line when the number changes.
"""

import shutil
import sys
import time
from collections.abc import Sequence
from typing import Any

import click

from xenlb.cli.format import count, until
from xenlb.cli.options import Answer, Failure, Options
from xenlb.control.protocol import UNREACHABLE, ControlError

POLL = 0.5  # seconds
ABSENCE = 30.0  # seconds that an agent may take for a restart
# What may follow a drain, as a verb and as a noun.
VERBS = {"poweroff": "shut down", "reboot": "reboot"}
NOUNS = {"poweroff": "shutdown", "reboot": "reboot"}


class ProgressLine:
    """A line that is overwritten on a terminal, and printed in a pipe when its key changes."""

    def __init__(self) -> None:
        self._terminal = sys.stdout.isatty()
        self._key = ""

    def show(self, text: str, key: str) -> None:
        """Show the text in place of the last one. In a pipe an unchanged key prints nothing."""
        if self._terminal:
            width = shutil.get_terminal_size().columns
            click.echo(f"\r\033[K{text[: width - 1]}", nl=False)
        elif key != self._key:
            click.echo(text)
        self._key = key

    def clear(self) -> None:
        """Remove the line from a terminal."""
        if self._terminal and self._key:
            click.echo("\r\033[K", nl=False)
        self._key = ""


class DrainWatch:
    """Asks the agent for the progress until a drain, and what follows it, has ended."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._line = ProgressLine()
        self._printed: set[str] = set()

    def _request(self, verb: str, **arguments: Any) -> Answer:
        """Return the agent's answer, also after a restart of the agent. Raises ControlError."""
        deadline = time.monotonic() + ABSENCE
        while True:
            try:
                return self._options.request(verb, **arguments)
            except ControlError as error:
                if error.status != UNREACHABLE or time.monotonic() > deadline:
                    raise
                self._line.show("the agent cannot be reached; waiting for it", "away")
                time.sleep(POLL)

    def _print(self, text: str) -> None:
        """Print a line that stays, once."""
        if text not in self._printed:
            self._printed.add(text)
            self._line.clear()
            click.echo(text)

    # --- one guest -------------------------------------------------------------------------------

    def wait_for_guest(self, first: Answer) -> None:
        """Wait for the end of a guest's drain and of what follows it.

        `first` is the agent's answer to the request. Raises Failure where connections are left,
        libvirt refuses, or the drain was cancelled.
        """
        try:
            while self._report(self._request("progress", guest=first["uuid"]), first["drain"]):
                time.sleep(POLL)
        except KeyboardInterrupt:
            self._line.clear()
            name, then = first["guest"], first["drain"]["then"]
            goes_on = f"the {NOUNS[then]} continues" if then else "still draining"
            click.echo(f"\n{name}: {goes_on}; to cancel: xenlb undrain {name}", err=True)
            raise
        finally:
            self._line.clear()

    def _report(self, answer: Answer, first_drain: Answer) -> bool:
        """Show the progress; return False at the end."""
        name = answer["guest"]
        records = (answer["drain"], answer["last_drain"])
        drain = next((d for d in records if d and d["id"] == first_drain["id"]), None)
        if drain is None:
            raise Failure(
                f"another drain of {name} has replaced this one", hint=f"xenlb why {name}"
            )
        verb = VERBS.get(drain["then"], "stop")
        match drain["end"]:
            case None:
                return self._report_drain(answer, drain)
            case "guest gone":
                return self._report_gone(answer, drain)
            case "guest stayed":
                text = f"{name} did not {verb} in time and is back in service"
            case "not asked":
                text = f"libvirt was not connected in time to {verb} {name}: it is back in service"
            case _:
                text = f"{name} was put back into service"
        raise Failure(text, hint=f"xenlb why {name}")

    def _report_drain(self, answer: Answer, drain: Answer) -> bool:
        name, then, left = answer["guest"], drain["then"], drain["connections_left"] or 0
        for warning in drain["warnings"] if left else ():
            self._print(f"{name}: {warning}")
        match drain["outcome"]:
            case None:
                if left:
                    self._line.show(_connections_left(answer, drain), str(left))
                return True
            case "empty":
                self._print(f"{name} is drained")
            case _:
                text = f"the drain of {name} {_timed_out(left)}"
                if then is None:
                    hint = "it stays out of service; to wait longer: xenlb drain --timeout"
                    raise Failure(text, hint=hint)
                self._print(text)
        if then is None:
            return False
        if drain["failure"]:
            raise Failure(
                f"libvirt refuses to {VERBS[then]} {name}: {drain['failure']}",
                hint=f"it stays out of service; to put it back: xenlb undrain {name}",
            )
        if drain["asked"]:
            self._print(f"{name}: {NOUNS[then]} requested")
            if answer["request"]:
                remaining = until(answer["request"]["until"], time.time())
                self._line.show(f"{name} still runs; {remaining} left", "runs")
        elif not answer.get("connected", True):
            self._line.show(f"{name}: libvirt is not connected; xenlb tries again", "away")
        return True

    def _report_gone(self, answer: Answer, drain: Answer) -> bool:
        name, absent = answer["guest"], answer["phase"] == "absent"
        if drain["then"] != "reboot":
            self._print(f"{name} has {'stopped' if absent else 'rebooted'}")
            return False
        if answer["serves"]:
            self._print(f"{name} serves again")
            return False
        self._line.show(f"{name} is {'down' if absent else 'booting'}", str(absent))
        return True

    # --- the whole host --------------------------------------------------------------------------

    def wait_for_all(self, answer: Answer, *, timeout: float | None, by: str) -> None:
        """Wait until every guest of this host is drained.

        `answer` is the agent's to the first request. Raises Failure where connections are left.
        """
        try:
            while answer["guests"] or answer["kept"]:
                # A drain without a deadline is a shutdown that this command did not ask for.
                draining = [
                    guest
                    for guest in answer["guests"]
                    if guest["drain"]["outcome"] is None and guest["drain"]["deadline"]
                ]
                for guest in answer["guests"]:
                    if outcome := guest["drain"]["outcome"]:
                        left = guest["drain"]["connections_left"] or 0
                        text = "drained" if outcome == "empty" else _timed_out(left)
                        self._print(f"{guest['guest']}: {text}")
                if not draining and not answer["kept"]:
                    break
                self._line.show(*_host_progress(draining, answer["kept"]))
                time.sleep(POLL)
                # Nothing will take over from guests that are kept: they follow the others.
                rest = not draining
                answer = self._request("drain-all", timeout=timeout, by=by, rest=rest)
            self._require_empty(answer)
        except KeyboardInterrupt:
            self._line.clear()
            click.echo("\nstill draining; to cancel: xenlb undrain --all", err=True)
            raise
        finally:
            self._line.clear()

    def _require_empty(self, answer: Answer) -> None:
        left = [
            f"{guest['guest']} ({count(guest['drain']['connections_left'], 'connection')})"
            for guest in answer["guests"]
            if guest["drain"]["outcome"] == "deadline" and guest["drain"]["connections_left"]
        ]
        if left:
            raise Failure(
                f"timed out with connections left: {', '.join(left)}",
                hint="they stay out of service; to wait longer: xenlb drain --all --timeout",
            )
        self._print("every guest of this host is drained")


def _timed_out(left: int) -> str:
    return f"timed out with {count(left, 'connection')} left"


def _connections_left(answer: Answer, drain: Answer) -> str:
    """Return `mail1: 4 connections, 45s left; 192.0.2.100 (3), 192.0.2.7`."""
    limit = f", {until(drain['deadline'], time.time())} left" if drain["deadline"] else ""
    clients = [
        holder["address"] + (f" ({holder['connections']})" if holder["connections"] > 1 else "")
        for holder in answer["holders"]
    ]
    if answer["more_holders"]:
        clients.append(f"{answer['more_holders']} more")
    listed = f"; {', '.join(clients)}" if clients else ""
    return f"{answer['guest']}: {count(drain['connections_left'], 'connection')}{limit}{listed}"


def _host_progress(draining: Sequence[Answer], kept: Sequence[str]) -> tuple[str, str]:
    """Return the text and the key of the progress line."""
    left = sum(guest["drain"]["connections_left"] or 0 for guest in draining)
    parts = []
    if draining:
        parts.append(f"{count(len(draining), 'guest')} draining, {count(left, 'connection')} left")
    if kept:
        more = f" and {len(kept) - 5} more" if len(kept) > 5 else ""
        parts.append(f"in service until then (keep-in-service): {', '.join(kept[:5])}{more}")
    return "; ".join(parts), f"{len(draining)} {left // 10} {len(kept)}"
