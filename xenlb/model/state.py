"""Everything the agent knows, as one value. Changed by `step.step` only, which makes a new one."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import MappingProxyType

from xenlb.ipvs.table import IPAddress, ServerKey, ServiceKey
from xenlb.model.domain import GuestId
from xenlb.model.guest import Guest
from xenlb.model.health import Health, Judged, combine
from xenlb.model.note import Note
from xenlb.model.problem import Problem
from xenlb.model.reserved_addresses import HostNetwork
from xenlb.model.settings import ServiceSettings, Settings
from xenlb.model.target import Target


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """One server of one kernel service, and whose it is; `owner` None is a configured host."""

    owner: GuestId | None
    service: ServiceKey
    server: ServerKey

    def __hash__(self) -> int:
        """Cheap: a server has one owner."""
        return hash((self.service, self.server))


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A server that a service may have. `slot` None: its address is not known, `reason` says more.
    `targets`: one for each check of the service, in their order. `alternatives`: the same server at
    the
    other addresses of its guest; they are probed as long as this one does not pass."""

    owner: GuestId | None
    service: ServiceKey
    slot: Slot | None
    targets: tuple[Target, ...]
    weight: int
    reason: str = ""
    alternatives: tuple["Candidate", ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """A server was let into the table at `at`; `ramp`: its weight grows by slow-start; `quiesced`:
    it failed its check since, and on-failure says that it stays without new connections. `quiet`:
    since when its weight is 0, None while it is not. `overrides`: the verdicts that it has for
    itself,
    all of them up; see verdict_overrides.py."""

    at: float
    ramp: bool = False
    quiesced: bool = False
    quiet: float | None = None
    overrides: Mapping[Target, Health] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class LibvirtLink:
    """A libvirt: `listed` once its guests were listed since the agent started."""

    connected: bool = False
    since: float = 0.0
    listed: bool = False
    reason: str = ""


class AlarmKind(StrEnum):
    """The worst first."""

    DOWN = "down"  # no server serves
    KEPT = "kept"  # failing servers stay, because too much of the weight would leave
    BELOW = "below"  # less of the weight serves than keep-in-service wants


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """Of a kernel service. `since` does not change with the kind."""

    kind: AlarmKind
    since: float


_UNKNOWN = Health(valid_from=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """What the sources report; after a restart they report it anew.

    `changes`: what the last configuration changed. `links`: by libvirt URI. `host`: the network of
    this host. `wrong_sysctls`: names of those that differ from what the services need.
    """

    settings: Settings = field(default_factory=Settings)
    problems: tuple[Problem, ...] = ()
    configured_at: float = 0.0
    changes: str = ""
    links: Mapping[str, LibvirtLink] = field(default_factory=dict)
    host: HostNetwork = field(default_factory=HostNetwork)
    wrong_sysctls: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Remembered:
    """What carries history and outlives the agent, in the state file.

    `health` has the verdict of every target that is probed. `admitted`: the servers in the table.
    `alarms`: of kernel services that serve too little, or not at all.
    """

    guests: Mapping[GuestId, Guest] = field(default_factory=dict)
    health: Mapping[Target, Health] = field(default_factory=dict)
    admitted: Mapping[Slot, Admission] = field(default_factory=dict)
    alarms: Mapping[ServiceKey, Alarm] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Derived:
    """What follows from the rest; the reducer computes it after each event.

    `owners`: the guest that an address belongs to, None for a configured host. `candidates`: the
    servers that each service may have, by its name. `targets`: what is probed, and for which
    candidates of which service. `inconsistencies`: between configuration, metadata and guests.
    """

    owners: Mapping[IPAddress, GuestId | None] = field(default_factory=dict)
    candidates: Mapping[str, tuple[Candidate, ...]] = field(default_factory=dict)
    targets: Mapping[Target, Mapping[str, tuple[Candidate, ...]]] = field(default_factory=dict)
    inconsistencies: tuple[tuple[GuestId | None, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """Everything the agent knows. Only the reducer makes a new one."""

    observed: Observed = field(default_factory=Observed)
    remembered: Remembered = field(default_factory=Remembered)
    derived: Derived = field(default_factory=Derived)

    @property
    def settings(self) -> Settings:
        return self.observed.settings

    @property
    def guests(self) -> Mapping[GuestId, Guest]:
        return self.remembered.guests

    def with_guests(self, *guests: Guest) -> "State":
        """The state with these guests in place of what they were."""
        if not guests:
            return self
        changed = {**self.guests, **{guest.id: guest for guest in guests}}
        return replace(self, remembered=replace(self.remembered, guests=changed))

    def with_verdict(self, target: Target, verdict: Health) -> "State":
        health = {**self.remembered.health, target: verdict}
        return replace(self, remembered=replace(self.remembered, health=health))

    def guest_of(self, candidate: Candidate) -> Guest | None:
        """The guest of a candidate; None for a configured host."""
        return None if candidate.owner is None else self.guests[candidate.owner]

    @property
    def synced(self) -> bool:
        """Was every libvirt of the configuration listed once?"""
        return all(link.listed for link in self.observed.links.values())

    def listed(self, uri: str) -> bool:
        """May guests of that libvirt be taken for gone? Not before it was listed once; "" is of
        no libvirt."""
        link = self.observed.links.get(uri)
        return link is None or link.listed

    def verdict(self, candidate: Candidate, service: ServiceSettings) -> Health | None:
        """Of all its checks in this service; None: it has none."""
        judged = self.judged(candidate, service)
        return None if judged is None else judged[1]

    def judged(
        self,
        candidate: Candidate,
        service: ServiceSettings,
        own: Mapping[Target, Health] = MappingProxyType({}),
    ) -> Judged | None:
        """The verdict, and the check on which it hangs; None: it has none. With these verdicts of
        its `own`."""
        if not candidate.targets:
            return None
        verdicts = [
            (each, own.get(each) or self.seen(each, candidate)) for each in candidate.targets
        ]
        return combine(verdicts, one_is_enough=service.any_check)

    def seen(self, target: Target, candidate: Candidate) -> Health:
        """The verdict of one check on a server."""
        health = self.remembered.health.get(target, _UNKNOWN)
        if health.overridden and candidate.slot is not None:
            entry = self.remembered.admitted.get(candidate.slot)
            if entry is not None:
                return entry.overrides.get(target, health)
        return health

    def origins(self) -> dict[tuple[ServiceKey, ServerKey], str]:
        """The libvirt URI of each admitted server's guest; hosts have none and are left out."""
        return {
            (slot.service, slot.server): slot.owner.uri
            for slot in self.remembered.admitted
            if slot.owner is not None
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What an event changes by itself; the reducer computes what follows.

    `services`: names of the services that it may concern, None means all. `follows` False: nothing
    follows from it.
    """

    state: State
    services: frozenset[str] | None = frozenset()
    notes: tuple[Note, ...] = ()
    follows: bool = True


def nothing_follows(state: State, *notes: Note) -> Change:
    return Change(state=state, notes=notes, follows=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Transition:
    """The new state, the services whose servers may have changed (None means all), and notes."""

    state: State
    services: frozenset[str] | None = frozenset()
    notes: tuple[Note, ...] = ()

    def then(self, later: "Transition") -> "Transition":
        """Both as one."""
        both = None
        if self.services is not None and later.services is not None:
            both = self.services | later.services
        return Transition(state=later.state, services=both, notes=(*self.notes, *later.notes))
