"""`xenlb guest`: what xenlb has inside a guest."""

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from xenlb.cli import logs
from xenlb.cli.guests import complete
from xenlb.cli.invalid import invalid
from xenlb.cli.options import KEY, Failure, Options, given
from xenlb.control.protocol import UNREACHABLE, ControlError

if TYPE_CHECKING:
    from xenlb.guestside.hold import Hold
    from xenlb.guestside.tree import GuestFile
    from xenlb.lookup import Found
    from xenlb.model.settings import Settings


@click.group()
def guest() -> None:
    """What xenlb has inside a guest."""


@guest.command()
@click.argument("guest", shell_complete=complete)
@click.option(
    "--init",
    type=click.Choice(["systemd", "sysvinit"]),
    default="systemd",
    show_default=True,
    help="What starts and stops services in the guest.",
)
@click.option(
    "--tell",
    type=click.Choice(["xenstore", "virtio", "tcp", "none"]),
    help="How the guest tells that it leaves; by its hypervisor where left out.",
)
@click.option(
    "--output",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write the files below DIR.",
)
@click.option("--tar", "as_tar", is_flag=True, help="Write a tar archive to standard output.")
@click.option(
    "--key",
    type=click.Path(path_type=Path),
    default=KEY,
    envvar="XENLB_KEY",
    show_default=True,
    help="By what the agent knows its guests; made when first needed.",
)
@given
def render(
    options: Options,
    guest: str,
    *,
    init: str,
    tell: str | None,
    output: Path | None,
    as_tar: bool,
    key: Path,
) -> None:
    """Makes the files of GUEST (name or UUID) that hold its shutdown until its clients are served.

    Shown where neither --output nor --tar is given. To install them:

    xenlb guest render mail1 --tar | ssh mail1 tar -x -C /
    """
    if output is not None and as_tar:
        raise click.UsageError("--output and --tar exclude each other")
    if as_tar and sys.stdout.isatty():
        raise click.UsageError("an archive is not for a terminal; send it somewhere: --tar | ssh …")
    from xenlb.guestside.files import archive, hold_files, write_tree
    from xenlb.guestside.render import TemplateError
    from xenlb.model.side import Init

    logs.set_up(verbose=options.verbose, level=logging.WARNING)
    hold = _hold(options, guest, tell=tell, key=key)
    try:
        # Beside the configuration: /etc/xenlb/templates, unless that is another.
        files = hold_files(hold, Init(init), overrides=options.config.parent / "templates")
    except TemplateError as error:
        raise Failure(str(error), hint="correct the template, or remove it") from error
    if as_tar:
        sys.stdout.buffer.write(archive(files))
    elif output is not None:
        write_tree(files, output)
        for file in files:
            click.echo(output / file.path)
    else:
        for file in files:
            _show(file)


def _show(file: "GuestFile") -> None:
    click.echo(f"==> /{file.path}  (root, {file.mode:04o}) <==")
    click.echo(file.text)


def _hold(options: Options, name: str, *, tell: str | None, key: Path) -> "Hold":
    from xenlb.config import ConfigError, load
    from xenlb.control.secrets import KeyFileError, guest_secret, master_key
    from xenlb.guestside.hold import Tell, compile_hold, tell_by

    try:
        settings = load(options.config)
    except ConfigError as error:
        raise invalid(error) from None
    found = _find(options, settings, name)
    if not found.services:
        raise Failure(
            f"guest {found.name} is in no service: there is nothing to hold it for",
            hint=f"name it under servers: in {options.config}",
        )
    way = Tell(tell) if tell is not None else tell_by(_driver(found.uri))
    secret = ""
    if way is Tell.TCP:
        if settings.listen is None:
            raise Failure(
                f"guest {found.name} has no way to tell that it leaves",
                hint='let the agent listen: guests: {listen: "ADDRESS:7371"}; or take --tell none',
            )
        try:
            secret = guest_secret(master_key(key), found.uuid)
        except KeyFileError as error:
            raise Failure(error.message, hint=error.hint) from error
    return compile_hold(found.services, found.uuid, tell=way, agent=settings.listen, secret=secret)


def _find(options: Options, settings: "Settings", name: str) -> "Found":
    """The guest as the agent knows it; as libvirt does where no agent runs."""
    from xenlb import lookup
    from xenlb.ask import AskFailed

    try:
        return lookup.by_agent(options.socket, settings, name)
    except ControlError as error:
        if error.status != UNREACHABLE:
            raise
    try:
        return lookup.by_libvirt(settings, name)
    except AskFailed as error:
        raise Failure(error.message, hint=error.hint) from error


def _driver(uri: str) -> str:
    from xenlb import lookup
    from xenlb.ask import AskFailed

    try:
        return lookup.real_uri(uri)
    except AskFailed as error:
        raise Failure(error.message, hint="or say how the guest can tell: --tell") from error
