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
from dataclasses import dataclass
from uuid import UUID

from xenlb.hypervisor.xenstore.client import XenstoreClient
from xenlb.hypervisor.xenstore.guest_messages import LONGEST, Topic
from xenlb.hypervisor.xenstore.wire import Type

_ANSWER = re.compile("[0-9a-f]{16} (ok|failed)")
ANSWERS = Topic(node="data/xenlb-guest", token="inside-", known=_ANSWER)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What stands in a domain's xenstore. `serial` "": nothing was given to it, or somebody was
    stopped in the middle of it."""

    serial: str
    text: str

    @property
    def whole(self) -> bool:
        """Does the serial belong to the text? Without one the guest takes nothing up."""
        return self.text.isascii() and self.serial == serial(self.text)


def place(domid: int) -> str:
    """Where it is, in xenstore."""
    return f"/local/domain/{domid}/vm-data/xenlb"


async def offer(client: XenstoreClient, domid: int, text: str) -> str:
    """Writes the text, unless it stands there; returns its serial. Raises Unavailable or Refused.
    Nobody else may do the same for this domain meanwhile."""
    base, number = place(domid), serial(text)
    if await given(client, domid) == Given(serial=number, text=text):
        return number
    # No serial while the parts are of two texts; the guest waits for one.
    await client.ask(Type.WRITE, f"{base}/serial", "")
    pieces = tuple(parts(text))
    for index, piece in enumerate(pieces):
        await client.ask(Type.WRITE, f"{base}/{index}", piece)
    await client.ask(Type.WRITE, f"{base}/parts", str(len(pieces)))
    await client.ask(Type.WRITE, f"{base}/serial", number)
    return number


async def given(client: XenstoreClient, domid: int) -> Given:
    """What a domain was given last. Raises Unavailable or Refused."""
    base = place(domid)
    number = await client.read(f"{base}/serial") or ""
    count = await client.read(f"{base}/parts") or ""
    most = min(int(count), MOST_PARTS) if count.isdecimal() else 0
    pieces = [await client.read(f"{base}/{index}") for index in range(most)]
    return Given(serial=number, text="".join(piece or "" for piece in pieces))


def understood(word: str) -> tuple[str, str]:
    """Of a guest's word: which settings it has taken up, by their serial, and what came of it;
    two empty ones where it is none."""
    said, _, came = word.partition(" ") if _ANSWER.fullmatch(word) else ("", "", "")
    return said, came


class Connection:
    """xenstore for the questions of a command. Raises Unavailable where there is none."""

    def __init__(self) -> None:
        self._client = XenstoreClient(lambda _path, _token: None)
        self._client.connect()

    def close(self) -> None:
        self._client.close()

    async def holds(self, domid: int, uuid: UUID) -> bool:
        """Is this domain that guest? Numbers are of one host, and given out anew."""
        return await self._client.read(f"/local/domain/{domid}/vm") == f"/vm/{uuid}"

    async def given(self, domid: int) -> Given:
        return await given(self._client, domid)

    async def offer(self, domid: int, text: str) -> str:
        return await offer(self._client, domid, text)

    async def said(self, domid: int) -> str | None:
        """What the guest has written of itself, unchecked, no more than is looked at; None: it has
        written nothing."""
        word = await self._client.read(ANSWERS.path(domid))
        return None if word is None else word[: LONGEST + 1]

    async def answer(self, domid: int, serial: str) -> str:
        """As XenstoreSource.answer, by looking now and then."""
        while True:
            said, came = understood(await self.said(domid) or "")
            if said == serial:
                return came
            await asyncio.sleep(POLL)
