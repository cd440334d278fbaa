"""`xenlb director`: what this host needs itself, where the agent does not own its addresses."""

from pathlib import Path

import click

from xenlb.cli.options import Group, Options, given
from xenlb.cli.render import SYSTEMS, check_place, write, written


@click.group(cls=Group)
def director() -> None:
    """What this host needs itself, where the agent does not own the service addresses."""


@director.command()
@click.option(
    "--system",
    type=click.Choice([each for each in SYSTEMS if each != "shell"]),
    required=True,
    help="What configures the network of this host.",
)
@click.option(
    "--network-file",
    metavar="NAME",
    help="networkd's file of the interface (also behind netplan): networkctl status tells it.",
)
@written
@given
def render(
    options: Options, *, system: str, network_file: str | None, output: Path | None, as_tar: bool
) -> None:
    """Makes the files that put the service addresses on the director's interface, and set the
    sysctls that its services need: for `director: {addresses: leave}`."""
    check_place(output, as_tar=as_tar)
    from xenlb.cli import inside
    from xenlb.guestside.directorside import director_files
    from xenlb.guestside.files.facts import Facts, Link
    from xenlb.model.side import System

    settings = inside.settings_of(options)
    interface = settings.director.interface or ""
    facts = Facts(links=(Link(interface=interface, network_file=network_file),))
    files = inside.excused(
        lambda: director_files(
            settings, system=System(system), facts=facts, overrides=options.templates
        )
    )
    write(files, output, as_tar=as_tar)
