"""Whether a guest is ready for a service, by the inspection of it (`guest-side.on-boot`).

A guest that is not ready is not added to the table; a server in the table stays.
"""

from collections.abc import Sequence

from xenlb.model.events import Verdict
from xenlb.model.guest import Guest
from xenlb.model.guest_side import OnBoot
from xenlb.model.membership import membership
from xenlb.model.settings import ServiceSettings

NOT_INSPECTED = "the guest has not been inspected yet"


def not_ready_reason(service: ServiceSettings, guest: Guest) -> str:
    """Return why a guest is not ready for a service; "" if it is.

    Only a verdict on the present settings of the service counts: after a reload the guest may need
    something else.
    """
    member = membership(service, guest)
    if member is None or member.side.on_boot is OnBoot.OFF:
        return ""
    verdicts = (verdict for verdict in guest.readiness if verdict.service == service)
    verdict = next(verdicts, None)
    return NOT_INSPECTED if verdict is None else verdict.problem


def changed_verdicts(before: Sequence[Verdict], after: Sequence[Verdict]) -> list[tuple[str, bool]]:
    """Return a text for each changed verdict, and whether it is a warning."""
    known = {verdict.service.name: verdict.problem for verdict in before}
    texts = []
    for verdict in after:
        name, problem = verdict.service.name, verdict.problem
        if known.get(name) != problem:
            text = f"not ready for {name}: {problem}" if problem else f"ready for {name}"
            texts.append((text, bool(problem)))
    return texts
