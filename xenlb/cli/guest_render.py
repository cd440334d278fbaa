"""The verbs `guest render` and `guest image`: files for guests, to inspect or install by hand."""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xenlb.cli import log_setup
from xenlb.cli.completion import guest_argument
from xenlb.cli.options import Failure, Options, key_file, pass_options, with_options

if TYPE_CHECKING:
    from xenlb.guestside.install.operations import Wanted

SYSTEMS = ("ifupdown", "netplan", "networkd", "network-manager", "network-scripts", "shell")
INITS = click.Choice(["systemd", "sysvinit"])

output_options = with_options(
    click.option(
        "--output",
        metavar="DIR",
        type=click.Path(file_okay=False, path_type=Path),
        help="Write the files below DIR.",
    ),
    click.option("--tar", "as_tar", is_flag=True, help="Write a tar archive to standard output."),
)


@click.command()
@guest_argument
@click.option("--system", type=click.Choice(SYSTEMS), help="What configures its network.")
@click.option("--init", type=INITS, help="What starts its services.")
@click.option(
    "--tell",
    type=click.Choice(["xenstore", "virtio", "tcp", "none"]),
    help="How the guest reports its shutdown (default: by its hypervisor).",
)
@output_options
@key_file
@pass_options
def render(
    options: Options,
    guest: str,
    *,
    system: str | None,
    init: str | None,
    tell: str | None,
    key: Path,
    **output: Any,
) -> None:
    """Make the files that GUEST needs.

    They set up addresses, routes, rules, and the hold of its shutdown. The guest is not contacted.
    Without --output and --tar the files are printed. To install them by hand:

    xenlb guest render mail1 --system ifupdown --tar | ssh mail1 tar -x -C /
    """
    check_output(**output)
    from xenlb.cli import guest_common
    from xenlb.config import load
    from xenlb.guestside.render.facts import Facts
    from xenlb.guestside.render.systems import guest_files
    from xenlb.guestside.requirements.compile import compile_needs
    from xenlb.guestside.requirements.hold import NotifyVia
    from xenlb.model.guest_side import Init, System

    log_setup.set_up(verbose=options.verbose, level=logging.WARNING)
    settings = load(options.config)
    identity = guest_common.find_guest(options, settings, guest)
    if not identity.services:
        raise Failure(
            f"guest {identity.name} is in no service, so it needs no files",
            hint=f"add it to the servers of a service in {options.config}",
        )
    notify = None if tell is None else NotifyVia(tell)
    hold = guest_common.shutdown_hold(identity, settings, key=key, notify=notify, must_notify=True)
    target = guest_common.run(guest_common.target_of(identity, hold))
    with guest_common.template_errors():
        files = guest_files(
            compile_needs(target.bindings, hold=target.hold),
            system=System(system) if system else target.side.system or System.SHELL,
            init=Init(init) if init else target.side.init or Init.SYSTEMD,
            facts=Facts(),
            overrides=options.templates,
        )
    write_files(files, **output)


@click.command()
@click.option(
    "--init", type=INITS, default="systemd", show_default=True, help="What starts its services."
)
@output_options
@pass_options
def image(options: Options, *, init: str, **output: Any) -> None:
    """Make the files for the image of a guest.

    They are for guests that configure themselves (delivery: xenstore). Their service reads what the
    host writes for the guest, at boot and when it changes.
    """
    check_output(**output)
    from xenlb.cli import guest_common
    from xenlb.guestside.render.systems import image_files
    from xenlb.model.guest_side import Init

    with guest_common.template_errors():
        files = image_files(Init(init), overrides=options.templates)
    write_files(files, **output)


def check_output(output: Path | None, *, as_tar: bool) -> None:
    """Raise UsageError if the options of the output contradict each other."""
    if output is not None and as_tar:
        raise click.UsageError("--output and --tar exclude each other")
    if as_tar and sys.stdout.isatty():
        raise click.UsageError("a terminal cannot show an archive; use a pipe: --tar | ssh …")


def write_files(files: "Sequence[Wanted]", output: Path | None, *, as_tar: bool) -> None:
    """Write files as an archive, below a folder, or as text for people."""
    from xenlb.guestside.install.operations import GuestFile
    from xenlb.guestside.render.export import archive, write_tree

    if as_tar:
        sys.stdout.buffer.write(archive(files))
        return
    if output is not None:
        write_tree(files, output)
    for file in files:
        if output is not None:
            click.echo(output / file.path)
        elif isinstance(file, GuestFile):
            part = ", a part of it" if file.block else ""
            click.echo(f"==> /{file.path}  (root, {file.mode:04o}{part}) <==")
            click.echo(file.text)
        else:
            click.echo(f"==> /{file.path} -> {file.target} <==\n")
