"""The files that a guest gets: templates filled in, with rights, as a tree or a tar archive.

A template of /etc/xenlb/templates takes the place of the shipped one of the same name.
"""

import io
import os
import re
import tarfile
import time
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

from xenlb.guestside.hold import Hold, settings_text, template_values
from xenlb.guestside.tree import GuestFile, GuestLink
from xenlb.model.side import Init

__all__ = [
    "GuestFile",
    "GuestLink",
    "TemplateError",
    "archive",
    "fill",
    "hold_files",
    "template",
    "write_tree",
]

OVERRIDES = Path("/etc/xenlb/templates")
HOLD_SCRIPT = "usr/local/lib/xenlb/hold.sh"
HOLD_SETTINGS = "etc/xenlb-hold.conf"
_PLACEHOLDER = re.compile(r"@([A-Z][A-Z_]*)@")


class TemplateError(Exception):
    """A template cannot be used; one sentence."""


def hold_files(hold: Hold, init: Init, *, overrides: Path = OVERRIDES) -> tuple[GuestFile, ...]:
    """Everything of the hold. Raises TemplateError."""
    values = template_values(hold)

    def filled(name: str) -> str:
        return fill(template(name, overrides=overrides), values, name=name)

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


def template(name: str, *, overrides: Path) -> str:
    """The operator's template of that name, or the shipped one."""
    try:
        return (overrides / name).read_text()
    except FileNotFoundError:
        return resources.files("xenlb.guestside").joinpath("templates", name).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise TemplateError(f"the template {overrides / name} cannot be read: {error}") from None


def fill(text: str, values: Mapping[str, int], *, name: str) -> str:
    """The template with every @NAME@ replaced; raises TemplateError for one that has no value."""

    def value(match: re.Match[str]) -> str:
        if match[1] not in values:
            known = " ".join(f"@{each}@" for each in values)
            raise TemplateError(f"the template {name} has {match[0]}; there are only: {known}")
        return str(values[match[1]])

    return _PLACEHOLDER.sub(value, text)


def write_tree(files: Sequence[GuestFile], folder: Path) -> None:
    """Writes the files below a folder; each is whole, with its rights, from its first moment."""
    for file in files:
        target = folder / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        new = target.with_name(f".{target.name}.new")
        new.unlink(missing_ok=True)
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(fd, "w") as stream:
            stream.write(file.text)
            os.fchmod(fd, file.mode)
        new.replace(target)


def archive(files: Sequence[GuestFile]) -> bytes:
    """A tar archive of the files alone, owned by root: unpacking it at / touches no folder's
    rights. Plain ustar, which the oldest tar and busybox read."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for file in files:
            data = file.text.encode()
            entry = tarfile.TarInfo(file.path)
            entry.size = len(data)
            entry.mode = file.mode
            entry.mtime = int(time.time())
            entry.uname = entry.gname = "root"
            tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()
