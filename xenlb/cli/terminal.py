"""`status` on a terminal: the table of layout.py in colours, once or every second."""

import time
from collections.abc import Callable

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from xenlb.cli import layout
from xenlb.control.protocol import ControlError

COLOURS = {
    "serving": "green",
    "starting": "cyan",
    "draining": "yellow",
    "paused": "yellow",
    "failed": "red",
    "absent": "dim",
    "up": "green",
    "down": "red",
    "unknown": "dim",
}
ALARMING = ("NOT CONNECTED", "PROBLEMS", "OUT OF REACH", "ADDRESSES")


def show(answer: layout.Answer) -> None:
    Console(highlight=False).print(_picture(answer, time.time()))


def watch(ask: Callable[[], layout.Answer]) -> None:
    """Shows it every second until Ctrl-C; an agent that restarts is waited for."""
    with Live(_picture(ask(), time.time()), screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(1)
            picture: RenderableType
            try:
                picture = _picture(ask(), time.time())
            except ControlError as error:
                picture = Text(f"{error.message}\n  {error.hint}", style="red")
            live.update(picture, refresh=True)


def _picture(answer: layout.Answer, now: float) -> RenderableType:
    parts: list[RenderableType] = [
        Text(line, style="red" if any(word in line for word in ALARMING) else "")
        for line in layout.head(answer, now)
    ]
    for service in answer["services"]:
        parts += [Text(), Text(layout.title(service), style="bold")]
        if service["servers"]:
            parts.append(_table(service, now))
    return Group(*parts)


def _table(service: layout.Answer, now: float) -> Table:
    table = Table(box=None, pad_edge=True, padding=(0, 1), header_style="dim")
    for n, name in enumerate(layout.HEADER):
        table.add_column(name, justify="right" if n in layout.NUMBERS else "left", no_wrap=True)
    table.add_column("", overflow="fold")
    for server in service["servers"]:
        cells = [
            Text(cell, style=COLOURS.get(cell, "")) for cell in layout.row(server, service, now)
        ]
        table.add_row(*cells, Text(layout.note(server, now), style="yellow"))
    return table
