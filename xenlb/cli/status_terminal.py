"""`status` on a terminal: the lines of the answer in colours, once or every second."""

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable

import click

from xenlb.cli.options import Answer
from xenlb.cli.status_lines import STYLES, Line, plain_text, status_page
from xenlb.control.protocol import ControlError

# The alternate screen, and the cursor hidden.
ENTER, LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
HOME, END_OF_LINE, END_OF_SCREEN = "\x1b[H", "\x1b[K", "\x1b[J"


def show(answer: Answer, *, only_trouble: bool) -> None:
    """Print the status: on a terminal in its width and in colours, else as plain text."""
    terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if terminal else None
    page = status_page(answer, time.time(), width=width, only_trouble=only_trouble)
    if terminal:
        click.echo("\n".join(_coloured(page)), color=True)
    else:
        click.echo(plain_text(page))


def watch(request: Callable[[], Answer], *, only_trouble: bool) -> None:
    """Show the status every second until Ctrl-C, also over a restart of the agent.

    Raises ControlError if the first request fails, and for a pipe if any does.
    """
    answer = request()
    if not sys.stdout.isatty():
        while True:
            show(answer, only_trouble=only_trouble)
            click.echo()
            sys.stdout.flush()
            time.sleep(1)
            answer = request()
    click.echo(ENTER, nl=False, color=True)
    try:
        while True:
            try:
                _draw(_fit_screen(request(), only_trouble=only_trouble))
            except ControlError as error:
                _draw([((error.message, "trouble"),), ((f"  {error.hint}", "trouble"),)])
            time.sleep(1)
    finally:
        click.echo(LEAVE, nl=False, color=True)


def _fit_screen(answer: Answer, *, only_trouble: bool) -> list[Line]:
    """Return as much of the status as fits: all of it, else what needs attention."""
    width, height = shutil.get_terminal_size()
    page = status_page(answer, time.time(), width=width, only_trouble=only_trouble)
    if len(page) > height and not only_trouble:
        page = status_page(answer, time.time(), width=width, only_trouble=True)
        page.append((("(only what needs attention is shown; the rest does not fit)", "dim"),))
    if len(page) > height:
        hidden = len(page) - height + 1
        page[height - 1 :] = [((f"({hidden} more lines; name a service to see its own)", "dim"),)]
    return page


def _draw(page: Iterable[Line]) -> None:
    lines = "\r\n".join(line + END_OF_LINE for line in _coloured(page))
    click.echo(HOME + lines + END_OF_SCREEN, nl=False, color=True)
    sys.stdout.flush()


def _coloured(page: Iterable[Line]) -> list[str]:
    styles = {} if os.environ.get("NO_COLOR") else STYLES
    return [
        "".join(
            click.style(text, **styles[style]) if style in styles and text.strip() else text
            for text, style in line
        )
        for line in page
    ]
