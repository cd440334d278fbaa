"""What makes a Debian guest this one: its settings, and the files and units of a test.

`archive` makes a tar of it, which the lab lays over the shared image (guest_image.py) before the
guest's init runs.
"""

from __future__ import annotations

import dataclasses
import io
import shlex
import tarfile
from collections.abc import Mapping, Sequence

UNITS = "etc/systemd/system"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What /usr/lib/lab/network and web.service in the guest read; addresses on eth0 with their
    prefix length."""

    name: str
    address: str
    gateway: str
    ports: Sequence[int]
    vips: Sequence[str]
    method: str
    address6: str = ""
    gateway6: str = ""

    def text(self) -> str:
        """Shell syntax that is systemd's EnvironmentFile= syntax, too."""
        values = {
            "NAME": self.name,
            "ADDRESS": self.address,
            "ADDRESS6": self.address6,
            "GATEWAY": self.gateway,
            "GATEWAY6": self.gateway6 if self.address6 else "",
            "PORTS": ",".join(map(str, self.ports)),
            "FAMILIES": "ipv6" if self.address6 else "",
            "VIPS": "" if self.method == "masquerade" else " ".join(self.vips),
            "METHOD": self.method,
        }
        return "".join(f"LAB_{key}={shlex.quote(value)}\n" for key, value in values.items())


def vips_of(vip: str | Sequence[str] | None) -> list[str]:
    return [vip] if isinstance(vip, str) else list(vip or ())


def archive(*, settings: Settings, files: Mapping[str, str | bytes], units: Sequence[str]) -> bytes:
    """A tar of the files (path in the guest → content; what starts with #! is a program), with
    `units` enabled as `systemctl enable` does it."""
    contents: dict[str, str | bytes] = {
        "/etc/hostname": f"{settings.name}\n",
        "/etc/hosts": f"127.0.0.1 localhost {settings.name}\n",
        "/etc/lab/settings": settings.text(),
        **files,
    }
    result = io.BytesIO()
    with tarfile.open(fileobj=result, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for path, content in contents.items():
            data = content.encode() if isinstance(content, str) else content
            member = tarfile.TarInfo(path.lstrip("/"))
            member.size = len(data)
            member.mode = 0o755 if data.startswith(b"#!") else 0o644
            tar.addfile(member, io.BytesIO(data))
        for unit in units:
            place = f"/{UNITS}/{unit}"
            if place not in contents:
                place = f"/lib/systemd/system/{unit}"
            for target in _targets(contents.get(place, "")):
                link = tarfile.TarInfo(f"{UNITS}/{target}/{unit}")
                link.type = tarfile.SYMTYPE
                link.linkname = place
                tar.addfile(link)
    return result.getvalue()


def _targets(unit: str | bytes) -> list[str]:
    """The folders that a unit's [Install] section names; multi-user.target's where it names none
    (a unit of the image itself)."""
    text = unit.decode() if isinstance(unit, bytes) else unit
    found = [
        f"{target}.{kind}"
        for line in text.splitlines()
        for key, kind in (("WantedBy=", "wants"), ("RequiredBy=", "requires"))
        if line.startswith(key)
        for target in line.removeprefix(key).split()
    ]
    return found or ["multi-user.target.wants"]
