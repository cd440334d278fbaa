"""Check that the machine behind a channel is the expected guest.

Any machine may have the address. So every script begins with lines that compare what the network
cannot change: the MAC addresses of the cards, and the UUID that the hypervisor shows. They run in
the same connection as the script, so no other machine can come between. A container shows the UUID
of its host, and is identified by its MAC address.
"""

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from uuid import UUID

from xenlb.guestside.transport.channel import LIMIT, Channel, DeliveryError, Output

OTHER = 97  # exit status of a script on another machine
MOST_SHOWN = 4
_MARK = b"xenlb: another machine:"
_MAC = re.compile(rb"(?<![0-9a-f:])[0-9a-f]{2}(?::[0-9a-f]{2}){5}(?![0-9a-f:])")

# Shell built-ins are enough; ip(8) is for guests that have not mounted /sys.
_GUARD = """\
xenlb_ids=
for xenlb_file in /sys/class/net/*/address /sys/class/dmi/id/product_uuid /sys/hypervisor/uuid; do
    xenlb_line=
    {{ read -r xenlb_line <"$xenlb_file"; }} 2>/dev/null
    xenlb_ids="$xenlb_ids $xenlb_line"
done
xenlb_ids="$xenlb_ids $(ip -o link 2>/dev/null) "
case $xenlb_ids in
{patterns}) ;;
*)
    echo '{mark}' "$xenlb_ids"
    exit {status}
    ;;
esac
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What a guest shares with its domain; `macs` in lower case with colons."""

    uuid: UUID
    macs: frozenset[str] = frozenset()


def guarded(script: str, identity: Identity) -> str:
    """The script after lines that end it on any other machine."""
    identifiers = [str(identity.uuid), *sorted(identity.macs)]
    patterns = "|".join(f'*" {_any_case(identifier)} "*' for identifier in identifiers)
    return _GUARD.format(patterns=patterns, mark=_MARK.decode(), status=OTHER) + script


def _any_case(word: str) -> str:
    """A shell pattern between quotes: old kernels write a UUID in upper case."""
    return "".join(f'"[{char}{char.upper()}]"' if char.isalpha() else char for char in word)


class GuardedChannel:
    """A Channel that runs its scripts on the machine with an identity only.

    `get_identity` is awaited once, before the first script. `place` names the machine in messages.
    """

    def __init__(
        self,
        channel: Channel,
        get_identity: Callable[[], Awaitable[Identity]],
        *,
        name: str,
        place: str,
    ) -> None:
        self._channel = channel
        self._get_identity = get_identity
        self._name = name
        self._place = place
        self._identity: Identity | None = None

    async def run(self, script: str, *, limit: float = LIMIT) -> Output:
        """Run a script. Raises DeliveryError as the channel does, and on another machine."""
        if self._identity is None:
            self._identity = await self._get_identity()
        output = await self._channel.run(guarded(script, self._identity), limit=limit)
        if output.status == OTHER and output.out.startswith(_MARK):
            raise self._other_machine(output, self._identity)
        return output

    def _other_machine(self, output: Output, identity: Identity) -> DeliveryError:
        macs = dict.fromkeys(mac.decode() for mac in _MAC.findall(output.out[:8192]))
        cards = [mac for mac in macs if mac not in {"00:00:00:00:00:00", "ff:ff:ff:ff:ff:ff"}]
        has = f"it has {_shown(cards)}" if cards else "it shows no MAC address"
        wanted = _shown(sorted(identity.macs)) or "no MAC address"
        return DeliveryError(
            f"the machine at {self._place} is not {self._name} ({has}; the domain of {self._name}"
            f" has {wanted})",
            hint=f"find out whose address it is: xenlb why {self._name}",
        )


def _shown(macs: list[str]) -> str:
    return ", ".join(macs[:MOST_SHOWN]) + (", …" if len(macs) > MOST_SHOWN else "")
