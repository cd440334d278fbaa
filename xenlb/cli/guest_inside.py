"""The work of `xenlb guest plan`, `apply`, `verify` and `remove`."""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import click

from xenlb.cli import guest_common, guest_selfconfig, log_setup
from xenlb.cli.format import count
from xenlb.cli.options import Failure, Options
from xenlb.config import load
from xenlb.guestside import provision
from xenlb.guestside.inspect.finding import Difference
from xenlb.guestside.install.planner import ChangedFiles
from xenlb.guestside.install.preview import differences
from xenlb.guestside.provision import Applied, Survey
from xenlb.guestside.target import GuestTarget
from xenlb.guestside.transport.open import Access, open_access
from xenlb.model.guest_side import Delivery


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessOptions:
    """The options for the access to a guest. Raises UsageError if they contradict each other."""

    delivery: str | None
    ssh: str | None
    root: str | None
    key: Path

    def __post_init__(self) -> None:
        if self.root is not None and self.delivery not in {None, "rootfs"}:
            raise click.UsageError("--root is for --delivery rootfs")
        if self.ssh is not None and (self.root is not None or self.delivery not in {None, "ssh"}):
            raise click.UsageError("--ssh is for --delivery ssh")


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What differs in a guest. `changes`: the lines that `plan` prints; `details`: further JSON."""

    target: GuestTarget
    differences: tuple[Difference, ...]
    changes: list[str]
    details: dict[str, object]

    def as_json(self) -> dict[str, object]:
        """Return the answer of `plan --json` and `verify --json`."""
        return {
            "guest": self.target.name,
            "uuid": str(self.target.uuid),
            "uri": self.target.uri,
            "delivery": self.target.side.delivery,
            "differences": [{"message": d.message, "hint": d.hint} for d in self.differences],
            **self.details,
        }


def inspect(options: Options, name: str, access: AccessOptions) -> Inspection:
    """Read the state of a guest. Changes nothing."""
    target = _find_target(options, name, access)
    if _configures_itself(target):
        status = guest_selfconfig.read_status(target)
        left = status.differences
        changes = status.changes()
        # Only the guest itself knows its system and its files.
        details = {"system": None, "init": None, "files": [], **status.as_json()}
    else:
        survey, _ = guest_common.run(_survey(options, target, access))
        plan = survey.files.plan
        left = survey.differences
        changes = [*differences(plan, survey.files.present), *plan.notes]
        details = {
            "system": survey.platform.system.value,
            "init": survey.platform.init.value,
            "files": [f"/{path}" for path in plan.paths],
        }
    changes += [str(difference) for difference in left]
    return Inspection(target=target, differences=left, changes=changes, details=details)


def apply(options: Options, name: str, access: AccessOptions) -> None:
    """Bring a guest in line and print what was done. Raises Failure if differences are left."""
    target = _find_target(options, name, access)
    if _configures_itself(target):
        return conclude(target, left=guest_selfconfig.apply(options, target).differences)
    survey, applied = guest_common.run(_change(options, target, access, provision.apply))
    _print_operations(survey)
    return conclude(target, applied.failures, applied.remaining)


def remove(options: Options, name: str, access: AccessOptions, *, force: bool) -> None:
    """Undo `apply`. Raises Failure if anything is left. `force`: also remove changed files."""
    target = _find_target(options, name, access)
    if _configures_itself(target):
        return guest_selfconfig.remove(options, target)
    changed = ChangedFiles.DISCARD if force else ChangedFiles.KEEP
    survey, applied = guest_common.run(
        _change(options, target, access, provision.remove, removing=changed)
    )
    _print_operations(survey)
    if survey.files.plan.kept:
        raise Failure(
            f"not everything was removed from {target.name}",
            hint="to remove the changed files too: xenlb guest remove --force",
            details=applied.failures,
        )
    return conclude(target, applied.failures, text="has nothing of xenlb")


def conclude(
    target: GuestTarget,
    problems: tuple[str, ...] = (),
    left: tuple[Difference, ...] = (),
    *,
    text: str = "has all that it needs",
) -> None:
    """Print the text of a success. Raises Failure if there are problems or differences."""
    if details := (*problems, *map(str, left)):
        found = f"{count(len(details), 'difference')} found"
        raise Failure(f"{target.name}: {found}", details=details)
    source = ", by its own report" if _configures_itself(target) else ""
    click.echo(f"{target.name} {text}{source}")


def _find_target(options: Options, name: str, access: AccessOptions) -> GuestTarget:
    log_setup.set_up(verbose=options.verbose, level=logging.WARNING)
    settings = load(options.config)
    guest = guest_common.find_guest(options, settings, name)
    hold = guest_common.shutdown_hold(guest, settings, key=access.key)
    delivery = "rootfs" if access.root is not None else access.delivery
    return guest_common.run(
        guest_common.target_of(
            guest, hold, delivery=None if delivery is None else Delivery(delivery), ssh=access.ssh
        )
    )


def _configures_itself(target: GuestTarget) -> bool:
    return target.side.delivery is Delivery.XENSTORE


async def _survey(
    options: Options,
    target: GuestTarget,
    access: AccessOptions,
    removing: ChangedFiles | None = None,
) -> tuple[Survey, Access]:
    opened = await open_access(target, root=access.root)
    survey = await provision.survey(target, opened, overrides=options.templates, removing=removing)
    return survey, opened


async def _change(
    options: Options,
    target: GuestTarget,
    access: AccessOptions,
    work: Callable[..., Awaitable[Applied]],
    removing: ChangedFiles | None = None,
) -> tuple[Survey, Applied]:
    """Survey and change a guest under its lock."""
    async with guest_common.locked_guest(options, target):
        survey, opened = await _survey(options, target, access, removing)
        return survey, await work(survey, opened, overrides=options.templates)


def _print_operations(survey: Survey) -> None:
    plan = survey.files.plan
    for operation in plan.operations:
        if operation.path in plan.paths:
            click.echo(operation)
    for note in plan.notes:
        click.echo(note)
