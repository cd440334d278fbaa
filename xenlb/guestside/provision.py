"""Survey, apply and remove: all work on the inside of one guest.

A running guest is reached over a channel; a powered-off guest is a tree of files. In a running
guest three things are brought in line: its files, the state of its kernel (guest.sh), and the
programs that read the files (systems.commands). The settings in the guest show what it was given
last. guest.sh first adopts the state of these settings, so it can also remove what the guest's own
network configuration made.
"""

import asyncio
from dataclasses import dataclass
from pathlib import Path

from xenlb.guestside.inspect.finding import APPLY, Difference
from xenlb.guestside.inspect.observed import Observed
from xenlb.guestside.inspect.parse import ObserveError, output_budget, parse_observed
from xenlb.guestside.inspect.script import observe_script
from xenlb.guestside.inspect.verify import differences
from xenlb.guestside.install.operations import File, Wanted
from xenlb.guestside.install.planner import ChangedFiles
from xenlb.guestside.install.preview import visible
from xenlb.guestside.platform import Platform, platform_of_files, platform_of_running
from xenlb.guestside.render.systems import (
    GUEST_SETTINGS,
    apply_commands,
    guest_files,
    removal_commands,
    settings_text,
)
from xenlb.guestside.render.template import render
from xenlb.guestside.requirements.compile import compile_needs
from xenlb.guestside.requirements.needs import Needs
from xenlb.guestside.scripts import after_script, applied_script, removed_script
from xenlb.guestside.target import GuestTarget
from xenlb.guestside.transport.channel import Channel, DeliveryError, Output
from xenlb.guestside.transport.open import Access
from xenlb.guestside.transport.survey import FileSurvey, survey_files
from xenlb.model.events import Verdict

NO_SETTINGS = "xenlb 1\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """The state of a guest and its needs.

    `observed` None: the guest is off, and only its files are known. `last_settings`: those that the
    guest was given last.
    """

    target: GuestTarget
    needs: Needs
    platform: Platform
    observed: Observed | None
    files: FileSurvey
    last_settings: str

    @property
    def differences(self) -> tuple[Difference, ...]:
        """The differences in the guest's state and in its files."""
        in_state = () if self.observed is None else differences(self.needs, self.observed)
        return (*in_state, *self._differences_in_files())

    def _differences_in_files(self) -> tuple[Difference, ...]:
        """In a running guest only where xenlb has put files: the rest may have other means."""
        plan = self.files.plan
        if not plan.paths or (self.observed is not None and not self.files.installed):
            return ()
        count = len(plan.paths)
        shown = ", ".join(f"/{path}" for path in plan.paths[:3]) + ", …" * (count > 3)
        files = "1 file or folder is" if count == 1 else f"{count} files or folders are"
        return (Difference(message=f"{files} missing or different: {shown}", hint=APPLY),)


def verdicts(target: GuestTarget, observed: Observed) -> tuple[Verdict, ...]:
    """Whether a running guest has all that each of its services needs.

    Run it in a thread: the state of a guest may be large.
    """
    results = []
    for binding in target.bindings:
        missing = differences(compile_needs([binding], hold=target.hold), observed)
        problem = "; ".join(difference.message for difference in missing)
        results.append(Verdict(service=binding.service, problem=problem))
    return tuple(results)


async def inspect(target: GuestTarget, channel: Channel) -> Observed:
    """The network state of a running guest. Raises DeliveryError."""
    needs = compile_needs(target.bindings, hold=target.hold)
    sides = (target.side, *(binding.side for binding in target.bindings))
    interfaces = sorted({side.interface for side in sides})
    output = await channel.run(observe_script(needs, interfaces=interfaces))
    if output.status != 0:
        raise DeliveryError(
            f"{target.name} cannot be inspected: {output.complaint or f'status {output.status}'}"
        )
    try:
        return await asyncio.to_thread(parse_observed, output.out, output_budget())
    except ObserveError as error:
        raise DeliveryError(f"{target.name}: {error.message}", hint=error.hint) from None


async def survey(
    target: GuestTarget, access: Access, *, overrides: Path, removing: ChangedFiles | None = None
) -> Survey:
    """Inspect a guest; changes nothing. Raises DeliveryError, NeedsError, TemplateError.

    `removing`: the survey is for a removal, which treats changed files this way.
    """
    observed = None if access.channel is None else await inspect(target, access.channel)
    side, name, container = target.side, target.name, target.container
    if observed is None:
        platform = await platform_of_files(side, access.executor, name=name, container=container)
    else:
        platform = platform_of_running(side, observed, name=name, container=container)
    needs, wanted = Needs(), tuple[Wanted, ...]()
    if removing is None:
        needs = compile_needs(target.bindings, hold=target.hold)
        wanted = guest_files(
            needs,
            system=platform.system,
            init=platform.init,
            facts=platform.facts,
            overrides=overrides,
        )
    files = await survey_files(access.executor, wanted, changed=removing or ChangedFiles.KEEP)
    return Survey(
        target=target,
        needs=needs,
        platform=platform,
        observed=observed,
        files=files,
        last_settings=_last_settings(files),
    )


def _last_settings(files: FileSurvey) -> str:
    match files.present.get(GUEST_SETTINGS):
        case File(content=content) if GUEST_SETTINGS in files.installed:
            return content.decode("ascii", "replace")
        case _:
            return NO_SETTINGS


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """The result of an apply or a removal.

    `failures`: lines of the guest's scripts. `remaining`: the differences left. `observed`: the
    state afterwards; None for a guest that is off or was not inspected.
    """

    failures: tuple[str, ...] = ()
    remaining: tuple[Difference, ...] = ()
    observed: Observed | None = None


async def apply(survey: Survey, access: Access, *, overrides: Path) -> Applied:
    """Bring a guest in line with its needs. Raises DeliveryError.

    After an error the changes made so far stay, and the next apply goes on from there.
    """
    plan = survey.files.plan
    if not plan.operations and not await asyncio.to_thread(lambda: survey.differences):
        return Applied(observed=survey.observed)
    await access.executor.perform(plan.operations)
    if access.channel is None:
        return Applied()
    platform = survey.platform
    script = applied_script(
        render("guest.sh", {}, overrides=overrides),
        last=survey.last_settings,
        settings=settings_text(survey.needs),
        after=apply_commands(
            survey.needs, system=platform.system, init=platform.init, facts=platform.facts
        ),
    )
    output = await access.channel.run(script)
    observed = await inspect(survey.target, access.channel)
    remaining = await asyncio.to_thread(differences, survey.needs, observed)
    return Applied(failures=_failures(output), remaining=remaining, observed=observed)


async def remove(survey: Survey, access: Access, *, overrides: Path) -> Applied:
    """Remove all that xenlb has made in a guest. Raises DeliveryError."""
    failures: tuple[str, ...] = ()
    channel = access.channel if survey.files.installed else None
    if channel is not None:
        guest_script = render("guest.sh", {}, overrides=overrides)
        output = await channel.run(removed_script(guest_script, last=survey.last_settings))
        failures = _failures(output)
    await access.executor.perform(survey.files.plan.operations)
    if channel is not None:
        platform = survey.platform
        after = removal_commands(system=platform.system, init=platform.init, facts=platform.facts)
        failures += _failures(await channel.run(after_script(after)))
    return Applied(failures=failures)


def _failures(output: Output) -> tuple[str, ...]:
    """The output of a failed script as printable lines."""
    if output.status == 0:
        return ()
    lines = output.out.decode("utf-8", "backslashreplace").splitlines() or [output.complaint]
    return tuple(visible(line.removeprefix("xenlb-guest: "))[:300] for line in lines[:20])
