"""Nodes of xenstore that a Xen guest may write, and how they are watched and read.

control/shutdown is where a guest is asked to go, and which it clears (source.py).
The hold in a guest (guestside/) writes `leaving` to data/xenlb when it is stopped, which is at the
beginning of the guest's shutdown, and `staying` when it is started; a guest that configures itself
writes to data/xenlb-guest what came of it (guest_settings.py). Read when it is written, and once
when the domain is first seen: what was said while the agent was away still stands there.

A guest may write what it likes, as often as it likes, and only below its own path, so it can speak
of nobody but itself. What is no word is passed over. One that writes a node without end would keep
the agent busy: after BURST firings, with RATE a second in between, the node is not watched for DEAF
seconds, and then read once. How often what it says is an event: guest_limiter.py.
"""

import asyncio
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from xenlb.hypervisor.xenstore.client import XenstoreClient, XenstoreError, XenstoreUnavailable
from xenlb.hypervisor.xenstore.wire import Type
from xenlb.model.domain import GuestId, RequestKind
from xenlb.model.events import HypervisorEvent, ShutdownCancelled, ShutdownRequested
from xenlb.untrusted.rate import TokenBucket

log = logging.getLogger(__name__)

LONGEST = 64  # bytes of a word that are looked at
BURST, RATE = 50, 5.0  # firings of a node that are read at once, then in a second
DEAF = 10.0  # seconds


@dataclass(slots=True, kw_only=True)
class _Speaker:
    domid: int
    guest: GuestId
    word: str = ""
    rate: TokenBucket = field(default_factory=lambda: TokenBucket(BURST, RATE))
    deaf: bool = False
    told: bool = False  # the log knows that it writes without end


@dataclass(frozen=True, slots=True, kw_only=True)
class Topic:
    """What guests speak of. `node`: below the domain's path; `token`: of its watches; `known`: the
    words that mean something, all others are passed over, as is a word that stands already; None:
    whatever is read is heard, at each firing."""

    node: str
    token: str
    known: re.Pattern[str] | None = None

    def path(self, domid: int) -> str:
        return f"/local/domain/{domid}/{self.node}"


LEAVING, STAYING = "leaving", "staying"
SHUTDOWN = Topic(node="control/shutdown", token="shutdown-")
HOLD = Topic(node="data/xenlb", token="says-", known=re.compile(f"{LEAVING}|{STAYING}"))


def of_hold(domid: int, guest: GuestId, word: str, at: float) -> HypervisorEvent:
    """What a word of the hold means."""
    if word == LEAVING:
        return ShutdownRequested(at=at, guest=guest, incarnation=domid, kind=RequestKind.INSIDE)
    return ShutdownCancelled(at=at, guest=guest, incarnation=domid)


class GuestNodeWatch:
    """The words of all domains of one connection on one topic. `heard(domid, guest, word)` is
    called in the loop's thread."""

    def __init__(
        self,
        client: XenstoreClient,
        topic: Topic,
        heard: Callable[[int, GuestId, str], None],
        clock: Callable[[], float],
        words: dict[int, str],
    ) -> None:
        """`words`, by domain id: what was heard over the connection before this one; kept here."""
        self._client = client
        self.topic = topic
        self._heard = heard
        self._clock = clock
        self._words = words
        self._speakers: dict[int, _Speaker] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """The connection has ended."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def listen(self, domid: int, guest: GuestId) -> None:
        """From now on. Raises Unavailable or Refused."""
        word = self._words.get(domid, "")
        self._speakers[domid] = _Speaker(domid=domid, guest=guest, word=word)
        await self._watch(domid)

    async def forget(self, domid: int) -> None:
        """The domain is gone. Raises Unavailable."""
        self._words.pop(domid, None)
        speaker = self._speakers.pop(domid, None)
        if speaker is not None and not speaker.deaf:
            await self._unwatch(domid)

    async def _unwatch(self, domid: int) -> None:
        try:
            path = self.topic.path(domid)
            await self._client.ask(Type.UNWATCH, path, f"{self.topic.token}{domid}")
        except XenstoreError as refused:
            log.debug("xenstore: unwatch of the word of domain %d: %s", domid, refused)

    def fired(self, token: str) -> None:
        """A watch has fired: what is there is read."""
        number = token.removeprefix(self.topic.token)
        speaker = self._speakers.get(int(number)) if number.isdecimal() else None
        if speaker is None or speaker.deaf:
            return
        if not speaker.rate.take(self._clock()):
            speaker.deaf = True
            log.log(
                logging.DEBUG if speaker.told else logging.WARNING,
                "xenstore: domain %d writes %s without end; it is not heard for %g s",
                speaker.domid,
                self.topic.path(speaker.domid),
                DEAF,
            )
            speaker.told = True
            task = asyncio.get_running_loop().create_task(self._turn_away(speaker))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            return
        try:
            answer = self._client.request(Type.READ, self.topic.path(speaker.domid))
        except XenstoreUnavailable:
            return  # read again when it is back
        answer.add_done_callback(partial(self._read, speaker))

    async def _turn_away(self, speaker: _Speaker) -> None:
        try:
            await self._unwatch(speaker.domid)
            await asyncio.sleep(DEAF)
            if self._speakers.get(speaker.domid) is speaker:
                speaker.deaf, speaker.rate = False, TokenBucket(BURST, RATE)
                await self._watch(speaker.domid)
        except (XenstoreUnavailable, XenstoreError) as error:
            log.debug("xenstore: the word of domain %d: %s", speaker.domid, error)

    async def _watch(self, domid: int) -> None:
        await self._client.watch(self.topic.path(domid), f"{self.topic.token}{domid}")

    def _read(self, speaker: _Speaker, answer: "asyncio.Future[bytes]") -> None:
        if answer.cancelled() or answer.exception() is not None:
            return  # nothing there, which is no word either
        said = answer.result()[:LONGEST].decode("ascii", errors="replace")
        if self.topic.known is not None:
            if not self.topic.known.fullmatch(said) or said == speaker.word:
                return
            speaker.word = self._words[speaker.domid] = said
        self._heard(speaker.domid, speaker.guest, said)
