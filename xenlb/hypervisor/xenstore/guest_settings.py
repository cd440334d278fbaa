"""Settings of a Xen guest that configures itself, in vm-data/xenlb of its xenstore.

The guest may read there but not write: nodes that Dom0 creates below a domain's path have that
path's permissions, by which the domain may only read. A node holds little (a message has 4096
bytes), so the text is cut at ends of lines into the nodes 0, 1, …. `parts` is their number, and
`serial`, written last, identifies the text. In the guest, templates/guest.sh reads serial, parts
and serial again, and answers in data/xenlb-guest with the serial and `ok` or `failed`.
"""

import asyncio
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from uuid import UUID

from xenlb.hypervisor.xenstore.client import XenstoreClient
from xenlb.hypervisor.xenstore.wire import Type

_ANSWER = re.compile("[0-9a-f]{16} (ok|failed)")
LONGEST_ANSWER = 64  # characters
LONGEST_PART = 3000  # characters
MOST_PARTS = 64
POLL = 0.3  # seconds


def settings_serial(text: str) -> str:
    """Return the serial of a text: 16 hexadecimal digits."""
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:16]


def split_parts(text: str) -> Iterator[str]:
    """Split the text at ends of lines into parts of at most LONGEST_PART characters."""
    part = ""
    for line in text.splitlines(keepends=True):
        if len(part) + len(line) > LONGEST_PART and part:
            yield part
            part = ""
        part += line
    if part:
        yield part


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSettings:
    """Settings in a domain's xenstore. An empty `serial`: never written, or not completely."""

    serial: str
    text: str

    @property
    def whole(self) -> bool:
        """Whether the serial matches the text; if not, the guest ignores the text."""
        return self.text.isascii() and self.serial == settings_serial(self.text)


def settings_path(domid: int) -> str:
    """Return the xenstore path of a domain's settings."""
    return f"/local/domain/{domid}/vm-data/xenlb"


def parse_answer(value: str) -> tuple[str, str]:
    """Split a guest's answer into the serial of the settings and the result, `ok` or `failed`.

    Both are empty for a malformed answer.
    """
    serial, _, result = value.partition(" ") if _ANSWER.fullmatch(value) else ("", "", "")
    return serial, result


class Connection:
    """Settings of guests over a connection to xenstored, by default a new one.

    All methods raise XenstoreUnavailable and XenstoreError.
    """

    def __init__(self, client: XenstoreClient | None = None) -> None:
        self._client = client or XenstoreClient(lambda _path, _token: None)
        if client is None:
            self._client.connect()

    def close(self) -> None:
        """Close the connection, also one that was given."""
        self._client.close()

    async def is_guest(self, domid: int, uuid: UUID) -> bool:
        """Whether the domain is that guest: ids are reused, and belong to one host."""
        return await self._client.read(f"/local/domain/{domid}/vm") == f"/vm/{uuid}"

    async def write_settings(self, domid: int, text: str) -> str:
        """Write the text, unless it is there already, and return its serial.

        There must be one writer for a domain.
        """
        base, serial = settings_path(domid), settings_serial(text)
        if await self.read_settings(domid) == StoredSettings(serial=serial, text=text):
            return serial
        parts = tuple(split_parts(text))
        # No serial while the parts belong to two texts: the guest waits for one.
        await self._client.call(Type.WRITE, f"{base}/serial", "")
        for index, part in enumerate(parts):
            await self._client.call(Type.WRITE, f"{base}/{index}", part)
        await self._client.call(Type.WRITE, f"{base}/parts", str(len(parts)))
        await self._client.call(Type.WRITE, f"{base}/serial", serial)
        return serial

    async def read_settings(self, domid: int) -> StoredSettings:
        """Read a domain's settings."""
        base = settings_path(domid)
        serial = await self._client.read(f"{base}/serial") or ""
        count = await self._client.read(f"{base}/parts") or ""
        most = min(int(count), MOST_PARTS) if count.isdecimal() else 0
        parts = [await self._client.read(f"{base}/{index}") for index in range(most)]
        return StoredSettings(serial=serial, text="".join(part or "" for part in parts))

    async def read_answer(self, domid: int) -> str | None:
        """Return the guest's answer, unchecked and cut; None if there is none."""
        value = await self._client.read(f"/local/domain/{domid}/data/xenlb-guest")
        return None if value is None else value[: LONGEST_ANSWER + 1]

    async def wait_for_answer(self, domid: int, serial: str) -> str:
        """Wait for the result of these settings and return it: `ok` or `failed`."""
        while True:
            answered, result = parse_answer(await self.read_answer(domid) or "")
            if answered == serial:
                return result
            await asyncio.sleep(POLL)
