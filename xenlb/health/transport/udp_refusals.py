"""Conclusions from the silence of UDP ports, as hosts do not refuse every datagram.

Time is an argument, in seconds.

FACTS

- A closed port answers with ICMP. Linux sends one such message a second to one client, for all its
  ports together (net.ipv4.icmp_ratelimit, net.ipv6.icmp.ratelimit), after a burst of six. Seen: of
  20 closed ports that were probed at once, 14 were silent.
- It has no limit on loopback.

So refusals are remembered. A port that has refused is down until it answers, or is silent SILENCES
times, APART from each other. Silence counts only if a refusal would have been sent: no other port
of the address has refused shortly before. A port that is known to refuse is probed less often, so
that the host's limit is left for other ports.
"""

from collections import OrderedDict, deque
from dataclasses import dataclass

from xenlb.ipvs.table import IPAddress

LIMIT = 1.0  # between two refusals
MARGIN = 0.25  # for the round trip and the kernel's ticks
APART = 2.0
SILENCES = 3
# A port that was refused so often is not probed for HOLD after any refusal of its address.
CERTAIN = 3
HOLD = 3.0
RECENT = 16  # refusals of an address that are remembered
MOST = 16384  # addresses, and ports, that are remembered: those that refused last


@dataclass(slots=True, kw_only=True)
class _RefusingPort:
    """A port that has refused.

    `failures`: refusals and silences since its last answer; `silences` in a row; `counted_at`: when
    the last counted datagram was sent.
    """

    failures: int = 0
    silences: int = 0
    counted_at: float = 0.0


class Refusals:
    """Refusals of all addresses and ports."""

    def __init__(self, *, most: int = MOST) -> None:
        self._most = most
        # When the refused datagram was sent, and when the refusal was received, which may be late
        # on a busy host: the remote kernel's limit counted it at some time between.
        self._recent: OrderedDict[IPAddress, deque[tuple[float, float]]] = OrderedDict()
        self._ports: OrderedDict[tuple[IPAddress, int], _RefusingPort] = OrderedDict()

    def refused(self, address: IPAddress, port: int, *, sent: float, now: float) -> None:
        """Record a refusal."""
        state = self._ports.setdefault((address, port), _RefusingPort())
        state.failures += 1
        state.silences = 0
        state.counted_at = now
        self._ports.move_to_end((address, port))
        if len(self._ports) > self._most:
            self._ports.popitem(last=False)
        self._recent.setdefault(address, deque(maxlen=RECENT)).append((sent, now))
        self._recent.move_to_end(address)
        if len(self._recent) > self._most:
            self._recent.popitem(last=False)

    def answered(self, address: IPAddress, port: int) -> None:
        """Record an answer."""
        self._ports.pop((address, port), None)

    def is_held(self, address: IPAddress, port: int, now: float) -> bool:
        """Whether the port is known to refuse and should not be probed now."""
        state = self._ports.get((address, port))
        recent = self._recent.get(address)
        if state is None or state.failures < CERTAIN or not recent or address.is_loopback:
            return False
        return 0 <= now - recent[-1][1] < HOLD

    def silent(self, address: IPAddress, port: int, *, sent: float) -> bool | None:
        """Record silence after a datagram; return whether the port is open, None for unknown."""
        limited = self._may_be_limited(address, sent)
        state = self._ports.get((address, port))
        if state is None:
            return None if limited else True
        state.failures += 1
        if not limited and sent - state.counted_at >= APART:
            state.silences += 1
            state.counted_at = sent
        if state.silences < SILENCES:
            return False
        self.answered(address, port)
        return True

    def _may_be_limited(self, address: IPAddress, sent: float) -> bool:
        """Whether the host's limit may have suppressed a refusal."""
        if address.is_loopback:
            return False
        return any(
            refused_sent < sent + MARGIN and received > sent - LIMIT - MARGIN
            for refused_sent, received in self._recent.get(address, ())
        )
