"""What outlives an agent, as one value and as JSON."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, get_args

from xenlb.ipvs.table import IPAddress, ServerKey, ServiceKey
from xenlb.model.domain import GuestId
from xenlb.model.guest import Guest
from xenlb.model.health import Health
from xenlb.model.state import Admission, Alarm, RealServer, Remembered
from xenlb.model.target import Target
from xenlb.store.json_codec import decoder, dumps, same_json


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedState:
    """Facts that outlive an agent.

    `services`, `servers`: those of xenlb, a server with the libvirt URI of its guest. `addresses`:
    service addresses that xenlb added, with their interface. `sysctls`: the values from before
    xenlb set others.
    """

    remembered: Remembered = field(default_factory=Remembered)
    services: frozenset[ServiceKey] = frozenset()
    servers: Mapping[tuple[ServiceKey, ServerKey], str] = field(default_factory=dict)
    addresses: frozenset[tuple[str, IPAddress]] = frozenset()
    sysctls: Mapping[str, str] = field(default_factory=dict)


# The parts that are saved. A set is a mapping to None.
PARTS: Mapping[str, Any] = {
    "services": Mapping[ServiceKey, None],
    "servers": Mapping[tuple[ServiceKey, ServerKey], str],
    "addresses": Mapping[tuple[str, IPAddress], None],
    "sysctls": Mapping[str, str],
    "guests": Mapping[GuestId, Guest],
    "admitted": Mapping[RealServer, Admission],
    # Failing servers too: keep-in-service may keep their weight. Also checks without a verdict: a
    # check that is not in the file is a new one.
    "health": Mapping[Target, Health],
    "alarms": Mapping[ServiceKey, Alarm],
}
SLICE = 64  # entries that are encoded at once: half a millisecond of a slow processor
INTERFACE = re.compile(r"[^\s/]{1,15}")


def _parts_of(saved: SavedState) -> dict[str, Mapping[Any, Any]]:
    remembered = saved.remembered
    return {
        "services": dict.fromkeys(saved.services),
        "servers": saved.servers,
        "addresses": dict.fromkeys(saved.addresses),
        "sysctls": saved.sysctls,
        "guests": remembered.guests,
        "admitted": remembered.admitted,
        "health": remembered.health,
        "alarms": remembered.alarms,
    }


def _saved_state(parts: Mapping[str, Mapping[Any, Any]]) -> SavedState:
    return SavedState(
        remembered=Remembered(
            guests={guest.id: guest for guest in parts["guests"].values()},
            admitted=parts["admitted"],
            health=parts["health"],
            alarms=parts["alarms"],
        ),
        services=frozenset(parts["services"]),
        servers=parts["servers"],
        addresses=frozenset(parts["addresses"]),
        sysctls=parts["sysctls"],
    )


def encoded(saved: SavedState) -> Iterator[str]:
    """JSON of everything, in pieces that take no longer than the agent's loop may wait."""
    start = "{"
    for name, part in _parts_of(saved).items():
        yield f'{start}"{name}":['
        start, comma = "],", ""
        entries = iter(part.items())
        while some := list(islice(entries, SLICE)):
            yield comma + dumps(some)[1:-1]
            comma = ","
    yield "]}"


def encoded_change(before: SavedState, after: SavedState) -> str:
    """JSON of what differs, by part: changed entries and keys of removed ones; "" if nothing does.

    The agent calls this in each round, with ten thousand servers.
    """
    changed, removed = {}, {}
    old = _parts_of(before)
    for name, entries in _parts_of(after).items():
        if entries is not old[name]:
            if differing := _changed(old[name], entries):
                changed[name] = differing
            # A set made of a mapping, and compared with one, has the hashes already.
            if missing := set(old[name]).difference(entries):
                removed[name] = missing
    return dumps({"changed": changed, "removed": removed}) if changed or removed else ""


def _changed(before: Mapping[Any, Any], after: Mapping[Any, Any]) -> list[tuple[Any, Any]]:
    """New entries, and entries with other JSON.

    Most entries are the same objects: they are left out first, because hashing a key takes longer
    than all else here.
    """
    same = dict(zip(map(id, before), before.values(), strict=True))
    return [
        (key, value)
        for key, value in after.items()
        if same.get(id(key), same) is not value
        and not (key in before and same_json(_lasting(before[key]), _lasting(value)))
    ]


def _lasting(value: Any) -> Any:
    """A guest without the count of its drain, which is saved with the next change only."""
    if not isinstance(value, Guest) or value.drain is None:
        return value
    return replace(value, drain=replace(value.drain, left=None, quiet=None))


def decoded(saved: Mapping[str, Any], changes: Iterable[Mapping[str, Any]]) -> SavedState:
    """The state after the changes. A part that is left out is empty.

    Raises an exception of any class where something else wrote the JSON.
    """
    parts = {name: decoder(kind)(saved.get(name, [])) for name, kind in PARTS.items()}
    for change in changes:
        for name, keys in change["removed"].items():
            for key in map(decoder(get_args(PARTS[name])[0]), keys):
                parts[name].pop(key, None)
        for name, entries in change["changed"].items():
            parts[name].update(decoder(PARTS[name])(entries))
    if not all(INTERFACE.fullmatch(name) for name, _ in parts["addresses"]):
        raise ValueError("not the name of an interface")
    return _saved_state(parts)
