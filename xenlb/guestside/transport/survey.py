"""The survey of a guest's files: the first step of every plan, apply and removal."""

from dataclasses import dataclass

from xenlb.guestside.install.baseline import CannotInstall
from xenlb.guestside.install.manifest import MANIFEST, NOTHING, BadManifest, Manifest, parse
from xenlb.guestside.install.operations import Executor, File, Missing, Present, Wanted
from xenlb.guestside.install.planner import ChangedFiles, Plan, paths_to_read, plan
from xenlb.guestside.transport.channel import DeliveryError


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSurvey:
    """The nodes at the paths of a plan; `installed`: the paths that the manifest names."""

    plan: Plan
    present: Present
    installed: frozenset[str]


async def survey_files(
    executor: Executor,
    wanted: tuple[Wanted, ...],
    *,
    changed: ChangedFiles = ChangedFiles.KEEP,
) -> FileSurvey:
    """Read the files and plan the changes; no wanted files: a removal. Raises DeliveryError."""
    # Usually the manifest names only wanted files. Each read by ssh is a connection of its own,
    # which costs a busy guest more than the files do.
    paths = paths_to_read(wanted, NOTHING)
    present = await executor.read(files=paths.files, folders=paths.folders)
    try:
        manifest = _manifest(present)
        if (all_paths := paths_to_read(wanted, manifest)) != paths:
            present = await executor.read(files=all_paths.files, folders=all_paths.folders)
            # The manifest of the second read belongs to the files that were read with it.
            manifest = _manifest(present)
            if paths_to_read(wanted, manifest) != all_paths:
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
        hint="check that file; without it xenlb treats all files as the guest's own",
    )
