"""What each peer of a listener may use: conversations in a time, and places at a time.

A peer is judged before anything that others share is spent on it. It has a budget by its address,
and of IPv6 also by its /64, in which a guest has as many addresses as it likes. What one address
does too much costs its /64 nothing. Places are lent: when they are full, the longest silent
connection of the network with the most makes room. Time is an argument, in seconds.
"""

from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Generic, TypeVar

from xenlb.untrusted.rate import TokenBucket

# Conversations: so many at once, then so many a second. A guest that finds nobody tries again
# every half second for three; a host that goes down has all its guests leave at once.
ADDRESS_BURST, ADDRESS_RATE = 20, 2.0
NETWORK_BURST, NETWORK_RATE = 200, 20.0
BURST, RATE = 400, 400.0  # of all together, of what no peer's own budget has refused
REMEMBERED = 4096  # addresses and networks, each
PLACES = 64
PLACES_OF_ADDRESS = 4
SILENCE = 60.0  # seconds between two lines of the log about one network
LINES, LINES_RATE = 8, 8 / 60  # of the log, about all

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Peer:
    """`network`: the address itself for IPv4, the /64 for IPv6."""

    address: str
    network: str


def peer_of(host: str) -> Peer:
    """`host` is as accept() gives it: a zone may follow the address."""
    address: IPv4Address | IPv6Address = ip_address(host.partition("%")[0])
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if isinstance(address, IPv4Address):
        return Peer(str(address), str(address))
    return Peer(str(address), str(IPv6Network((address, 64), strict=False)))


@dataclass(slots=True)
class _Complaints:
    """About one network: when the last line was written, and what was left out since."""

    at: float = float("-inf")
    more: int = 0


@dataclass(slots=True)
class PeerRates:
    """How often each peer may begin a conversation, and how often the log is told of it."""

    _addresses: OrderedDict[str, TokenBucket] = field(default_factory=OrderedDict)
    _networks: OrderedDict[str, TokenBucket] = field(default_factory=OrderedDict)
    _complaints: OrderedDict[str, _Complaints] = field(default_factory=OrderedDict)
    _all: TokenBucket = field(default_factory=lambda: TokenBucket(BURST, RATE))
    _lines: TokenBucket = field(default_factory=lambda: TokenBucket(LINES, LINES_RATE))

    def refusal(self, peer: Peer, now: float) -> str:
        """Why this peer gets no conversation now; "" if it does, and then it has spent one."""
        if not _recent(self._addresses, peer.address, ADDRESS_BURST, ADDRESS_RATE).take(now):
            return "too many conversations"
        if peer.network != peer.address and not _recent(
            self._networks, peer.network, NETWORK_BURST, NETWORK_RATE
        ).take(now):
            return f"too many conversations of {peer.network}"
        return "" if self._all.take(now) else "too many conversations of all guests"

    def complaint(self, peer: Peer, now: float) -> int | None:
        """How many complaints about the network went without a line before this one, which gets
        one; None: it gets none."""
        about = self._complaints.pop(peer.network, None) or _Complaints()
        _put(self._complaints, peer.network, about)
        if now - about.at < SILENCE or not self._lines.take(now):
            about.more += 1
            return None
        about.at, more, about.more = now, about.more, 0
        return more


class ConnectionLimits(Generic[T]):
    """Who holds a place, the longest first."""

    def __init__(self) -> None:
        self._held: dict[T, Peer] = {}

    def make_room(self, peer: Peer) -> tuple[T, Peer] | None:
        """Takes the place of who has to go before this peer gets one, if any has to."""
        mine = [holder for holder, held in self._held.items() if held.address == peer.address]
        if len(mine) >= PLACES_OF_ADDRESS:
            goes = mine[0]
        elif len(self._held) >= PLACES:
            held = Counter(holder.network for holder in self._held.values())
            most = max(held.values())
            goes = next(it for it, of in self._held.items() if held[of.network] == most)
        else:
            return None
        return goes, self._held.pop(goes)

    def take(self, holder: T, peer: Peer) -> None:
        self._held[holder] = peer

    def leave(self, holder: T) -> None:
        self._held.pop(holder, None)


def _recent(
    rates: OrderedDict[str, TokenBucket], key: str, burst: float, rate: float
) -> TokenBucket:
    found = rates.pop(key, None) or TokenBucket(burst, rate)
    _put(rates, key, found)
    return found


def _put(known: OrderedDict[str, T], key: str, value: T) -> None:
    """As the newest; the oldest are forgotten."""
    known[key] = value
    if len(known) > REMEMBERED:
        known.popitem(last=False)
