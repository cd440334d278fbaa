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
from xenlb.hypervisor.xenstore.guest_messages import LONGEST, GuestNode
from xenlb.hypervisor.xenstore.wire import Type

_ANSWER = re.compile("[0-9a-f]{16} (ok|failed)")
ANSWERS = GuestNode(name="data/xenlb-guest", token="inside-", pattern=_ANSWER)
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


async def write_settings(client: XenstoreClient, domid: int, text: str) -> str:
    """Write the text, unless it is there already, and return its serial.

    There must be one writer for a domain. Raises XenstoreUnavailable or XenstoreError.
    """
    base, serial = settings_path(domid), settings_serial(text)
    if await read_settings(client, domid) == StoredSettings(serial=serial, text=text):
        return serial
    # No serial while the parts belong to two texts: the guest waits for one.
    await client.call(Type.WRITE, f"{base}/serial", "")
    parts = tuple(split_parts(text))
    for index, part in enumerate(parts):
        await client.call(Type.WRITE, f"{base}/{index}", part)
    await client.call(Type.WRITE, f"{base}/parts", str(len(parts)))
    await client.call(Type.WRITE, f"{base}/serial", serial)
    return serial


async def read_settings(client: XenstoreClient, domid: int) -> StoredSettings:
    """Read a domain's settings. Raises XenstoreUnavailable or XenstoreError."""
    base = settings_path(domid)
    serial = await client.read(f"{base}/serial") or ""
    count = await client.read(f"{base}/parts") or ""
    most = min(int(count), MOST_PARTS) if count.isdecimal() else 0
    parts = [await client.read(f"{base}/{index}") for index in range(most)]
    return StoredSettings(serial=serial, text="".join(part or "" for part in parts))


def parse_answer(value: str) -> tuple[str, str]:
    """Split a guest's answer into the serial of the settings and the result (`ok`, `failed`); both
    are empty for a malformed one."""
    serial, _, result = value.partition(" ") if _ANSWER.fullmatch(value) else ("", "", "")
    return serial, result


class Connection:
    """A connection to xenstored for one command. Raises XenstoreUnavailable if there is none."""

    def __init__(self) -> None:
        self._client = XenstoreClient(lambda _path, _token: None)
        self._client.connect()

    def close(self) -> None:
        self._client.close()

    async def is_guest(self, domid: int, uuid: UUID) -> bool:
        """Whether the domain is that guest: ids are reused, and belong to one host."""
        return await self._client.read(f"/local/domain/{domid}/vm") == f"/vm/{uuid}"

    async def read_settings(self, domid: int) -> StoredSettings:
        return await read_settings(self._client, domid)

    async def write_settings(self, domid: int, text: str) -> str:
        return await write_settings(self._client, domid, text)

    async def read_answer(self, domid: int) -> str | None:
        """Return the guest's answer, unchecked, cut after LONGEST + 1 characters; None if there is
        none."""
        value = await self._client.read(ANSWERS.path(domid))
        return None if value is None else value[: LONGEST + 1]

    async def wait_for_answer(self, domid: int, serial: str) -> str:
        """Wait for the result of these settings, by polling, and return it: `ok` or `failed`."""
        while True:
            answered, result = parse_answer(await self.read_answer(domid) or "")
            if answered == serial:
                return result
            await asyncio.sleep(POLL)
