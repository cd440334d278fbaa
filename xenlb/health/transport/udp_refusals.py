"""What the silence of a UDP port tells, as hosts do not refuse every datagram.

Time is an argument, in seconds. Nothing here asks anything (udp.py, dns.py).

FACTS

- A closed port answers with ICMP, and Linux sends one such message a second to one asker, for all
  its ports together (net.ipv4.icmp_ratelimit, net.ipv6.icmp.ratelimit), after a burst of six. Seen:
  of 20 closed ports that were asked at once, 14 were silent.
- It sets no limit on loopback.

So a refusal is remembered. A port that has refused is down until it answers, or is silent SILENCES
times, APART from each other. Silence counts only where a refusal would have been sent: no other
port of the address has refused shortly before. A port that is known to refuse is asked less often
then, so that the others get refusals of their own.
"""

from collections import OrderedDict, deque
from dataclasses import dataclass

from xenlb.ipvs.table import IPAddress

LIMIT = 1.0  # from one refusal to the next
MARGIN = 0.25  # for the way there and back, and a clock of ticks
APART = 2.0
SILENCES = 3
# A port that was refused so often is not asked for HOLD after any refusal of its address.
CERTAIN = 3
HOLD = 3.0
RECENT = 16  # refusals of an address that are remembered
MOST = 16384  # addresses, and ports, that are remembered: those that refused last


@dataclass(slots=True, kw_only=True)
class _Doubt:
    """A port that has refused: how often it has done so or was silent since, how often it was
    silent in a row, and when what was counted last was asked."""

    bad: int = 0
    silences: int = 0
    counted: float = 0.0


class Refusals:
    def __init__(self, *, most: int = MOST) -> None:
        self._most = most
        # When what was refused was sent, and when the refusal was seen, which a busy host may do
        # late: the kernel there counted it at some time between.
        self._recent: OrderedDict[IPAddress, deque[tuple[float, float]]] = OrderedDict()
        self._doubts: OrderedDict[tuple[IPAddress, int], _Doubt] = OrderedDict()

    def refused(self, address: IPAddress, port: int, *, sent: float, now: float) -> None:
        doubt = self._doubts.setdefault((address, port), _Doubt())
        doubt.bad += 1
        doubt.silences = 0
        doubt.counted = now
        self._doubts.move_to_end((address, port))
        if len(self._doubts) > self._most:
            self._doubts.popitem(last=False)
        self._recent.setdefault(address, deque(maxlen=RECENT)).append((sent, now))
        self._recent.move_to_end(address)
        if len(self._recent) > self._most:
            self._recent.popitem(last=False)

    def answered(self, address: IPAddress, port: int) -> None:
        self._doubts.pop((address, port), None)

    def held(self, address: IPAddress, port: int, now: float) -> bool:
        """Is the port known to refuse, and to be left alone for now?"""
        doubt = self._doubts.get((address, port))
        recent = self._recent.get(address)
        if doubt is None or doubt.bad < CERTAIN or not recent or address.is_loopback:
            return False
        return 0 <= now - recent[-1][1] < HOLD

    def silent(self, address: IPAddress, port: int, *, sent: float) -> bool | None:
        """Does silence after a datagram that was sent then mean that the port is open? None: it
        tells nothing."""
        muted = self._muted(address, sent)
        doubt = self._doubts.get((address, port))
        if doubt is None:
            return None if muted else True
        doubt.bad += 1
        if not muted and sent - doubt.counted >= APART:
            doubt.silences += 1
            doubt.counted = sent
        if doubt.silences < SILENCES:
            return False
        self.answered(address, port)
        return True

    def _muted(self, address: IPAddress, sent: float) -> bool:
        """May the limit have kept a refusal back?"""
        if address.is_loopback:
            return False
        return any(
            asked < sent + MARGIN and seen > sent - LIMIT - MARGIN
            for asked, seen in self._recent.get(address, ())
        )
