"""Whether a guest may be let into a service, by what was found inside it (`guest-side.on-boot`).

What a service needs there, and how it is looked at, is the business of xenlb.guestside; here is
what the answers mean. They keep a guest from being let in; they take none out that is in.
"""

from collections.abc import Sequence

from xenlb.model.events import Verdict
from xenlb.model.guest import Guest
from xenlb.model.guest_side import OnBoot
from xenlb.model.membership import membership
from xenlb.model.settings import ServiceSettings

UNSEEN = "the inside of the guest was not looked at yet"


def lacking(service: ServiceSettings, guest: Guest) -> str:
    """Why a guest that answers is not let into a service that it belongs to; "" if it may be.

    A verdict is one on the service as it was configured then: of a service that has changed the
    guest may need something else.
    """
    member = membership(service, guest)
    if member is None or member.side.on_boot is OnBoot.OFF:
        return ""
    found = next((each for each in guest.readiness if each.service == service), None)
    return UNSEEN if found is None else found.problem


def news(before: Sequence[Verdict], after: Sequence[Verdict]) -> list[tuple[str, bool]]:
    """What of the verdicts is worth a line, and whether it is a warning."""
    known = {each.service.name: each.problem for each in before}
    return [
        (
            f"not ready for {each.service.name}: {each.problem}"
            if each.problem
            else f"has all that {each.service.name} needs",
            bool(each.problem),
        )
        for each in after
        if known.get(each.service.name) != each.problem
    ]
