"""Guests that configure themselves: their settings in xenstore, and their own report.

The settings are those of guest.sh, with those of the hold among them. The image of such guests has
guest.sh, hold.sh and their services (`xenlb guest image`). Only the guest can report its state; the
report is untrusted, and names the settings that it is about by their serial.
"""

import asyncio
import difflib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Protocol

from xenlb.guestside.inspect.finding import APPLY, Difference
from xenlb.guestside.install.preview import visible
from xenlb.guestside.render.systems import IMAGE_HOLD, settings_text
from xenlb.guestside.requirements.compile import compile_needs
from xenlb.guestside.requirements.hold import NotifyVia, notify_via_of
from xenlb.guestside.requirements.hold import settings_text as hold_text
from xenlb.guestside.target import GuestTarget
from xenlb.guestside.transport.channel import DeliveryError
from xenlb.hypervisor.xenstore.client import XenstoreError, XenstoreUnavailable
from xenlb.hypervisor.xenstore.guest_settings import StoredSettings, parse_answer, settings_serial

ANSWER = 30.0  # seconds; a guest checks every few seconds, and a busy one is slow


class NotConfigured(DeliveryError):
    """The guest has not reported on its settings in time."""


class Xenstore(Protocol):
    """The agent's connection to xenstore, or that of a command."""

    async def write_settings(self, domid: int, text: str) -> str:
        """Write the settings of a domain; returns their serial."""

    async def wait_for_answer(self, domid: int, serial: str) -> str:
        """Wait for the result of these settings: `ok` or `failed`."""


def settings_text_for(target: GuestTarget) -> str:
    """The settings of a guest, including those of its hold. Raises NeedsError, TemplateError.

    A guest in no service has the hold of its image, and nothing else.
    """
    text = settings_text(compile_needs(target.bindings))
    hold = hold_text(target.hold or IMAGE_HOLD).splitlines()
    return text + "".join(f"hold {line}\n" for line in hold if not line.startswith("#"))


def without_services(target: GuestTarget) -> GuestTarget:
    """The same guest in no service."""
    return replace(target, bindings=(), hold=None)


def domid_of(target: GuestTarget) -> int:
    """The domain of a running guest of this host's Xen. Raises DeliveryError.

    Other hosts and hypervisors have domains with the same numbers.
    """
    if notify_via_of(target.uri) is not NotifyVia.XENSTORE:
        raise DeliveryError(
            f"{target.name} is not a guest of this host's Xen ({target.uri})",
            hint="run the command on that host; other hypervisors need delivery ssh, agent or "
            "rootfs",
        )
    if target.domid is None:
        raise DeliveryError(
            f"{target.name} is not running; it configures itself at boot", hint="start it"
        )
    return target.domid


async def deliver_settings(target: GuestTarget, xenstore: Xenstore) -> str:
    """Write the settings of a guest and wait for its report; returns the problem, or "".

    Raises NotConfigured, NeedsError, TemplateError, and DeliveryError without a xenstore.
    """
    domid = domid_of(target)
    try:
        number = await xenstore.write_settings(domid, settings_text_for(target))
        async with asyncio.timeout(ANSWER):
            result = await xenstore.wait_for_answer(domid, number)
    except (XenstoreUnavailable, XenstoreError) as error:
        raise DeliveryError(f"xenstore: {error}", hint="check that xenstored runs") from None
    except TimeoutError:
        raise NotConfigured(
            f"{target.name} has not confirmed its settings",
            hint="check that xenlb-guest runs in it",
        ) from None
    return "" if result == "ok" else "the guest could not apply all of its settings (see its log)"


class GuestReport(StrEnum):
    """The guest's report about its last settings."""

    OK = "ok"
    FAILED = "failed"  # it could not apply all of them
    MISSING = "missing"
    OLD = "old"  # about earlier settings
    BROKEN = "broken"  # not in the expected form


_REPORT_DIFFERENCES = {
    GuestReport.FAILED: Difference(
        message="it could not apply all of its settings",
        hint="see its log: journalctl -u xenlb-guest, in the guest",
    ),
    GuestReport.MISSING: Difference(
        message="it has not reported on its settings",
        hint="check that xenlb-guest runs in it; xenlb guest image makes the files for that",
    ),
    GuestReport.OLD: Difference(
        message="its report is about earlier settings",
        hint="it checks every few seconds; check that xenlb-guest still runs in it",
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfConfigStatus:
    """The settings and the report of a guest.

    `path`: of its settings in xenstore. `wanted`: the text that it needs. `report_text`: its own
    report, unchecked; None where there is none.
    """

    path: str
    wanted: str
    given: StoredSettings
    report_text: str | None

    @property
    def report(self) -> GuestReport:
        """The kind of the report."""
        if self.report_text is None:
            return GuestReport.MISSING
        number, result = parse_answer(self.report_text)
        if not number:
            return GuestReport.BROKEN
        return GuestReport(result) if number == self.given.serial else GuestReport.OLD

    @property
    def up_to_date(self) -> bool:
        """Whether xenstore has the wanted settings, complete."""
        return self.given.whole and self.given.text == self.wanted

    @property
    def differences(self) -> tuple[Difference, ...]:
        """The differences between the wanted settings, the given ones and the report."""
        return tuple(self._differences())

    def _differences(self) -> Iterator[Difference]:
        if not self.given.serial and not self.given.text:
            yield Difference(message="xenstore has no settings for it", hint=APPLY)
            return
        if not self.given.whole:
            yield Difference(
                message="its settings in xenstore are incomplete, so it applies none of them",
                hint=APPLY,
            )
            return
        if not self.up_to_date:
            yield Difference(
                message="its settings in xenstore differ from what it needs now", hint=APPLY
            )
        if self.report is GuestReport.BROKEN:
            yield Difference(
                message=f"its report has an unknown form: '{visible(self.report_text or '')}'",
                hint="data/xenlb-guest should have 16 hexadecimal digits and ok or failed",
            )
        elif self.report is not GuestReport.OK:
            yield _REPORT_DIFFERENCES[self.report]

    def changes(self) -> list[str]:
        """Lines of a unified diff from the settings in xenstore to the wanted ones."""
        return list(
            difflib.unified_diff(
                [visible(line) for line in self.given.text.splitlines()],
                self.wanted.splitlines(),
                fromfile=self.path,
                tofile=self.path,
                lineterm="",
            )
        )

    def as_json(self) -> dict[str, object]:
        """The part of the JSON of `plan` and `verify` that only such guests have."""
        number, _ = parse_answer(self.report_text or "")
        return {
            "settings": {
                "path": self.path,
                "given": self.given.serial if self.given.whole else None,
                "wanted": settings_serial(self.wanted),
                "changes": self.changes(),
            },
            "report": {"state": self.report.value, "settings": number or None},
        }
