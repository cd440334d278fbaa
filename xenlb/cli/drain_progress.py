"""Waiting for drains, and for what comes after them: `drain`, `shutdown`, `reboot`, `drain --all`.

The agent does the work, and goes on with it whatever becomes of the command: here it is only looked
at. On a terminal one line is written over; elsewhere a line is told when something has changed.
"""

import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from xenlb.cli import format
from xenlb.cli.format import Answer, connections
from xenlb.cli.options import Failure
from xenlb.control import client
from xenlb.control.protocol import UNREACHABLE, ControlError

POLL = 0.5  # seconds
ABSENCE = 30.0  # seconds that an agent may be away while it is restarted

DOES = {"poweroff": "shut down", "reboot": "reboot"}


class Progress:
    """A line that changes: on a terminal in place, else told anew when it says something else."""

    def __init__(self) -> None:
        self._terminal = sys.stdout.isatty()
        self._essence = ""

    def show(self, text: str, essence: str) -> None:
        """`essence`: what of it is worth a new line where nothing can be written over."""
        if self._terminal:
            width = shutil.get_terminal_size().columns
            click.echo(f"\r\033[K{text[: width - 1]}", nl=False)
        elif essence != self._essence:
            click.echo(text)
        self._essence = essence

    def say(self, text: str) -> None:
        """A line that stays."""
        self.end()
        click.echo(text)

    def end(self) -> None:
        """The line that changes has no more to tell."""
        if self._terminal and self._essence:
            click.echo("\r\033[K", nl=False)
        self._essence = ""


class Waiter:
    """Looks at a running agent again and again; one that is restarted meanwhile is waited for."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._progress = Progress()
        self._told: set[str] = set()

    def _ask(self, verb: str, **arguments: Any) -> Answer:
        until = time.monotonic() + ABSENCE
        while True:
            try:
                answer = client.call(self._socket, verb, **arguments)
            except ControlError as error:
                if error.status != UNREACHABLE or time.monotonic() > until:
                    raise
                self._progress.show("the agent is away; waiting for it", "away")
                time.sleep(POLL)
                continue
            assert isinstance(answer, dict)
            return answer

    def _once(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self._progress.say(text)

    # --- one guest -------------------------------------------------------------------------------

    def one(self, begun: Answer) -> None:
        """Until the drain of a guest, and what comes after it, is over. `begun`: the agent's answer
        when it began. Raises Failure where it came to something else."""
        try:
            while self._look(self._ask("progress", guest=begun["uuid"]), begun):
                time.sleep(POLL)
        except KeyboardInterrupt:
            self._progress.end()
            then = begun["drain"]["then"]
            what = {"poweroff": "drain and shutdown go on", "reboot": "drain and reboot go on"}
            click.echo(
                f"\n{begun['guest']}: {what.get(then, 'the drain goes on')};"
                f" to cancel: xenlb undrain {begun['guest']}",
                err=True,
            )
            raise
        finally:
            self._progress.end()

    def _look(self, answer: Answer, begun: Answer) -> bool:
        """Is it worth another look?"""
        name, began = begun["guest"], begun["drain"]["id"]
        records = (answer["drain"], answer["last_drain"])
        drain = next((each for each in records if each and each["id"] == began), None)
        if drain is None:
            raise Failure(f"{name} was drained anew meanwhile", hint=f"xenlb why {name}")
        match drain["end"]:
            case None:
                return self._lasts(answer, drain)
            case "guest gone":
                return self._went(answer, drain)
            case "guest stayed":
                does = DOES.get(drain["then"], "go")
                text = f"{name} did not {does} in time: it is put back into service"
            case "not asked":
                does = DOES.get(drain["then"], "go")
                text = f"libvirt could not be asked to {does} {name} in time: it is back in service"
            case _:
                text = f"{name} was put back into service meanwhile"
        raise Failure(text, hint=f"xenlb why {name}")

    def _lasts(self, answer: Answer, drain: Answer) -> bool:
        name, then, left = answer["guest"], drain["then"], drain["connections_left"] or 0
        for warning in drain["warnings"] if left else ():
            self._once(f"{name}: {warning}")
        match drain["outcome"]:
            case None:
                if left:
                    self._progress.show(_left(answer, drain), str(left))
                return True
            case "empty":
                self._once(f"{name} is drained")
            case _ if then is None:
                raise Failure(
                    f"the drain of {name} timed out with {connections(left)} left",
                    hint="it stays out of service; xenlb drain --timeout gives it longer",
                )
            case _:
                self._once(f"the drain of {name} timed out with {connections(left)} left")
        if then is None:
            return False
        if drain["failure"]:
            raise Failure(
                f"libvirt refuses to {DOES[then]} {name}: {drain['failure']}",
                hint=f"it stays out of service; xenlb undrain {name} puts it back",
            )
        if not drain["asked"] and drain["outcome"] and not answer.get("connected", True):
            self._progress.show(f"{name}: libvirt is not connected; it is asked again", "away")
        if drain["asked"]:
            self._once(f"{name} was asked to {DOES[then]}")
        if drain["asked"] and answer["request"]:
            left_until = format.until(answer["request"]["until"], time.time())
            self._progress.show(f"{name} still runs; {left_until} left", "runs")
        return True

    def _went(self, answer: Answer, drain: Answer) -> bool:
        name, absent = answer["guest"], answer["phase"] == "absent"
        if drain["then"] != "reboot":
            self._once(f"{name} has {'stopped' if absent else 'booted anew'}")
            return False
        if answer["serves"]:
            self._once(f"{name} serves again")
            return False
        self._progress.show(f"{name} {'is down' if absent else 'boots'}", str(absent))
        return True

    # --- the whole host --------------------------------------------------------------------------

    def all(self, answer: Answer, *, timeout: float | None, by: str) -> None:
        """Until every guest of this host is drained; `answer`: the agent's to the first request."""
        try:
            while answer["guests"] or answer["kept"]:
                open_ones = [guest for guest in answer["guests"] if _is_open(guest)]
                for guest in answer["guests"]:
                    if guest["drain"]["outcome"] is not None:
                        self._once(f"{guest['guest']}: {_outcome(guest['drain'])}")
                if not open_ones and not answer["kept"]:
                    break
                self._progress.show(*_of_all(open_ones, answer["kept"]))
                time.sleep(POLL)
                # Those that were kept go when the others are done: nothing more will take over.
                rest = not open_ones
                answer = self._ask("drain-all", timeout=timeout, by=by, rest=rest)
            self._over(answer)
        except KeyboardInterrupt:
            self._progress.end()
            click.echo("\nthe drains go on; to cancel: xenlb undrain --all", err=True)
            raise
        finally:
            self._progress.end()

    def _over(self, answer: Answer) -> None:
        """The end, as that of one drain: a failure where connections are left."""
        left = [
            f"{guest['guest']} ({connections(guest['drain']['connections_left'])})"
            for guest in answer["guests"]
            if guest["drain"]["outcome"] == "deadline" and guest["drain"]["connections_left"]
        ]
        if left:
            raise Failure(
                f"timed out with connections left: {', '.join(left)}",
                hint="they stay out of service; xenlb drain --all --timeout gives them longer",
            )
        self._progress.say("every guest of this host is drained")


def _left(answer: Answer, drain: Answer) -> str:
    """`mail1: 4 connections, 45s left; 192.0.2.100 (3), 192.0.2.7`"""
    limit = ""
    if drain["deadline"]:
        limit = f", {format.until(drain['deadline'], time.time())} left"
    who = [
        holder["address"] + (f" ({holder['connections']})" if holder["connections"] > 1 else "")
        for holder in answer["holders"]
    ]
    if answer["more_holders"]:
        who.append(f"{answer['more_holders']} more")
    named = f"; {', '.join(who)}" if who else ""
    return f"{answer['guest']}: {connections(drain['connections_left'])}{limit}{named}"


def _is_open(guest: Answer) -> bool:
    """Is it worth waiting for? A guest that was asked to go by somebody else has no deadline."""
    return guest["drain"]["outcome"] is None and guest["drain"]["deadline"] is not None


def _outcome(drain: Answer) -> str:
    if drain["outcome"] == "empty":
        return "drained"
    return f"timed out with {connections(drain['connections_left'] or 0)} left"


def _of_all(open_ones: Sequence[Answer], kept: Sequence[str]) -> tuple[str, str]:
    left = sum(guest["drain"]["connections_left"] or 0 for guest in open_ones)
    many = f"{len(open_ones)} guests drain" if len(open_ones) != 1 else "1 guest drains"
    parts = [f"{many}, {connections(left)}"] if open_ones else []
    if kept:
        parts.append(f"{len(kept)} kept in service meanwhile: {', '.join(kept[:5])}")
    return "; ".join(parts), f"{len(open_ones)} {left // 10} {len(kept)}"
