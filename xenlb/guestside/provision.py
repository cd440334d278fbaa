"""What is done with the inside of one guest: looked at, applied, removed.

A guest that runs is asked over a channel, one that is off is worked on as a tree of files
(transport/open.py). Of one that runs three things are brought in line: its files
(install/planner.py); what is true in it now (guest.sh); and what its own programs know of their
files (systems.commands). The settings in the guest say what it was given last; what of that is no
longer wanted is taken away, whichever program made it, because guest.sh takes it for its own first.
"""

import asyncio
from dataclasses import dataclass
from pathlib import Path

from xenlb.guestside.inspect.finding import APPLY, Difference
from xenlb.guestside.inspect.observed import Observed
from xenlb.guestside.inspect.parse import ObserveError, observed, output_budget
from xenlb.guestside.inspect.script import observe_script
from xenlb.guestside.inspect.verify import differences
from xenlb.guestside.install.operations import File, Wanted
from xenlb.guestside.install.planner import ChangedFiles
from xenlb.guestside.install.preview import visible
from xenlb.guestside.platform import Platform, of_files, of_observed
from xenlb.guestside.render.systems import (
    GUEST_SETTINGS,
    commands,
    removal_commands,
    settings_text,
    side_files,
)
from xenlb.guestside.render.template import render
from xenlb.guestside.requirements.compile import compile_needs
from xenlb.guestside.requirements.needs import Needs
from xenlb.guestside.scripts import after_script, applied_script, removed_script
from xenlb.guestside.target import GuestTarget
from xenlb.guestside.transport import open
from xenlb.guestside.transport.channel import Channel, DeliveryError, Output
from xenlb.guestside.transport.open import Access
from xenlb.guestside.transport.survey import FileSurvey, survey_files
from xenlb.model.events import Verdict

NO_SETTINGS = "xenlb 1\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """A guest as it is and as it should be. `seen` None: it is off, and only its files are known.
    `former`: the settings that it was given last."""

    subject: GuestTarget
    needs: Needs
    platform: Platform
    seen: Observed | None
    files: FileSurvey
    former: str

    @property
    def differences(self) -> tuple[Difference, ...]:
        """All that is not as it should be."""
        found = () if self.seen is None else differences(self.needs, self.seen)
        return (*found, *self._files())

    def _files(self) -> tuple[Difference, ...]:
        """Of a guest that runs only where xenlb has put files there: it may have been configured by
        other means."""
        plan = self.files.plan
        if not plan.changes_guest or (self.seen is not None and not self.files.installed):
            return ()
        count = len(plan.paths)
        shown = ", ".join(f"/{path}" for path in plan.paths[:3]) + ", …" * (count > 3)
        files = "1 file or folder is" if count == 1 else f"{count} files or folders are"
        return (Difference(message=f"{files} missing or different: {shown}", hint=APPLY),)


def verdicts(subject: GuestTarget, seen: Observed) -> tuple[Verdict, ...]:
    """For each of its services: has a guest that runs all that it needs? What a guest has may be
    much: not for a loop."""
    found = []
    for place in subject.places:
        missing = differences(compile_needs([place], hold=subject.hold), seen)
        problem = "; ".join(each.message for each in missing)
        found.append(Verdict(service=place.service, problem=problem))
    return tuple(found)


async def open_access(subject: GuestTarget, *, root: str | None = None) -> Access:
    """`root`: where the operator mounted its root file system. Raises DeliveryError."""
    where = open.GuestLocation(
        uri=subject.uri,
        uuid=subject.uuid,
        name=subject.name,
        side=subject.side,
        address=subject.address,
        root=root,
    )
    return await open.open_transport(where)


async def inspect(subject: GuestTarget, channel: Channel) -> Observed:
    """What is true in a guest that runs. Raises DeliveryError."""
    needs = compile_needs(subject.places, hold=subject.hold)
    sides = (subject.side, *(place.side for place in subject.places))
    interfaces = sorted({side.interface for side in sides})
    output = await channel.run(observe_script(needs, interfaces=interfaces))
    if output.status != 0:
        raise DeliveryError(
            f"{subject.name} cannot be looked at: {output.complaint or 'no reason given'}"
        )
    try:
        return await asyncio.to_thread(observed, output.out, output_budget())
    except ObserveError as error:
        raise DeliveryError(f"{subject.name}: {error.message}", hint=error.hint) from None


async def survey(
    subject: GuestTarget, reached: Access, *, overrides: Path, removing: ChangedFiles | None = None
) -> Survey:
    """Changes nothing. `removing`: the guest is to have nothing of xenlb any more, and what becomes
    of files that somebody has changed. Raises DeliveryError, NeedsError, TemplateError."""
    seen = None if reached.channel is None else await inspect(subject, reached.channel)
    platform = await _platform(subject, reached, seen)
    needs, wanted = Needs(), tuple[Wanted, ...]()
    if removing is None:
        needs = compile_needs(subject.places, hold=subject.hold)
        wanted = side_files(
            needs,
            system=platform.system,
            init=platform.init,
            facts=platform.facts,
            overrides=overrides,
        )
    found = await survey_files(reached.executor, wanted, changed=removing or ChangedFiles.KEEP)
    return Survey(
        subject=subject,
        needs=needs,
        platform=platform,
        seen=seen,
        files=found,
        former=_former(found),
    )


async def _platform(subject: GuestTarget, reached: Access, seen: Observed | None) -> Platform:
    side, name = subject.side, subject.name
    if seen is None:
        return await of_files(side, reached.executor, name=name, container=subject.container)
    return of_observed(side, seen, name=name, container=subject.container)


def _former(found: FileSurvey) -> str:
    match found.present.get(GUEST_SETTINGS):
        case File(content=content) if GUEST_SETTINGS in found.installed:
            return content.decode("ascii", "replace")
        case _:
            return NO_SETTINGS


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """`said`: what the guest said of what failed; `left`: what is still not as it should be;
    `seen`: the guest afterwards, None where it is off or was not looked at."""

    said: tuple[str, ...] = ()
    left: tuple[Difference, ...] = ()
    seen: Observed | None = None


async def apply(found: Survey, reached: Access, *, overrides: Path) -> Applied:
    """Brings the guest in line with what was found. Raises DeliveryError; what was done before
    stays, and the next apply goes on from there."""
    plan = found.files.plan
    if not plan.operations and not await asyncio.to_thread(lambda: found.differences):
        return Applied(seen=found.seen)
    await reached.executor.perform(plan.operations)
    if reached.channel is None:
        return Applied()
    platform = found.platform
    script = applied_script(
        render("guest.sh", {}, overrides=overrides),
        former=found.former,
        settings=settings_text(found.needs),
        after=commands(
            found.needs, system=platform.system, init=platform.init, facts=platform.facts
        ),
    )
    output = await reached.channel.run(script)
    seen = await inspect(found.subject, reached.channel)
    left = await asyncio.to_thread(differences, found.needs, seen)
    return Applied(said=_said(output), left=left, seen=seen)


async def remove(found: Survey, reached: Access, *, overrides: Path) -> Applied:
    """Takes away all that xenlb has made in the guest. Raises DeliveryError."""
    said: tuple[str, ...] = ()
    channel = reached.channel
    if channel is not None and found.files.installed:
        script = removed_script(render("guest.sh", {}, overrides=overrides), former=found.former)
        said = _said(await channel.run(script))
    await reached.executor.perform(found.files.plan.operations)
    if channel is not None and found.files.installed:
        platform = found.platform
        after = removal_commands(system=platform.system, init=platform.init, facts=platform.facts)
        said += _said(await channel.run(after_script(after)))
    return Applied(said=said)


def _said(output: Output) -> tuple[str, ...]:
    """Lines of what failed, made harmless: the guest may say what it likes."""
    if output.status == 0:
        return ()
    lines = output.out.decode("utf-8", "backslashreplace").splitlines() or [output.complaint]
    return tuple(visible(line.removeprefix("xenlb-guest: "))[:300] for line in lines[:20])
