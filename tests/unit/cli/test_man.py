"""The manual pages name every verb, option and environment variable of the command line."""

from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from xenlb.cli.options import Options
from xenlb.cli.root import VERBS, group

MAN = Path(__file__).parents[3] / "man"
PAGES = {
    "xenlb-apply": ("run", "check", "plan", "apply", "director", "reload"),
    "xenlb-drain": ("drain", "undrain", "shutdown", "reboot"),
    "xenlb-guest": ("guest",),
    "xenlb-status": ("status", "why", "events"),
    "xenlb": ("debug",),
}


def leaves(name: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    """The verbs of a command that have no verbs of their own."""
    if not isinstance(command, click.Group):
        yield name, command
        return
    for verb, child in command.commands.items():
        yield from leaves(f"{name} {verb}", child)


def test_every_verb_has_one_page() -> None:
    assert sorted(verb for verbs in PAGES.values() for verb in verbs) == sorted(VERBS)


@pytest.mark.parametrize("page", PAGES)
def test_a_page_names_verbs_and_options(page: str) -> None:
    text = (MAN / f"{page}.8").read_text()
    lines = {line.lstrip(".").replace("Cm ", "") for line in text.splitlines()}
    context = click.Context(group, obj=Options())
    for verb in PAGES[page]:
        command = group.get_command(context, verb)
        assert command is not None
        for name, leaf in leaves(verb, command):
            assert {f"Nm xenlb {name}", name} & lines, f"{page} has no synopsis of {name}"
            for option in (option for param in leaf.params for option in param.opts):
                if option.startswith("--"):
                    assert f"Fl {option[1:]}" in text or f"| {option[1:]}" in text, (name, option)


def test_the_overview_names_variables_and_global_options() -> None:
    text = (MAN / "xenlb.8").read_text()
    context = click.Context(group, obj=Options())
    commands = [group.get_command(context, verb) for verb in VERBS]
    params = [param for command in (group, *commands) if command for param in command.params]
    variables = {str(param.envvar) for param in params if param.envvar}
    assert variables
    for variable in variables:
        assert f".It Ev {variable}\n" in text
    for option in (option for param in group.params for option in param.opts):
        name = option.removeprefix("-")
        assert f"Fl {name}" in text or f", {name}" in text, option
