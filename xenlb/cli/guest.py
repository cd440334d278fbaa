"""The verbs `guest …`."""

from typing import Any

import click

from xenlb.cli.completion import guest_argument
from xenlb.cli.guest_render import image, render
from xenlb.cli.options import (
    Group,
    Options,
    as_json,
    key_file,
    pass_options,
    print_json,
    with_options,
)
from xenlb.control.protocol import FAILED

access_options = with_options(
    click.option("--ssh", metavar="DESTINATION", help="Use ssh to this USER@HOST."),
    click.option(
        "--delivery",
        type=click.Choice(["ssh", "agent", "rootfs", "xenstore"]),
        help="How files reach the guest (default: as configured).",
    ),
    click.option(
        "--root",
        metavar="DIR",
        type=click.Path(exists=True, file_okay=False),
        help="Where the root file system of the guest, which is off, is mounted.",
    ),
    key_file,
)


@click.group(cls=Group)
def guest() -> None:
    """Set up the inside of a guest: service addresses, routes, and the hold of its shutdown."""


guest.add_command(render)
guest.add_command(image)


@guest.command()
@guest_argument
@access_options
@as_json
@pass_options
def plan(options: Options, guest: str, *, as_json: bool, **access: Any) -> int:
    """Show what `apply` would change in GUEST.

    The output is the difference of its files, and what in the running guest differs from what its
    services need. Without a difference nothing is printed.
    """
    from xenlb.cli.guest_inside import AccessOptions, inspect

    inspection = inspect(options, guest, AccessOptions(**access))
    if as_json:
        print_json(inspection.as_json())
    else:
        for line in inspection.changes:
            click.echo(line)
    return FAILED if inspection.changes else 0


@guest.command()
@guest_argument
@access_options
@pass_options
def apply(options: Options, guest: str, **access: Any) -> None:
    """Install in GUEST what its services need.

    In a running guest it takes effect at once. Replaced files are kept, and `remove` restores them.
    """
    from xenlb.cli import guest_inside

    guest_inside.apply(options, guest, guest_inside.AccessOptions(**access))


@guest.command()
@guest_argument
@access_options
@as_json
@pass_options
def verify(options: Options, guest: str, *, as_json: bool, **access: Any) -> int:
    """Compare GUEST with what its services need.

    Each difference is printed, with what to do.
    """
    from xenlb.cli.guest_inside import AccessOptions, conclude, inspect

    inspection = inspect(options, guest, AccessOptions(**access))
    if as_json:
        print_json(inspection.as_json())
        return FAILED if inspection.differences else 0
    conclude(inspection.target, left=inspection.differences)
    return 0


@guest.command()
@guest_argument
@access_options
@click.option("--force", is_flag=True, help="Also remove files that were changed since `apply`.")
@pass_options
def remove(options: Options, guest: str, *, force: bool, **access: Any) -> None:
    """Undo `apply` in GUEST.

    What xenlb has put there is removed, and what was there before is restored.
    """
    from xenlb.cli import guest_inside

    guest_inside.remove(options, guest, guest_inside.AccessOptions(**access), force=force)
