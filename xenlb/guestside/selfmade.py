"""A guest that configures itself: it is given the text of its settings, and says what came of it.

The text is that of guest.sh, with the settings of the hold among it. How it travels on Xen is
vmdata.py's; the image of such guests has guest.sh, hold.sh and their services (`xenlb guest
image`).
"""

import asyncio
from typing import Protocol

from xenlb.guestside.files.systems import settings_text
from xenlb.guestside.needed.compile import compile_needs
from xenlb.guestside.needed.hold import settings_text as hold_text
from xenlb.guestside.subject import Subject
from xenlb.guestside.ways.channel import DeliveryError
from xenlb.hypervisor.xenstore_client import Refused, Unavailable

ANSWER = 30.0  # seconds; a guest looks every few seconds, and a busy one takes its time


class Xenstore(Protocol):
    """The agent's connection, or one of the command line."""

    async def offer(self, domid: int, text: str) -> str:
        """Gives a domain its settings; the serial that it answers with."""

    async def answer(self, domid: int, serial: str) -> str:
        """Waits for what came of it: `ok` or `failed`."""


def text_for(subject: Subject) -> str:
    """The settings of a guest, all in one. Raises NeedsError, TemplateError."""
    text = settings_text(compile_needs(subject.places))
    if subject.hold is None:
        return text
    held = hold_text(subject.hold).splitlines()
    return text + "".join(f"hold {line}\n" for line in held if not line.startswith("#"))


def running(subject: Subject) -> int:
    """Its domain. Raises DeliveryError."""
    if subject.domid is None:
        raise DeliveryError(
            f"{subject.name} does not run; it configures itself when it does", hint="start it"
        )
    return subject.domid


async def bring(subject: Subject, xenstore: Xenstore, *, text: str | None = None) -> str:
    """Gives it its settings and waits for its answer: what is wrong, "" if nothing is. `text`: in
    place of what it needs. Raises DeliveryError where xenstore cannot be reached, or the guest does
    not answer; NeedsError, TemplateError."""
    domid = running(subject)
    try:
        serial = await xenstore.offer(domid, text_for(subject) if text is None else text)
        async with asyncio.timeout(ANSWER):
            answer = await xenstore.answer(domid, serial)
    except (Unavailable, Refused) as error:
        raise DeliveryError(f"xenstore: {error}", hint="does xenstored run here?") from None
    except TimeoutError:
        raise DeliveryError(
            f"{subject.name} has not taken up what it needs", hint="does xenlb-guest run in it?"
        ) from None
    return "" if answer == "ok" else "the guest could not do all that it needs (its log says)"
