"""Is the machine behind a channel the guest that it should be?

An address is no identity: whoever has it answers there. So every script, also one that only looks,
begins with a few lines that compare what cannot be reached from outside: the MAC addresses of the
network cards, and the UUID that the hypervisor shows. They run in the connection of what follows
them, so nothing can come between. A container shows the UUID of its host, and is known by its MAC
address.
"""

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from uuid import UUID

from xenlb.guestside.transport.channel import LIMIT, Channel, DeliveryError, Output

OTHER = 97  # exit status of a script that is on the wrong machine
MOST_SHOWN = 4
_MARK = b"xenlb: another machine:"
_MAC = re.compile(rb"(?<![0-9a-f:])[0-9a-f]{2}(?::[0-9a-f]{2}){5}(?![0-9a-f:])")

# Shell built-ins do; ip(8) is for where /sys is not mounted.
_GUARD = """\
xenlb_seen=
for xenlb_file in /sys/class/net/*/address /sys/class/dmi/id/product_uuid /sys/hypervisor/uuid; do
    xenlb_line=
    {{ read -r xenlb_line <"$xenlb_file"; }} 2>/dev/null
    xenlb_seen="$xenlb_seen $xenlb_line"
done
xenlb_seen="$xenlb_seen $(ip -o link 2>/dev/null) "
case $xenlb_seen in
{patterns}) ;;
*)
    echo '{mark}' "$xenlb_seen"
    exit {status}
    ;;
esac
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What a guest shows inside that its domain has: `macs` in lower case with colons."""

    uuid: UUID
    macs: frozenset[str] = frozenset()


def guarded(script: str, identity: Identity) -> str:
    """The script behind lines that end it on any other machine than this one."""
    patterns = "|".join(f'*" {_any_case(each)} "*' for each in _words(identity))
    guard = _GUARD.format(patterns=patterns, mark=_MARK.decode(), status=OTHER)
    return guard + script


def _words(identity: Identity) -> list[str]:
    return [str(identity.uuid), *sorted(identity.macs)]


def _any_case(word: str) -> str:
    """For a pattern of the shell, and between quotes: old kernels write a UUID in upper case."""
    return "".join(f'"[{each}{each.upper()}]"' if each.isalpha() else each for each in word)


class OfGuest:
    """A Channel that runs its scripts in the guest of an identity only. `ask` gives that identity,
    once, before the first script; `place`: where the channel leads, for messages."""

    def __init__(
        self,
        channel: Channel,
        ask: Callable[[], Awaitable[Identity]],
        *,
        name: str,
        place: str,
    ) -> None:
        self._channel = channel
        self._ask = ask
        self._name = name
        self._place = place
        self._identity: Identity | None = None

    async def run(self, script: str, *, limit: float = LIMIT) -> Output:
        """Raises DeliveryError as the channel does, and where another machine answers."""
        if self._identity is None:
            self._identity = await self._ask()
        output = await self._channel.run(guarded(script, self._identity), limit=limit)
        if output.status == OTHER and output.out.startswith(_MARK):
            raise self._other(output, self._identity)
        return output

    def _other(self, output: Output, identity: Identity) -> DeliveryError:
        seen = list(dict.fromkeys(each.decode() for each in _MAC.findall(output.out[:8192])))
        cards = [each for each in seen if each not in {"00:00:00:00:00:00", "ff:ff:ff:ff:ff:ff"}]
        has = f"it has {_shown(cards)}" if cards else "it shows no MAC address"
        wanted = _shown(sorted(identity.macs)) or "no MAC address"
        return DeliveryError(
            f"the machine at {self._place} is not {self._name} ({has}; the domain of {self._name}"
            f" has {wanted})",
            hint=f"see whose the address is: xenlb why {self._name}",
        )


def _shown(macs: list[str]) -> str:
    return ", ".join(macs[:MOST_SHOWN]) + (", …" if len(macs) > MOST_SHOWN else "")
