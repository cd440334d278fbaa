"""What xenstore tells of Xen's domains seconds before libvirt: requests and deaths.

What a guest says of itself: guest_messages.py.

A request (`virsh shutdown`, `xl reboot`, save, migration) is a word written to a domain's
control/shutdown, which the guest's kernel takes and clears within 8 to 110 ms. A watch says that
something was written, not what: so the question what it is goes out from within the watch, before
anything else. Where the guest was quicker nevertheless (the agent was busy), the watch has fired
twice, for the word and for the clearing, with nothing there both times. Nothing else does that to
a domain that is up, so it is reported as a request of unknown kind rather than lost. libxl itself
writes '' twice when it makes a domain; that is over before the domain is introduced, and a domain
is watched only from then on.

A death fires @releaseDomain, for all domains alike and without a name, when the guest has shut
down or crashed and once more when its remains are destroyed. Only the second shows in xenstore
(the domain is not «introduced» any more). For the first, libvirt is asked (`find_dead`): its
domain state says so some 50 ms later, its event seconds later.

Connections and bytes: client.py, wire.py. What follows for a guest:
model/guest.py.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from uuid import UUID

from xenlb.hypervisor.libvirt.queries import CallFailed, Unreachable
from xenlb.hypervisor.threads import CallTimeout
from xenlb.hypervisor.xenstore import guest_settings, reported_addresses
from xenlb.hypervisor.xenstore.client import XenstoreClient, XenstoreError, XenstoreUnavailable
from xenlb.hypervisor.xenstore.guest_messages import HOLD, SHUTDOWN, GuestNodeWatch, of_hold
from xenlb.model.domain import GuestId, RequestKind
from xenlb.model.events import Died, HypervisorEvent, ShutdownRequested

log = logging.getLogger(__name__)

# Seconds.
SHORTEST_PAUSE, LONGEST_PAUSE = 0.5, 15.0
TOGETHER = 1.0  # the two firings of one missed request are milliseconds apart
# Pauses before each question to libvirt after a @releaseDomain: for four seconds. In the lab its
# state followed after 50 ms on an idle host, after 150 to 850 ms on a busy one.
QUESTIONS = (0.0, 0.02, 0.03, *(0.05,) * 19, *(0.1,) * 10, *(0.25,) * 8)

_ASKS = {
    "poweroff": RequestKind.POWEROFF,
    "halt": RequestKind.POWEROFF,
    "reboot": RequestKind.REBOOT,
    "suspend": RequestKind.SUSPEND,
    "s3": RequestKind.SUSPEND,
}
INTRODUCED, RELEASED = "introduced", "released"


@dataclass(slots=True, kw_only=True)
class _Domain:
    domid: int
    guest: GuestId
    watched: bool = False
    seen: bool = False  # has the watch fired that comes with its registration?
    value: str = ""
    blank: float = float("-inf")  # when it fired for nothing
    dead: bool = False


class XenstoreSource:
    """`uri` is the libvirt URI whose guests these are; `find_dead` gives the domain ids that
    libvirt has reported as running and that are not alive any more (LibvirtSource.find_dead).

    `emit` is called in the loop's thread.
    """

    def __init__(
        self,
        uri: str,
        emit: Callable[[HypervisorEvent], None],
        clock: Callable[[], float],
        *,
        socket_path: str | None = None,
        find_dead: Callable[[], Awaitable[frozenset[int]]] | None = None,
    ) -> None:
        self.uri = uri
        self._emit = emit
        self._clock = clock
        self._path = socket_path
        self._find_dead = find_dead
        self._domains: dict[int, _Domain] = {}
        self._client: XenstoreClient | None = None
        self._words: tuple[GuestNodeWatch, ...] = ()
        self._said: dict[int, str] = {}
        self.answers: dict[int, str] = {}  # of guests that configure themselves, by domain id
        self.answered = asyncio.Event()  # set when there is a new one
        self._changed = asyncio.Event()
        self._released = asyncio.Event()
        self.connected = False
        self.missed = 0  # requests that were seen too late to know which

    async def run(self) -> None:
        """Connects, reports, reconnects; until cancelled."""
        pause, told = SHORTEST_PAUSE, False
        while True:
            client = XenstoreClient(self._watched)
            try:
                client.connect(self._path)
                self._client = client
                self._words = (
                    GuestNodeWatch(client, SHUTDOWN, self._asked, self._clock, {}),
                    GuestNodeWatch(client, HOLD, self._hold_said, self._clock, self._said),
                    GuestNodeWatch(
                        client, guest_settings.ANSWERS, self._answered, self._clock, self.answers
                    ),
                )
                await self._serve(client)
                pause, told = SHORTEST_PAUSE, False
                reason = await self._follow(client)
            except (XenstoreUnavailable, XenstoreError) as error:
                reason = str(error)
            finally:
                self.connected, self._client = False, None
                client.close()
                for words in self._words:
                    await words.close()
            if not told:
                told = True
                log.warning(
                    "xenstore: %s; requests and deaths are seen late, by libvirt, until it is back"
                    " (is this Dom0, and does xenstored run?)",
                    reason,
                )
            await asyncio.sleep(pause * random.uniform(0.8, 1.2))
            pause = min(pause * 2, LONGEST_PAUSE)

    async def _serve(self, client: XenstoreClient) -> None:
        for domain in self._domains.values():
            domain.watched = domain.seen = False
        await client.watch("@introduceDomain", INTRODUCED)
        await client.watch("@releaseDomain", RELEASED)
        await self._scan(client)
        self.connected = True
        log.info("xenstore: connected, %d domains", len(self._domains))

    async def _follow(self, client: XenstoreClient) -> str:
        """Until the connection is lost; why."""
        tasks = (
            asyncio.create_task(self._scans(client), name="xenstore: new and gone domains"),
            asyncio.create_task(self._deaths(), name="xenstore: deaths"),
        )
        waited: tuple[asyncio.Future[None] | asyncio.Future[str], ...] = (client.lost, *tasks)
        try:
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()  # raises: neither ends by itself
            return await client.lost
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def reported(self, domid: int, most: int) -> tuple[str, ...]:
        """Addresses that a guest has written of itself, uncut and unchecked; at most `most`.

        Raises Unavailable or Refused.
        """
        client = self._client
        if client is None:
            raise XenstoreUnavailable("not connected")
        return await reported_addresses.read(client, domid, most)

    async def offer(self, domid: int, text: str) -> str:
        """Gives a guest that configures itself its settings; the serial that it answers with.

        Raises Unavailable or Refused.
        """
        client = self._client
        if client is None:
            raise XenstoreUnavailable("not connected")
        return await guest_settings.offer(client, domid, text)

    async def answer(self, domid: int, serial: str) -> str:
        """Waits until the guest has said what came of these settings: `ok` or `failed`."""
        while True:
            said, _, word = self.answers.get(domid, "").partition(" ")
            if said == serial:
                return word
            self.answered.clear()
            await self.answered.wait()

    # --- watches, in the loop's thread -----------------------------------------------------------

    def _watched(self, _path: str, token: str) -> None:
        if token in {INTRODUCED, RELEASED}:
            self._changed.set()
            if token == RELEASED:
                log.debug("xenstore: @releaseDomain")
                self._released.set()
            return
        for words in self._words:
            if token.startswith(words.topic.token):
                words.fired(token)
                return

    def _asked(self, domid: int, _guest: GuestId, value: str) -> None:
        """The watch of control/shutdown has fired, and that was there when it was read."""
        domain = self._domains.get(domid)
        if domain is None or domain.dead:
            return
        before, domain.value = domain.value, value
        first, domain.seen = not domain.seen, True
        now = self._clock()
        if value:
            ask = _ASKS.get(value, RequestKind.POWERDOWN)
        elif first or before:
            return  # the watch's own first firing, or the guest has taken its order
        elif now - domain.blank > TOGETHER:
            domain.blank = now
            return
        else:
            ask = RequestKind.POWERDOWN
            domain.blank = float("-inf")
            self.missed += 1
            log.debug("xenstore: domain %d took a request before it was read", domain.domid)
        self._emit(
            ShutdownRequested(at=now, guest=domain.guest, incarnation=domain.domid, kind=ask)
        )

    def _hold_said(self, domid: int, guest: GuestId, word: str) -> None:
        self._emit(of_hold(domid, guest, word, self._clock()))

    def _answered(self, _domid: int, _guest: GuestId, _word: str) -> None:
        self.answered.set()  # the word is in `answers`

    # --- which domains there are -----------------------------------------------------------------

    async def _scans(self, client: XenstoreClient) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            await self._scan(client)

    async def _scan(self, client: XenstoreClient) -> None:
        self._changed.clear()
        names = await client.directory("/local/domain")
        there = {int(name) for name in names if name.isdecimal() and name != "0"}
        introduced = dict(
            zip(
                sorted(there),
                await asyncio.gather(*(client.introduced(domid) for domid in sorted(there))),
                strict=True,
            )
        )
        for domid in [d for d in self._domains if not introduced.get(d, False)]:
            domain = self._domains.pop(domid)
            self._died(domain)
            if domain.watched:
                for words in self._words:
                    await words.forget(domid)
        for domid, up in introduced.items():
            if up:
                await self._watch(client, domid)

    async def _watch(self, client: XenstoreClient, domid: int) -> None:
        domain = self._domains.get(domid)
        if domain is None:
            vm = await client.read(f"/local/domain/{domid}/vm")
            uuid = _uuid(vm)
            if uuid is None:
                return
            domain = _Domain(domid=domid, guest=GuestId(uri=self.uri, uuid=uuid))
            self._domains[domid] = domain
        if not domain.watched:
            domain.watched = True
            for words in self._words:
                await words.listen(domid, domain.guest)

    # --- deaths ----------------------------------------------------------------------------------

    async def _deaths(self) -> None:
        questions: list[float] = []
        while True:
            if not questions:
                await self._released.wait()
            if self._released.is_set():  # once more from the beginning
                self._released.clear()
                questions = list(QUESTIONS)
            await asyncio.sleep(questions.pop(0))
            await self._ask_libvirt()

    async def _ask_libvirt(self) -> None:
        if self._find_dead is None:
            return
        try:
            dead = await self._find_dead()
        except (Unreachable, CallFailed, CallTimeout) as error:
            log.debug("xenstore: libvirt cannot say who died: %s", error)
            return
        for domid in dead:
            domain = self._domains.get(domid)
            if domain is not None:
                self._died(domain)

    def _died(self, domain: _Domain) -> None:
        if not domain.dead:
            domain.dead = True
            self._emit(Died(at=self._clock(), guest=domain.guest, incarnation=domain.domid))


def _uuid(vm: str | None) -> UUID | None:
    """The UUID in a domain's `vm`, which reads /vm/UUID."""
    if vm is None or not vm.startswith("/vm/"):
        return None
    try:
        return UUID(vm.removeprefix("/vm/")[:36])
    except ValueError:
        return None
