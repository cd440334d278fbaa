"""`xenlb guest`: what xenlb has inside a guest."""

import json
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING

import click

from xenlb.cli import logs
from xenlb.cli.guests import complete
from xenlb.cli.options import KEY, Failure, Options, as_json, given
from xenlb.control.protocol import FAILED

if TYPE_CHECKING:
    from xenlb.guestside.install import Changed
    from xenlb.guestside.reach import Reached
    from xenlb.guestside.subject import Subject
    from xenlb.guestside.tree import Wanted
    from xenlb.guestside.verdict import Difference
    from xenlb.guestside.work import Survey

SYSTEMS = ("ifupdown", "netplan", "networkd", "network-manager", "network-scripts", "shell")

named = click.argument("guest", shell_complete=complete)
key_file = click.option(
    "--key",
    type=click.Path(path_type=Path),
    default=KEY,
    envvar="XENLB_KEY",
    show_default=True,
    help="By what the agent knows its guests; made when first needed.",
)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """The options of the verbs that go into a guest."""

    delivery: str | None
    ssh: str | None
    root: str | None
    key: Path


def reached(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a verb the options of the way into a guest, as one `way`."""

    @wraps(command)
    def with_way(
        *args: object,
        delivery: str | None,
        ssh: str | None,
        root: str | None,
        key: Path,
        **others: object,
    ) -> None:
        if root is not None and delivery not in {None, "rootfs"}:
            raise click.UsageError("--root is for --delivery rootfs")
        if ssh is not None and (root is not None or delivery not in {None, "ssh"}):
            raise click.UsageError("--ssh is for --delivery ssh")
        command(*args, way=Way(delivery=delivery, ssh=ssh, root=root, key=key), **others)

    with_options: Callable[..., None] = with_way
    for option in (
        key_file,
        click.option(
            "--root",
            metavar="DIR",
            type=click.Path(exists=True, file_okay=False),
            help="Where the root file system of the guest, which is off, is mounted.",
        ),
        click.option(
            "--delivery",
            type=click.Choice(["ssh", "agent", "rootfs", "xenstore"]),
            help="The way in; that of the configuration where left out.",
        ),
        click.option("--ssh", metavar="DESTINATION", help="By ssh, to this USER@HOST."),
    ):
        with_options = option(with_options)
    return with_options


@click.group()
def guest() -> None:
    """What xenlb has inside a guest."""


@guest.command()
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
    _check_place(output, as_tar=as_tar)
    logs.set_up(verbose=options.verbose, level=logging.WARNING)
    files = _rendered(options, guest, system=system, init=init, tell=tell, key=key)
    _write(files, output, as_tar=as_tar)


@guest.command()
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
    _check_place(output, as_tar=as_tar)
    from xenlb.cli import inside
    from xenlb.guestside.systems import image_files
    from xenlb.model.side import Init

    files = inside.excused(lambda: image_files(Init(init), overrides=_overrides(options)))
    _write(files, output, as_tar=as_tar)


def _check_place(output: Path | None, *, as_tar: bool) -> None:
    if output is not None and as_tar:
        raise click.UsageError("--output and --tar exclude each other")
    if as_tar and sys.stdout.isatty():
        raise click.UsageError("an archive is not for a terminal; send it somewhere: --tar | ssh …")


def _write(files: "tuple[Wanted, ...]", output: Path | None, *, as_tar: bool) -> None:
    from xenlb.guestside.files import archive, write_tree

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
    from xenlb.cli import inside
    from xenlb.guestside.compile import compile_needs
    from xenlb.guestside.facts import Facts
    from xenlb.guestside.hold import Tell
    from xenlb.guestside.systems import side_files
    from xenlb.model.side import Init, System

    settings = inside.settings_of(options)
    found = inside.find(options, settings, name)
    if not found.services:
        raise Failure(
            f"guest {found.name} is in no service: there is nothing that it needs",
            hint=f"name it under servers: in {options.config}",
        )
    way = None if tell is None else Tell(tell)
    held = inside.hold(found, settings, tell=way, key=key, must_tell=True)

    async def files() -> "tuple[Wanted, ...]":
        it = await inside.subject(found, held)
        return side_files(
            compile_needs(it.places, hold=it.hold),
            system=System(system) if system else it.side.system or System.SHELL,
            init=Init(init) if init else it.side.init or Init.SYSTEMD,
            facts=Facts(),
            overrides=_overrides(options),
        )

    return inside.run(files())


def _overrides(options: Options) -> Path:
    """Beside the configuration: /etc/xenlb/templates, unless that is another."""
    return options.config.parent / "templates"


def _show(file: "Wanted") -> None:
    from xenlb.guestside.tree import GuestFile

    if isinstance(file, GuestFile):
        part = ", a part of it" if file.block else ""
        click.echo(f"==> /{file.path}  (root, {file.mode:04o}{part}) <==")
        click.echo(file.text)
    else:
        click.echo(f"==> /{file.path} -> {file.target} <==\n")


@guest.command()
@named
@reached
@as_json
@given
def plan(options: Options, guest: str, *, way: Way, as_json: bool) -> None:
    """Shows what `apply` would do in GUEST: the difference of its files, and what is not as it
    should be. Nothing where nothing is to be done."""
    _, found, _ = _surveyed(options, guest, way)
    if as_json:
        _print_json(found)
    else:
        for line in _changes(found):
            click.echo(line)
    if found.look.plan.changes_guest or found.differences:
        sys.exit(FAILED)


@guest.command()
@named
@reached
@given
def apply(options: Options, guest: str, *, way: Way) -> None:
    """Brings into GUEST what it needs, and makes it true at once where the guest runs. What was
    there before is kept, and `remove` brings it back."""
    from xenlb.cli import inside
    from xenlb.guestside import work

    it, found, reached = _surveyed(options, guest, way)
    done = inside.run(work.apply(found, reached, overrides=_overrides(options)))
    _told(found)
    _ended(it, said=done.said, left=done.left, well="has all that it needs")


@guest.command()
@named
@reached
@as_json
@given
def verify(options: Options, guest: str, *, way: Way, as_json: bool) -> None:
    """Looks whether GUEST has all that its services need, and names each difference."""
    it, found, _ = _surveyed(options, guest, way)
    if as_json:
        _print_json(found)
        if found.differences:
            sys.exit(FAILED)
        return
    _ended(it, said=(), left=found.differences, well="has all that it needs")


@guest.command()
@named
@reached
@click.option("--force", is_flag=True, help="Also files that somebody has changed since.")
@given
def remove(options: Options, guest: str, *, way: Way, force: bool) -> None:
    """Takes out of GUEST all that xenlb has put there, and brings back what was there before."""
    from xenlb.cli import inside
    from xenlb.guestside import work
    from xenlb.guestside.install import Changed

    changed = Changed.DISCARD if force else Changed.KEEP
    it, found, reached = _surveyed(options, guest, way, removing=changed)
    done = inside.run(work.remove(found, reached, overrides=_overrides(options)))
    _told(found)
    if found.look.plan.kept:
        raise Failure(
            f"not everything was removed from {it.name}",
            hint="xenlb guest remove --force takes away what was changed, too",
            details=done.said,
        )
    _ended(it, said=done.said, left=(), well="has nothing of xenlb")


def _surveyed(
    options: Options, name: str, way: Way, *, removing: "Changed | None" = None
) -> "tuple[Subject, Survey, Reached]":
    from xenlb.cli import inside
    from xenlb.guestside import work
    from xenlb.guestside.reach import Target, reach
    from xenlb.model.side import Delivery

    logs.set_up(verbose=options.verbose, level=logging.WARNING)
    settings = inside.settings_of(options)
    found = inside.find(options, settings, name)
    held = inside.hold(found, settings, key=way.key)
    delivery = Delivery(way.delivery) if way.delivery is not None else None

    async def survey() -> "tuple[Subject, Survey, Reached]":
        it = await inside.subject(
            found,
            held,
            delivery=Delivery.ROOTFS if way.root is not None else delivery,
            ssh=way.ssh,
        )
        target = Target(
            uri=it.uri,
            uuid=it.uuid,
            name=it.name,
            side=it.side,
            address=it.address,
            root=way.root,
        )
        reached = await reach(target)
        if removing is not None:
            return it, await work.survey_for_removal(it, reached, changed=removing), reached
        return it, await work.survey(it, reached, overrides=_overrides(options)), reached

    return inside.run(survey())


def _changes(found: "Survey") -> list[str]:
    from xenlb.guestside.differences import differences

    lines = list(differences(found.look.plan, found.look.present))
    lines += list(found.look.plan.notes)
    return lines + [str(each) for each in found.differences]


def _told(found: "Survey") -> None:
    for operation in found.look.plan.operations:
        if operation.path in found.look.plan.paths:
            click.echo(operation)
    for note in found.look.plan.notes:
        click.echo(note)


def _ended(
    it: "Subject", *, said: tuple[str, ...], left: "tuple[Difference, ...]", well: str
) -> None:
    """Tells how the guest is now; what is missing still is a failure."""
    details = (*said, *(str(each) for each in left))
    if details:
        count = len(details)
        things = "1 thing is" if count == 1 else f"{count} things are"
        raise Failure(f"{it.name}: {things} not as it should be", details=details)
    click.echo(f"{it.name} {well}")


def _print_json(found: "Survey") -> None:
    click.echo(
        json.dumps(
            {
                "guest": found.subject.name,
                "uuid": str(found.subject.uuid),
                "uri": found.subject.uri,
                "system": found.target.system.value,
                "init": found.target.init.value,
                "files": [f"/{path}" for path in found.look.plan.paths],
                "differences": [
                    {"message": each.message, "hint": each.hint} for each in found.differences
                ],
            },
            indent=2,
        )
    )
