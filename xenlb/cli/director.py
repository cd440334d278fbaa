"""The verbs `director …`."""

from typing import Any

import click

from xenlb.cli.guest_render import SYSTEMS, check_output, output_options, write_files
from xenlb.cli.options import Group, Options, pass_options


@click.group(cls=Group)
def director() -> None:
    """Make files for this host, if the agent does not manage the service addresses."""


@director.command()
@click.option(
    "--system",
    type=click.Choice([system for system in SYSTEMS if system != "shell"]),
    required=True,
    help="What configures the network of this host.",
)
@click.option(
    "--network-file",
    metavar="NAME",
    help="The interface's file of networkd, also with netplan (networkctl status shows it).",
)
@output_options
@pass_options
def render(options: Options, *, system: str, network_file: str | None, **output: Any) -> None:
    """Make the files for this host.

    They are for `director: {addresses: leave}`. They put the service addresses on the director's
    interface and set the sysctls that the services need.
    """
    check_output(**output)
    from xenlb.cli import guest_common
    from xenlb.config import load
    from xenlb.guestside.director_files import director_files
    from xenlb.guestside.render.facts import Facts, NetworkLink
    from xenlb.model.guest_side import System

    settings = load(options.config)
    interface = settings.director.interface or ""
    facts = Facts(links=(NetworkLink(interface=interface, network_file=network_file),))
    with guest_common.template_errors():
        files = director_files(
            settings, system=System(system), facts=facts, overrides=options.templates
        )
    write_files(files, **output)
