"""`status` on a terminal: the lines of status_lines.py in colours, once or every second."""

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable

import click

from xenlb.cli import status_lines
from xenlb.cli.format import Answer
from xenlb.cli.status_lines import Line
from xenlb.control.protocol import ControlError

ENTER, LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"  # the other screen, without a cursor
HOME, END_OF_LINE, END_OF_SCREEN = "\x1b[H", "\x1b[K", "\x1b[J"


def show(answer: Answer, *, only_trouble: bool) -> None:
    """On a terminal in its width and in colours, else as plain text."""
    now = time.time()
    if not sys.stdout.isatty():
        click.echo(status_lines.plain(status_lines.lines(answer, now, only_trouble=only_trouble)))
        return
    width = shutil.get_terminal_size().columns
    page = status_lines.lines(answer, now, width=width, only_trouble=only_trouble)
    click.echo("\n".join(_coloured(page)), color=True)


def watch(ask: Callable[[], Answer], *, only_trouble: bool) -> None:
    """Shows it every second until Ctrl-C; an agent that restarts is waited for."""
    answer = ask()  # where there is no agent to begin with, the command fails
    if not sys.stdout.isatty():
        while True:
            show(answer, only_trouble=only_trouble)
            click.echo()
            sys.stdout.flush()
            time.sleep(1)
            answer = ask()
    click.echo(ENTER, nl=False, color=True)
    try:
        while True:
            try:
                _paint(ask(), only_trouble=only_trouble)
            except ControlError as error:
                _put([((error.message, "trouble"),), ((f"  {error.hint}", "trouble"),)])
            time.sleep(1)
    finally:
        click.echo(LEAVE, nl=False, color=True)


def _paint(answer: Answer, *, only_trouble: bool) -> None:
    """What fits on the screen: all, else what needs attention, and how much is not shown."""
    width, height = shutil.get_terminal_size()
    page = status_lines.lines(answer, time.time(), width=width, only_trouble=only_trouble)
    if len(page) > height and not only_trouble:
        page = status_lines.lines(answer, time.time(), width=width, only_trouble=True)
        page.append((("(only what needs attention is shown; the rest does not fit)", "dim"),))
    if len(page) > height:
        hidden = len(page) - height + 1
        page[height - 1 :] = [((f"({hidden} more lines; name a service to see its own)", "dim"),)]
    _put(page)


def _put(page: Iterable[Line]) -> None:
    shown = "\r\n".join(line + END_OF_LINE for line in _coloured(page))
    click.echo(HOME + shown + END_OF_SCREEN, nl=False, color=True)
    sys.stdout.flush()


def _coloured(page: Iterable[Line]) -> list[str]:
    styles = {} if os.environ.get("NO_COLOR") else status_lines.STYLES
    return [
        "".join(
            click.style(text, **styles[style]) if style in styles and text.strip() else text
            for text, style in line
        )
        for line in page
    ]
