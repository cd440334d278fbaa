"""`xenlb guest`: what xenlb has inside a guest."""

import json
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import click

from xenlb.cli import log_setup
from xenlb.cli.completion import named
from xenlb.cli.guest_render import image, render
from xenlb.cli.options import Failure, Group, Options, as_json, given, key_file
from xenlb.control.protocol import FAILED

if TYPE_CHECKING:
    from xenlb.guestside.inspect.finding import Difference
    from xenlb.guestside.install.planner import ChangedFiles
    from xenlb.guestside.provision import Applied, Survey
    from xenlb.guestside.self_config_status import SelfConfigStatus
    from xenlb.guestside.target import GuestTarget
    from xenlb.guestside.transport.open import Access

    class Work(Protocol):
        """work.apply or work.remove."""

        async def __call__(self, found: Survey, reached: Access, *, overrides: Path) -> Applied: ...


BY_ITS_OWN_WORD = "has all that it needs, as it says itself"


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


@click.group(cls=Group)
def guest() -> None:
    """What xenlb has inside a guest."""


guest.add_command(render)
guest.add_command(image)


@guest.command()
@named
@reached
@as_json
@given
def plan(options: Options, guest: str, *, way: Way, as_json: bool) -> None:
    """Shows what `apply` would do in GUEST: the difference of its files, and what is not as it
    should be. Nothing where nothing is to be done."""
    it = _subject(options, guest, way)
    if _makes_itself(it):
        from xenlb.cli import guest_selfconfig

        seen = guest_selfconfig.seen(it)
        lines = seen.changes() + [str(each) for each in seen.differences]
        answer = _json_of_self_made(it, seen)
    else:
        found = _surveyed(options, it, way)
        lines = _changes(found)
        answer = _json(found)
    if as_json:
        _print_json(answer)
    else:
        for line in lines:
            click.echo(line)
    if lines:
        sys.exit(FAILED)


@guest.command()
@named
@reached
@given
def apply(options: Options, guest: str, *, way: Way) -> None:
    """Brings into GUEST what it needs, and makes it true at once where the guest runs. What was
    there before is kept, and `remove` brings it back."""
    it = _subject(options, guest, way)
    if _makes_itself(it):
        from xenlb.cli import guest_selfconfig

        left = guest_selfconfig.apply(options, it).differences
        return _ended(it, left=left, well=BY_ITS_OWN_WORD)
    from xenlb.cli import guest_common
    from xenlb.guestside import provision

    found, done = guest_common.run(_in_turn(options, it, way, provision.apply))
    _told(found)
    return _ended(it, said=done.said, left=done.left, well="has all that it needs")


@guest.command()
@named
@reached
@as_json
@given
def verify(options: Options, guest: str, *, way: Way, as_json: bool) -> None:
    """Looks whether GUEST has all that its services need, and names each difference."""
    it = _subject(options, guest, way)
    if _makes_itself(it):
        from xenlb.cli import guest_selfconfig

        seen = guest_selfconfig.seen(it)
        left, answer, well = seen.differences, _json_of_self_made(it, seen), BY_ITS_OWN_WORD
    else:
        found = _surveyed(options, it, way)
        left, answer, well = found.differences, _json(found), "has all that it needs"
    if as_json:
        _print_json(answer)
        if left:
            sys.exit(FAILED)
    else:
        _ended(it, left=left, well=well)


@guest.command()
@named
@reached
@click.option("--force", is_flag=True, help="Also files that somebody has changed since.")
@given
def remove(options: Options, guest: str, *, way: Way, force: bool) -> None:
    """Takes out of GUEST all that xenlb has put there, and brings back what was there before."""
    it = _subject(options, guest, way)
    if _makes_itself(it):
        from xenlb.cli import guest_selfconfig

        return guest_selfconfig.remove(options, it)
    from xenlb.cli import guest_common
    from xenlb.guestside import provision
    from xenlb.guestside.install.planner import ChangedFiles

    changed = ChangedFiles.DISCARD if force else ChangedFiles.KEEP
    found, done = guest_common.run(_in_turn(options, it, way, provision.remove, removing=changed))
    _told(found)
    if found.files.plan.kept:
        raise Failure(
            f"not everything was removed from {it.name}",
            hint="xenlb guest remove --force takes away what was changed, too",
            details=done.said,
        )
    return _ended(it, said=done.said, well="has nothing of xenlb")


def _subject(options: Options, name: str, way: Way) -> "GuestTarget":
    from xenlb.cli import guest_common
    from xenlb.model.guest_side import Delivery

    log_setup.set_up(verbose=options.verbose, level=logging.WARNING)
    settings = guest_common.settings_of(options)
    found = guest_common.find(options, settings, name)
    held = guest_common.hold(found, settings, key=way.key)
    delivery = "rootfs" if way.root is not None else way.delivery
    return guest_common.run(
        guest_common.target_of(
            found, held, delivery=None if delivery is None else Delivery(delivery), ssh=way.ssh
        )
    )


def _makes_itself(it: "GuestTarget") -> bool:
    from xenlb.model.guest_side import Delivery

    return it.side.delivery is Delivery.XENSTORE


def _surveyed(options: Options, it: "GuestTarget", way: Way) -> "Survey":
    from xenlb.cli import guest_common

    found, _ = guest_common.run(_survey(options, it, way))
    return found


async def _survey(
    options: Options, it: "GuestTarget", way: Way, *, removing: "ChangedFiles | None" = None
) -> "tuple[Survey, Access]":
    from xenlb.guestside import provision

    reached = await provision.open_access(it, root=way.root)
    found = await provision.survey(it, reached, overrides=options.templates, removing=removing)
    return found, reached


async def _in_turn(
    options: Options,
    it: "GuestTarget",
    way: Way,
    work: "Work",
    *,
    removing: "ChangedFiles | None" = None,
) -> "tuple[Survey, Applied]":
    """What was found, and what `work` has made of it, while nobody else changes the guest."""
    from xenlb.cli import guest_common

    async with guest_common.locked_guest(options, it):
        found, reached = await _survey(options, it, way, removing=removing)
        return found, await work(found, reached, overrides=options.templates)


def _changes(found: "Survey") -> list[str]:
    from xenlb.guestside.install.preview import differences

    lines = list(differences(found.files.plan, found.files.present))
    lines += list(found.files.plan.notes)
    return lines + [str(each) for each in found.differences]


def _told(found: "Survey") -> None:
    for operation in found.files.plan.operations:
        if operation.path in found.files.plan.paths:
            click.echo(operation)
    for note in found.files.plan.notes:
        click.echo(note)


def _ended(
    it: "GuestTarget",
    *,
    said: tuple[str, ...] = (),
    left: "tuple[Difference, ...]" = (),
    well: str,
) -> None:
    """Tells how the guest is now; what is missing still is a failure."""
    details = (*said, *(str(each) for each in left))
    if details:
        count = len(details)
        things = "1 thing is" if count == 1 else f"{count} things are"
        raise Failure(f"{it.name}: {things} not as it should be", details=details)
    click.echo(f"{it.name} {well}")


def _json(found: "Survey") -> dict[str, object]:
    return {
        **_json_of(found.subject, found.differences),
        "system": found.platform.system.value,
        "init": found.platform.init.value,
        "files": [f"/{path}" for path in found.files.plan.paths],
    }


def _json_of_self_made(it: "GuestTarget", seen: "SelfConfigStatus") -> dict[str, object]:
    """Nobody has looked into it: it has no files to be written, and what it is, is not known."""
    return {
        **_json_of(it, seen.differences),
        "system": None,
        "init": None,
        "files": [],
        **seen.as_json(),
    }


def _json_of(it: "GuestTarget", left: "tuple[Difference, ...]") -> dict[str, object]:
    return {
        "guest": it.name,
        "uuid": str(it.uuid),
        "uri": it.uri,
        "delivery": it.side.delivery,
        "differences": [{"message": each.message, "hint": each.hint} for each in left],
    }


def _print_json(answer: dict[str, object]) -> None:
    click.echo(json.dumps(answer, indent=2))
