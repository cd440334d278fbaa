"""The first step of every apply, preview and removal, whatever the way: what would have to be done.

The second is the executor's: to perform the plan.
"""

from dataclasses import dataclass

from xenlb.guestside.install.baseline import CannotInstall
from xenlb.guestside.install.manifest import MANIFEST, NOTHING, BadManifest, Manifest, parse
from xenlb.guestside.install.operations import Executor, File, Missing, Present, Wanted
from xenlb.guestside.install.planner import ChangedFiles, Plan, paths_to_read, plan
from xenlb.guestside.transport.channel import DeliveryError


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSurvey:
    """What a guest has of xenlb's files, and what bringing in the wanted ones would do."""

    plan: Plan
    present: Present
    installed: frozenset[str]  # paths that the manifest names


async def survey_files(
    executor: Executor,
    wanted: tuple[Wanted, ...],
    *,
    changed: ChangedFiles = ChangedFiles.KEEP,
) -> FileSurvey:
    """Changes nothing. `wanted` empty: what a removal would do. Raises DeliveryError."""
    # Most often the manifest names nothing else than what is wanted; each reading by ssh is a
    # connection of its own, which costs a busy guest more than all that is read.
    ask = paths_to_read(wanted, NOTHING)
    present = await executor.read(files=ask.files, folders=ask.folders)
    try:
        manifest = _manifest(present)
        if (more := paths_to_read(wanted, manifest)) != ask:
            present = await executor.read(files=more.files, folders=more.folders)
            # That of the second reading: it belongs to the files that were read with it. Where it
            # names others than the first, somebody is at work in there.
            manifest = _manifest(present)
            if paths_to_read(wanted, manifest) != more:
                raise DeliveryError(
                    "the guest's manifest changed while it was read", hint="try again in a moment"
                )
        return FileSurvey(
            plan=plan(wanted, manifest, present, changed=changed),
            present=present,
            installed=frozenset(manifest.entries),
        )
    except CannotInstall as error:
        raise DeliveryError(str(error)) from None


def _manifest(present: Present) -> Manifest:
    match present[MANIFEST]:
        case Missing():
            return NOTHING
        case File(content=content):
            try:
                return parse(content)
            except BadManifest as error:
                why = str(error)
        case _:
            why = "it is not a file, or too large"
    raise DeliveryError(
        f"the guest's /{MANIFEST} cannot be used: {why}",
        hint="look what it is; moved away, xenlb takes what it finds for the guest's own",
    )
