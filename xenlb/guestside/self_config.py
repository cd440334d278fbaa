"""A guest that configures itself: it is given the text of its settings, and says what came of it.

The text is that of guest.sh, with the settings of the hold among it. How it travels on Xen is
guest_settings.py's; the image of such guests has guest.sh, hold.sh and their services (`xenlb guest
image`).
"""

import asyncio
from dataclasses import replace
from typing import Protocol

from xenlb.guestside.render.systems import IMAGE_HOLD, settings_text
from xenlb.guestside.requirements.compile import compile_needs
from xenlb.guestside.requirements.hold import NotifyVia, notify_via_of
from xenlb.guestside.requirements.hold import settings_text as hold_text
from xenlb.guestside.target import GuestTarget
from xenlb.guestside.transport.channel import DeliveryError
from xenlb.hypervisor.xenstore.client import XenstoreError, XenstoreUnavailable

ANSWER = 30.0  # seconds; a guest looks every few seconds, and a busy one takes its time


class NotConfigured(DeliveryError):
    """The guest was given its settings, and has said nothing of them."""


class Xenstore(Protocol):
    """The agent's connection, or one of the command line."""

    async def write_settings(self, domid: int, text: str) -> str:
        """Gives a domain its settings; the serial that it answers with."""

    async def wait_for_answer(self, domid: int, serial: str) -> str:
        """Waits for what came of it: `ok` or `failed`."""


def settings_text_for(subject: GuestTarget) -> str:
    """The settings of a guest, all in one. In no service, it has the hold of its image again, and
    nothing else. Raises NeedsError, TemplateError."""
    text = settings_text(compile_needs(subject.places))
    held = hold_text(subject.hold or IMAGE_HOLD).splitlines()
    return text + "".join(f"hold {line}\n" for line in held if not line.startswith("#"))


def in_no_service(subject: GuestTarget) -> GuestTarget:
    """The same guest, for which there is nothing to do."""
    return replace(subject, places=(), hold=None)


def running(subject: GuestTarget) -> int:
    """Its domain, on this host's Xen: other hosts, and other hypervisors, have domains of the same
    numbers. Raises DeliveryError."""
    if notify_via_of(subject.uri) is not NotifyVia.XENSTORE:
        raise DeliveryError(
            f"{subject.name} is not a guest of this host's Xen ({subject.uri})",
            hint="run it on that host; what is no Xen guest is reached by ssh, agent or rootfs",
        )
    if subject.domid is None:
        raise DeliveryError(
            f"{subject.name} does not run; it configures itself when it does", hint="start it"
        )
    return subject.domid


async def deliver_settings(subject: GuestTarget, xenstore: Xenstore) -> str:
    """Gives it its settings and waits for its answer: what is wrong, "" if nothing is. Raises
    DeliveryError where xenstore cannot be reached, NotTakenUp, NeedsError, TemplateError."""
    domid = running(subject)
    try:
        serial = await xenstore.write_settings(domid, settings_text_for(subject))
        async with asyncio.timeout(ANSWER):
            answer = await xenstore.wait_for_answer(domid, serial)
    except (XenstoreUnavailable, XenstoreError) as error:
        raise DeliveryError(f"xenstore: {error}", hint="does xenstored run here?") from None
    except TimeoutError:
        raise NotConfigured(
            f"{subject.name} has not taken up what it needs", hint="does xenlb-guest run in it?"
        ) from None
    return "" if answer == "ok" else "the guest could not do all that it needs (its log says)"
