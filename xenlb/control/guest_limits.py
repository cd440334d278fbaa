"""Limits for guests that report by TCP: the rate of conversations, and open connections.

A peer has a budget by its address. An IPv6 peer also has one by its /64, in which a guest has as
many addresses as it likes; the excess of one address does not count for its /64. When all slots
are in use, the network with the most connections gives up the one that was silent longest. Time is
an argument, in seconds.
"""

from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Generic, TypeVar

from xenlb.untrusted.rate import TokenBucket

# Conversations: so many at once, then so many a second. A guest without an answer tries again
# every half second for three seconds; when a host goes down, all its guests leave at once.
ADDRESS_BURST, ADDRESS_RATE = 20, 2.0
NETWORK_BURST, NETWORK_RATE = 200, 20.0
BURST, RATE = 400, 400.0  # of all peers together
REMEMBERED = 4096  # addresses and networks, each
SLOTS = 64
SLOTS_OF_ADDRESS = 4
SILENCE = 60.0  # seconds between two lines of the log about one network
LINES, LINES_RATE = 8, 8 / 60  # of the log, about all networks

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class GuestPeer:
    """A guest's address. `network`: the address itself for IPv4, the /64 for IPv6."""

    address: str
    network: str


def parse_peer(host: str) -> GuestPeer:
    """The peer with an address as accept() returns it: a zone may follow."""
    address: IPv4Address | IPv6Address = ip_address(host.partition("%")[0])
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if isinstance(address, IPv4Address):
        return GuestPeer(str(address), str(address))
    return GuestPeer(str(address), str(IPv6Network((address, 64), strict=False)))


@dataclass(slots=True)
class _Complaints:
    """About one network: when the last line was logged, and the number left out since."""

    logged_at: float = float("-inf")
    left_out: int = 0


@dataclass(slots=True)
class PeerRates:
    """Limits of conversations, and of lines in the log, for each peer."""

    _addresses: OrderedDict[str, TokenBucket] = field(default_factory=OrderedDict)
    _networks: OrderedDict[str, TokenBucket] = field(default_factory=OrderedDict)
    _complaints: OrderedDict[str, _Complaints] = field(default_factory=OrderedDict)
    _all: TokenBucket = field(default_factory=lambda: TokenBucket(BURST, RATE))
    _lines: TokenBucket = field(default_factory=lambda: TokenBucket(LINES, LINES_RATE))

    def refusal(self, peer: GuestPeer, now: float) -> str:
        """Why the peer may not begin a conversation now; "" if it may, which counts as one."""
        if not _bucket(self._addresses, peer.address, ADDRESS_BURST, ADDRESS_RATE).take(now):
            return "too many conversations"
        if peer.network != peer.address and not _bucket(
            self._networks, peer.network, NETWORK_BURST, NETWORK_RATE
        ).take(now):
            return f"too many conversations of {peer.network}"
        return "" if self._all.take(now) else "too many conversations of all guests"

    def complaint(self, peer: GuestPeer, now: float) -> int | None:
        """How many lines about the network were left out before this one; None to leave it out."""
        complaints = self._complaints.pop(peer.network, None) or _Complaints()
        _remember(self._complaints, peer.network, complaints)
        if now - complaints.logged_at < SILENCE or not self._lines.take(now):
            complaints.left_out += 1
            return None
        left_out = complaints.left_out
        complaints.logged_at, complaints.left_out = now, 0
        return left_out


class ConnectionSlots(Generic[T]):
    """The connections that are open, the oldest first."""

    def __init__(self) -> None:
        self._peers: dict[T, GuestPeer] = {}

    def make_room(self, peer: GuestPeer) -> tuple[T, GuestPeer] | None:
        """Release and return the connection that must end before this peer gets a slot, if any."""
        own = [holder for holder, other in self._peers.items() if other.address == peer.address]
        if len(own) >= SLOTS_OF_ADDRESS:
            evicted = own[0]
        elif len(self._peers) >= SLOTS:
            counts = Counter(other.network for other in self._peers.values())
            most = max(counts.values())
            evicted = next(
                holder for holder, other in self._peers.items() if counts[other.network] == most
            )
        else:
            return None
        return evicted, self._peers.pop(evicted)

    def take(self, holder: T, peer: GuestPeer) -> None:
        """Add the newest connection; make_room() keeps the limits."""
        self._peers[holder] = peer

    def release(self, holder: T) -> None:
        """Remove a connection; no effect if make_room() has removed it."""
        self._peers.pop(holder, None)


def _bucket(
    buckets: OrderedDict[str, TokenBucket], name: str, burst: float, rate: float
) -> TokenBucket:
    bucket = buckets.pop(name, None) or TokenBucket(burst, rate)
    _remember(buckets, name, bucket)
    return bucket


def _remember(entries: OrderedDict[str, T], name: str, entry: T) -> None:
    """Add the newest entry and forget the oldest."""
    entries[name] = entry
    if len(entries) > REMEMBERED:
        entries.popitem(last=False)
