"""`xenlb director`: what this host needs itself, where the agent does not own its addresses."""

from pathlib import Path

import click

from xenlb.cli.guest_render import SYSTEMS, check_place, write, written
from xenlb.cli.options import Group, Options, given


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
    from xenlb.cli import guest_common
    from xenlb.guestside.director_files import director_files
    from xenlb.guestside.render.facts import Facts, NetworkLink
    from xenlb.model.guest_side import System

    settings = guest_common.settings_of(options)
    interface = settings.director.interface or ""
    facts = Facts(links=(NetworkLink(interface=interface, network_file=network_file),))
    files = guest_common.excused(
        lambda: director_files(
            settings, system=System(system), facts=facts, overrides=options.templates
        )
    )
    write(files, output, as_tar=as_tar)
