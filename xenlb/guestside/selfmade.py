"""A guest that configures itself: it is given the text of its settings, and says what came of it.

The text is that of guest.sh, with the settings of the hold among it. How it travels on Xen is
vmdata.py's; the golden image has guest.sh, hold.sh and their services (`xenlb guest image`).
"""

import asyncio

from xenlb.guestside.channel import DeliveryError
from xenlb.guestside.compile import compile_needs
from xenlb.guestside.hold import settings_text as hold_text
from xenlb.guestside.subject import Subject
from xenlb.guestside.systems import settings_text
from xenlb.hypervisor.xenstore import XenstoreSource
from xenlb.hypervisor.xenstore_client import Refused, Unavailable

ANSWER = 30.0  # seconds; a guest looks every few seconds, and a busy one takes its time


def text_for(subject: Subject) -> str:
    """The settings of a guest, all in one. Raises NeedsError, TemplateError."""
    text = settings_text(compile_needs(subject.places))
    if subject.hold is None:
        return text
    held = hold_text(subject.hold).splitlines()
    return text + "".join(f"hold {line}\n" for line in held if not line.startswith("#"))


class SelfMade:
    """One domain of this host's Xen."""

    def __init__(self, xenstore: XenstoreSource, domid: int) -> None:
        self._xenstore = xenstore
        self._domid = domid

    async def bring(self, subject: Subject) -> str:
        """Gives it its settings and waits for its answer: what is wrong, "" if nothing is. Raises
        DeliveryError where xenstore cannot be reached, or the guest does not answer."""
        try:
            serial = await self._xenstore.offer(self._domid, text_for(subject))
        except (Unavailable, Refused) as error:
            raise DeliveryError(f"xenstore: {error}", hint="does xenstored run here?") from None
        answer = await self._answer(serial)
        if answer is None:
            raise DeliveryError(
                f"{subject.name} has not taken up what it needs",
                hint="does xenlb-guest run in it?",
            )
        return "" if answer == "ok" else "the guest could not do all that it needs (its log says)"

    async def _answer(self, serial: str) -> str | None:
        try:
            async with asyncio.timeout(ANSWER):
                while True:
                    said, _, word = self._xenstore.answers.get(self._domid, "").partition(" ")
                    if said == serial:
                        return word
                    await self._xenstore.answered.wait()
                    self._xenstore.answered.clear()
        except TimeoutError:
            return None
