"""The files of a guest's hold. What its settings say, and why: requirements/hold.py."""

from pathlib import Path

from xenlb.guestside.install.operations import GuestFile
from xenlb.guestside.render.template import OVERRIDES, render
from xenlb.guestside.requirements.hold import Hold, settings_text, template_values
from xenlb.model.guest_side import Init

HOLD_SCRIPT = "usr/local/lib/xenlb/hold.sh"
HOLD_SETTINGS = "etc/xenlb-hold.conf"


def hold_files(hold: Hold, init: Init, *, overrides: Path = OVERRIDES) -> tuple[GuestFile, ...]:
    """Everything of the hold. Raises TemplateError."""
    values = template_values(hold)

    def filled(name: str) -> str:
        return render(name, values, overrides=overrides)

    match init:
        case Init.SYSTEMD:
            service = GuestFile(
                path="etc/systemd/system/xenlb-hold.service", text=filled("xenlb-hold.service")
            )
        case Init.SYSVINIT:
            service = GuestFile(
                path="etc/init.d/xenlb-hold", text=filled("xenlb-hold.init"), mode=0o755
            )
    return (
        GuestFile(path=HOLD_SCRIPT, text=filled("hold.sh"), mode=0o755),
        # For root alone: there may be a secret in it.
        GuestFile(path=HOLD_SETTINGS, text=settings_text(hold), mode=0o600),
        service,
    )
