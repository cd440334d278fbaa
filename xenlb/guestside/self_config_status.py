"""A guest that configures itself as it is seen from outside: what it was given, and its own word.

Nobody looks into it, so what is true in it only it can say; it may say what it likes, or nothing.
Its word names the settings that it is about, by their serial: one about others is old. What it is
given: self_config.py.
"""

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from xenlb.guestside.inspect.finding import APPLY, Difference
from xenlb.guestside.install.preview import visible
from xenlb.hypervisor.xenstore.guest_settings import StoredSettings, parse_answer, settings_serial


class GuestReport(StrEnum):
    """What it says of the settings that it was given last."""

    OK = "ok"
    FAILED = "failed"  # it could not do all of them
    MISSING = "missing"
    OLD = "old"
    BROKEN = "broken"  # not understood


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfConfigStatus:
    """`place`: of its settings in xenstore; `wanted`: their text as it should be; `word`: its own,
    unchecked, None where it has said nothing."""

    place: str
    wanted: str
    given: StoredSettings
    word: str | None

    @property
    def report(self) -> GuestReport:
        if self.word is None:
            return GuestReport.MISSING
        said, came = parse_answer(self.word)
        if not said:
            return GuestReport.BROKEN
        return GuestReport(came) if said == self.given.serial else GuestReport.OLD

    @property
    def in_step(self) -> bool:
        return self.given.whole and self.given.text == self.wanted

    @property
    def differences(self) -> tuple[Difference, ...]:
        """All that is not as it should be."""
        return tuple(self._found())

    def _found(self) -> Iterator[Difference]:
        if not self.given.serial and not self.given.text:
            yield Difference(message="it was given no settings", hint=APPLY)
            return
        if not self.given.whole:
            yield Difference(
                message="its settings in xenstore are not whole: it takes up none of them",
                hint=APPLY,
            )
            return
        if not self.in_step:
            yield Difference(message="it was given other settings than it needs now", hint=APPLY)
        match self.report:
            case GuestReport.OK:
                pass
            case GuestReport.FAILED:
                yield Difference(
                    message="it could not do all that it was given",
                    hint="its log says what: journalctl -u xenlb-guest, inside",
                )
            case GuestReport.MISSING:
                yield Difference(
                    message="it has reported nothing of itself",
                    hint="does xenlb-guest run in it? xenlb guest image makes what it needs",
                )
            case GuestReport.OLD:
                yield Difference(
                    message="it has not taken up what it was given last: its report is older",
                    hint="it looks every few seconds; does xenlb-guest still run in it?",
                )
            case GuestReport.BROKEN:
                yield Difference(
                    message=f"its report is not understood: '{visible(self.word or '')}'",
                    hint="data/xenlb-guest should have 16 hexadecimal digits and ok or failed;"
                    " who else writes there?",
                )

    def changes(self) -> list[str]:
        """Lines of the difference between what stands in xenstore and what should."""
        return list(
            difflib.unified_diff(
                [visible(line) for line in self.given.text.splitlines()],
                self.wanted.splitlines(),
                fromfile=self.place,
                tofile=self.place,
                lineterm="",
            )
        )

    def as_json(self) -> dict[str, object]:
        """What the JSON of `plan` and `verify` has of such guests alone."""
        said, _ = parse_answer(self.word or "")
        return {
            "settings": {
                "path": self.place,
                "given": self.given.serial if self.given.whole else None,
                "wanted": settings_serial(self.wanted),
                "changes": self.changes(),
            },
            "report": {"state": self.report.value, "settings": said or None},
        }
