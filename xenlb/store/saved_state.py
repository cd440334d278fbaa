"""What must outlive an agent, as a value, and what of it has changed. The file: state_file.py."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from xenlb.ipvs.table import IPAddress, ServerKey, ServiceKey
from xenlb.model.guest import Guest
from xenlb.model.health import Health
from xenlb.model.state import Remembered

K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedState:
    """`servers`: ours, with the libvirt URI of their guest. `addresses`: service addresses that we
    put on an interface. `sysctls`: the values before ours."""

    remembered: Remembered = field(default_factory=Remembered)
    services: frozenset[ServiceKey] = frozenset()
    servers: Mapping[tuple[ServiceKey, ServerKey], str] = field(default_factory=dict)
    addresses: frozenset[tuple[str, IPAddress]] = frozenset()
    sysctls: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class StateChange:
    """`now`: what is new or other than it was; `gone`: what is not there any more, as it was."""

    now: SavedState = field(default_factory=SavedState)
    gone: SavedState = field(default_factory=SavedState)


def state_change(before: SavedState, after: SavedState) -> StateChange:
    """What makes `after` of `before`. To be called after each round, with ten thousand servers."""
    was, state = before.remembered, after.remembered
    guests, guests_gone = _changed(was.guests, state.guests, _lasting)
    admitted, admitted_gone = _changed(was.admitted, state.admitted)
    health, health_gone = _changed(was.health, state.health, _verdict)
    alarms, alarms_gone = _changed(was.alarms, state.alarms)
    servers, servers_gone = _changed(before.servers, after.servers)
    sysctls, sysctls_gone = _changed(before.sysctls, after.sysctls)
    return StateChange(
        now=SavedState(
            remembered=Remembered(guests=guests, admitted=admitted, health=health, alarms=alarms),
            services=after.services - before.services,
            servers=servers,
            addresses=after.addresses - before.addresses,
            sysctls=sysctls,
        ),
        gone=SavedState(
            remembered=Remembered(
                guests=guests_gone, admitted=admitted_gone, health=health_gone, alarms=alarms_gone
            ),
            services=before.services - after.services,
            servers=servers_gone,
            addresses=before.addresses - after.addresses,
            sysctls=sysctls_gone,
        ),
    )


def apply_change(before: SavedState, changes: Iterable[StateChange]) -> SavedState:
    """The other way round, one after the other."""
    state = before.remembered
    guests, admitted = dict(state.guests), dict(state.admitted)
    health, alarms = dict(state.health), dict(state.alarms)
    services, addresses = set(before.services), set(before.addresses)
    servers, sysctls = dict(before.servers), dict(before.sysctls)
    for each in changes:
        now, gone = each.now, each.gone
        services -= gone.services
        services |= now.services
        addresses -= gone.addresses
        addresses |= now.addresses
        _change(servers, now.servers, gone.servers)
        _change(sysctls, now.sysctls, gone.sysctls)
        _change(guests, now.remembered.guests, gone.remembered.guests)
        _change(admitted, now.remembered.admitted, gone.remembered.admitted)
        _change(health, now.remembered.health, gone.remembered.health)
        _change(alarms, now.remembered.alarms, gone.remembered.alarms)
    return SavedState(
        remembered=Remembered(guests=guests, admitted=admitted, health=health, alarms=alarms),
        services=frozenset(services),
        servers=servers,
        addresses=frozenset(addresses),
        sysctls=sysctls,
    )


def _changed(
    before: Mapping[K, V], after: Mapping[K, V], worth: Callable[[V], object] = lambda value: value
) -> tuple[dict[K, V], dict[K, V]]:
    """New or other entries, and those that are gone. By what is the same object first, as most of
    it is: the hash of a key takes longer than all else here. One too many does no harm."""
    if before is after:
        return {}, {}
    known = dict(zip(map(id, before), before.values(), strict=True))
    other = {
        key: value
        for key, value in after.items()
        if known.get(id(key)) is not value
        and not (key in before and worth(before[key]) == worth(value))
    }
    # A set made of a mapping, and compared with one, has the hashes already.
    return other, {key: before[key] for key in set(before).difference(after)}


def _change(target: dict[K, V], now: Mapping[K, V], gone: Mapping[K, V]) -> None:
    for key in gone:
        target.pop(key, None)
    target.update(now)


def _lasting(guest: Guest) -> object:
    """What a restart must find of a guest. Not what is left of a drain, which is counted anew, nor
    what is inside it, which is looked at anew."""
    drain = guest.drain and replace(guest.drain, left=None, quiet=None)
    return replace(guest, last_event=0.0, readiness=(), drain=drain)


def _verdict(health: Health) -> object:
    return replace(health, streak=0, overridden=False)
