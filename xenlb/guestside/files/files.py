"""The files that a guest gets: what they are, those of the hold, and all as a tree or a tar
archive. What is in the templates is render.py's; the files of a guest's network, systems.py's.
"""

import io
import os
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path

from xenlb.guestside.files.render import render
from xenlb.guestside.needed.hold import Hold, settings_text, template_values
from xenlb.guestside.plan.tree import GuestFile, GuestLink, Wanted
from xenlb.model.side import Init

OVERRIDES = Path("/etc/xenlb/templates")
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


def write_tree(files: Sequence[Wanted], folder: Path) -> None:
    """Writes the files below a folder; each is whole, with its rights, from its first moment."""
    for file in files:
        target = folder / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        new = target.with_name(f".{target.name}.new")
        new.unlink(missing_ok=True)
        if isinstance(file, GuestLink):
            new.symlink_to(file.target)
            new.replace(target)
            continue
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(fd, "w") as stream:
            stream.write(file.text)
            os.fchmod(fd, file.mode)
        new.replace(target)


def archive(files: Sequence[Wanted]) -> bytes:
    """A tar archive of the files alone, owned by root: unpacking it at / touches no folder's
    rights. Plain ustar, which the oldest tar and busybox read."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for file in files:
            entry = tarfile.TarInfo(file.path)
            entry.mtime = int(time.time())
            entry.uname = entry.gname = "root"
            match file:
                case GuestLink(target=target):
                    entry.type, entry.linkname, data = tarfile.SYMTYPE, target, b""
                case GuestFile(text=text, mode=mode):
                    entry.mode, data = mode, text.encode()
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()
