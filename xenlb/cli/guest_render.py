"""`xenlb guest render` and `image`: files for guests, to be looked at or installed by hand."""

import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from xenlb.cli import log_setup
from xenlb.cli.completion import named
from xenlb.cli.options import Failure, Options, given, key_file

if TYPE_CHECKING:
    from xenlb.guestside.install.operations import Wanted

SYSTEMS = ("ifupdown", "netplan", "networkd", "network-manager", "network-scripts", "shell")


def written(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a verb the options of where its files go."""
    command = click.option(
        "--tar", "as_tar", is_flag=True, help="Write a tar archive to standard output."
    )(command)
    return click.option(
        "--output",
        metavar="DIR",
        type=click.Path(file_okay=False, path_type=Path),
        help="Write the files below DIR.",
    )(command)


@click.command()
@named
@click.option("--system", type=click.Choice(SYSTEMS), help="What configures its network.")
@click.option("--init", type=click.Choice(["systemd", "sysvinit"]), help="What starts services.")
@click.option(
    "--tell",
    type=click.Choice(["xenstore", "virtio", "tcp", "none"]),
    help="How the guest tells that it leaves; by its hypervisor where left out.",
)
@written
@key_file
@given
def render(
    options: Options,
    guest: str,
    *,
    system: str | None,
    init: str | None,
    tell: str | None,
    output: Path | None,
    as_tar: bool,
    key: Path,
) -> None:
    """Makes the files that GUEST (name or UUID) needs: addresses, routes, rules, and what holds its
    shutdown until its clients are served. The guest is not asked.

    Shown where neither --output nor --tar is given. To install them by hand:

    xenlb guest render mail1 --system ifupdown --tar | ssh mail1 tar -x -C /
    """
    check_place(output, as_tar=as_tar)
    log_setup.set_up(verbose=options.verbose, level=logging.WARNING)
    files = _rendered(options, guest, system=system, init=init, tell=tell, key=key)
    write(files, output, as_tar=as_tar)


@click.command()
@click.option(
    "--init",
    type=click.Choice(["systemd", "sysvinit"]),
    default="systemd",
    show_default=True,
    help="What starts services.",
)
@written
@given
def image(options: Options, *, init: str, output: Path | None, as_tar: bool) -> None:
    """Makes the files for an image of guests that configure themselves (delivery: xenstore): what
    reads at boot, and when it changes, what the host writes for them."""
    check_place(output, as_tar=as_tar)
    from xenlb.cli import guest_common
    from xenlb.guestside.render.systems import image_files
    from xenlb.model.guest_side import Init

    files = guest_common.excused(lambda: image_files(Init(init), overrides=options.templates))
    write(files, output, as_tar=as_tar)


def check_place(output: Path | None, *, as_tar: bool) -> None:
    if output is not None and as_tar:
        raise click.UsageError("--output and --tar exclude each other")
    if as_tar and sys.stdout.isatty():
        raise click.UsageError("an archive is not for a terminal; send it somewhere: --tar | ssh …")


def write(files: "Sequence[Wanted]", output: Path | None, *, as_tar: bool) -> None:
    from xenlb.guestside.render.export import archive, write_tree

    if as_tar:
        sys.stdout.buffer.write(archive(files))
    elif output is not None:
        write_tree(files, output)
        for file in files:
            click.echo(output / file.path)
    else:
        for file in files:
            _show(file)


def _rendered(
    options: Options,
    name: str,
    *,
    system: str | None,
    init: str | None,
    tell: str | None,
    key: Path,
) -> "tuple[Wanted, ...]":
    from xenlb.cli import guest_common
    from xenlb.guestside.render.facts import Facts
    from xenlb.guestside.render.systems import side_files
    from xenlb.guestside.requirements.compile import compile_needs
    from xenlb.guestside.requirements.hold import NotifyVia
    from xenlb.model.guest_side import Init, System

    settings = guest_common.settings_of(options)
    found = guest_common.find(options, settings, name)
    if not found.services:
        raise Failure(
            f"guest {found.name} is in no service: there is nothing that it needs",
            hint=f"name it under servers: in {options.config}",
        )
    way = None if tell is None else NotifyVia(tell)
    held = guest_common.hold(found, settings, tell=way, key=key, must_tell=True)

    async def files() -> "tuple[Wanted, ...]":
        it = await guest_common.target_of(found, held)
        return side_files(
            compile_needs(it.places, hold=it.hold),
            system=System(system) if system else it.side.system or System.SHELL,
            init=Init(init) if init else it.side.init or Init.SYSTEMD,
            facts=Facts(),
            overrides=options.templates,
        )

    return guest_common.run(files())


def _show(file: "Wanted") -> None:
    from xenlb.guestside.install.operations import GuestFile

    if isinstance(file, GuestFile):
        part = ", a part of it" if file.block else ""
        click.echo(f"==> /{file.path}  (root, {file.mode:04o}{part}) <==")
        click.echo(file.text)
    else:
        click.echo(f"==> /{file.path} -> {file.target} <==\n")
