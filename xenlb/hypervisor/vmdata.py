"""What a Xen guest that configures itself is given: settings in vm-data/xenlb of its xenstore.

The guest may read there and write nothing: what Dom0 makes below a domain's path has that path's
rights, which are the domain's to read. A node holds little (a message has 4096 bytes), so the text
is cut at the ends of lines into the nodes 0, 1, …; `parts` says how many, and `serial`, written
last, which text it is. In the guest templates/guest.sh reads serial, parts and serial again, and
answers in data/xenlb-guest with the serial and `ok` or `failed`.
"""

import asyncio
import hashlib
import re
from collections.abc import Iterator

from xenlb.hypervisor.guestwords import Topic
from xenlb.hypervisor.xenstore_client import XenstoreClient
from xenlb.hypervisor.xenstore_wire import Type

ANSWERS = Topic(node="xenlb-guest", token="inside-", known=re.compile("[0-9a-f]{16} (ok|failed)"))
LONGEST_PART = 3000  # characters
MOST_PARTS = 64
POLL = 0.3  # seconds


def serial(text: str) -> str:
    """Which text it is, in 16 hexadecimal digits."""
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:16]


def parts(text: str) -> Iterator[str]:
    """The text in whole lines, in pieces that a node can hold."""
    piece = ""
    for line in text.splitlines(keepends=True):
        if len(piece) + len(line) > LONGEST_PART and piece:
            yield piece
            piece = ""
        piece += line
    if piece:
        yield piece


async def offer(client: XenstoreClient, domid: int, text: str) -> str:
    """Writes the text, unless it stands there; returns its serial. Raises Unavailable or Refused
    (the domain is gone)."""
    base, number = f"/local/domain/{domid}/vm-data/xenlb", serial(text)
    if await client.read(f"{base}/serial") == number:
        return number
    # No serial while the parts are of two texts; the guest waits for one.
    await client.ask(Type.WRITE, f"{base}/serial", "")
    pieces = tuple(parts(text))
    for index, piece in enumerate(pieces):
        await client.ask(Type.WRITE, f"{base}/{index}", piece)
    await client.ask(Type.WRITE, f"{base}/parts", str(len(pieces)))
    await client.ask(Type.WRITE, f"{base}/serial", number)
    return number


async def given(client: XenstoreClient, domid: int) -> str:
    """The text that a domain was given last, "" if none. Raises Unavailable or Refused."""
    base = f"/local/domain/{domid}/vm-data/xenlb"
    count = await client.read(f"{base}/parts") or ""
    if not count.isdecimal():
        return ""
    pieces = [await client.read(f"{base}/{index}") for index in range(min(int(count), MOST_PARTS))]
    return "".join(piece or "" for piece in pieces)


class Connection:
    """xenstore for the questions of a command. Raises Unavailable where there is none."""

    def __init__(self) -> None:
        self._client = XenstoreClient(lambda _path, _token: None)
        self._client.connect()

    def close(self) -> None:
        self._client.close()

    async def given(self, domid: int) -> str:
        return await given(self._client, domid)

    async def offer(self, domid: int, text: str) -> str:
        return await offer(self._client, domid, text)

    async def answered(self, domid: int) -> tuple[str, str]:
        """The serial of the settings that the guest took up last, and what came of it."""
        word = await self._client.read(ANSWERS.path(domid)) or ""
        said, _, came = word.partition(" ") if ANSWERS.known.fullmatch(word) else ("", "", "")
        return said, came

    async def answer(self, domid: int, serial: str) -> str:
        """As XenstoreSource.answer, by looking now and then."""
        while True:
            said, came = await self.answered(domid)
            if said == serial:
                return came
            await asyncio.sleep(POLL)
