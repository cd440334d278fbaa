"""The state of the agent as one immutable value; only the reducer makes a new one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import MappingProxyType

from xenlb.ipvs.table import IPAddress, ServerKey, ServiceKey
from xenlb.model.domain import GuestId
from xenlb.model.guest import Guest
from xenlb.model.health import Health, TargetVerdict, combine
from xenlb.model.note import Note
from xenlb.model.problem import Problem
from xenlb.model.reserved_addresses import HostNetwork
from xenlb.model.settings import ServiceSettings, Settings
from xenlb.model.target import Target


@dataclass(frozen=True, slots=True, kw_only=True)
class RealServer:
    """A real server of one kernel service; `owner`: its guest, None for a configured host."""

    owner: GuestId | None
    service: ServiceKey
    key: ServerKey

    def __hash__(self) -> int:
        """Cheap: a server has one owner."""
        return hash((self.service, self.key))


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A real server that a service may have.

    `server` None: it has no usable address, `reason` says why. `targets`: one for each check of
    the service, in their order. `alternatives`: the same server at the other addresses of its
    guest, which are probed while this one does not pass.
    """

    owner: GuestId | None
    service: ServiceKey
    server: RealServer | None
    targets: tuple[Target, ...]
    weight: int
    reason: str = ""
    alternatives: tuple["Candidate", ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """A server was added to the table at `at`.

    `ramp`: slow-start applies. `quiesced`: it failed its check since, and on-failure keeps it with
    weight 0. `zero_since`: since when its weight is 0, None while it has weight. `overrides`: its
    own verdicts on targets, in place of the shared ones; all of them are up.
    """

    at: float
    ramp: bool = False
    quiesced: bool = False
    zero_since: float | None = None
    overrides: Mapping[Target, Health] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class LibvirtLink:
    """The connection to a libvirt; `listed`: its guests were listed since the agent started."""

    connected: bool = False
    since: float = 0.0
    listed: bool = False
    reason: str = ""


class AlarmKind(StrEnum):
    """The kind of an alarm, worst first."""

    DOWN = "down"  # no server serves
    KEPT = "kept"  # failing servers stay, because too much of the weight would leave
    BELOW = "below"  # less of the weight serves than keep-in-service requires


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """The alarm of a kernel service. `since` does not change with the kind."""

    kind: AlarmKind
    since: float


_UNKNOWN = Health(valid_from=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """What the sources report; after a restart they report it again.

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

    `health`: the verdict on every probed target. `admitted`: the servers in the table. `alarms`:
    of the kernel services that serve too little, or not at all.
    """

    guests: Mapping[GuestId, Guest] = field(default_factory=dict)
    health: Mapping[Target, Health] = field(default_factory=dict)
    admitted: Mapping[RealServer, Admission] = field(default_factory=dict)
    alarms: Mapping[ServiceKey, Alarm] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Derived:
    """What follows from the rest; the reducer computes it after each event.

    `owners`: the guest that an address belongs to, None for a configured host. `candidates`: by
    service name. `targets`: what is probed, and for which candidates of which service.
    `inconsistencies`: between configuration, metadata and guests.
    """

    owners: Mapping[IPAddress, GuestId | None] = field(default_factory=dict)
    candidates: Mapping[str, tuple[Candidate, ...]] = field(default_factory=dict)
    targets: Mapping[Target, Mapping[str, tuple[Candidate, ...]]] = field(default_factory=dict)
    inconsistencies: tuple[tuple[GuestId | None, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """Everything the agent knows."""

    observed: Observed = field(default_factory=Observed)
    remembered: Remembered = field(default_factory=Remembered)
    derived: Derived = field(default_factory=Derived)

    @property
    def settings(self) -> Settings:
        """The configuration in use."""
        return self.observed.settings

    @property
    def guests(self) -> Mapping[GuestId, Guest]:
        """All known guests by id, also absent ones."""
        return self.remembered.guests

    def with_guests(self, *guests: Guest) -> "State":
        """Return the state with these guests in place of their former values."""
        if not guests:
            return self
        changed = {**self.guests, **{guest.id: guest for guest in guests}}
        return replace(self, remembered=replace(self.remembered, guests=changed))

    def with_verdict(self, target: Target, verdict: Health) -> "State":
        """Return the state with this health of a target in place of its former one."""
        health = {**self.remembered.health, target: verdict}
        return replace(self, remembered=replace(self.remembered, health=health))

    def guest_of(self, candidate: Candidate) -> Guest | None:
        """Return the guest of a candidate, None for a configured host."""
        return None if candidate.owner is None else self.guests[candidate.owner]

    def candidates_by_key(
        self, service: ServiceSettings
    ) -> Mapping[ServiceKey, Sequence[Candidate]]:
        """Return the candidates of each kernel service of a service."""
        by_key: dict[ServiceKey, list[Candidate]] = {key: [] for key in service.kernel_keys()}
        for candidate in self.derived.candidates[service.name]:
            by_key[candidate.service].append(candidate)
        return by_key

    def admission_of(self, candidate: Candidate) -> Admission | None:
        """Return the admission of a candidate, None while it is not in the table."""
        return None if candidate.server is None else self.remembered.admitted.get(candidate.server)

    @property
    def synced(self) -> bool:
        """Whether every libvirt of the configuration was listed once."""
        return all(link.listed for link in self.observed.links.values())

    def listed(self, uri: str) -> bool:
        """Whether a missing guest of that libvirt is gone: not before it was listed once.

        "" is the URI of servers that are no guests.
        """
        link = self.observed.links.get(uri)
        return link is None or link.listed

    def verdict(self, candidate: Candidate, service: ServiceSettings) -> Health | None:
        """Return the verdict of all checks on a candidate, None without a check."""
        verdict = self.deciding_verdict(candidate, service)
        return None if verdict is None else verdict[1]

    def deciding_verdict(
        self,
        candidate: Candidate,
        service: ServiceSettings,
        overrides: Mapping[Target, Health] = MappingProxyType({}),
    ) -> TargetVerdict | None:
        """Return the verdict on a candidate with the target that decided it, None without a check.

        `overrides` replace the verdicts of the state.
        """
        if not candidate.targets:
            return None
        verdicts = [
            (target, overrides.get(target) or self.check_verdict(target, candidate))
            for target in candidate.targets
        ]
        return combine(verdicts, one_is_enough=service.any_check)

    def check_verdict(self, target: Target, candidate: Candidate) -> Health:
        """Return the verdict of one check on a candidate."""
        health = self.remembered.health.get(target, _UNKNOWN)
        if health.overridden and (admission := self.admission_of(candidate)) is not None:
            return admission.overrides.get(target, health)
        return health

    def origins(self) -> dict[tuple[ServiceKey, ServerKey], str]:
        """Return the libvirt URI of each admitted server that is a guest."""
        return {
            (server.service, server.key): server.owner.uri
            for server in self.remembered.admitted
            if server.owner is not None
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What an event changes by itself; the reducer computes what follows.

    `services`: names of the services that may be affected, None means all. `follows` False: no
    candidate, admission or alarm can change.
    """

    state: State
    services: frozenset[str] | None = frozenset()
    notes: tuple[Note, ...] = ()
    follows: bool = True


def nothing_follows(state: State, *notes: Note) -> Change:
    """Return a change that cannot affect a candidate, an admission or an alarm."""
    return Change(state=state, notes=notes, follows=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Transition:
    """The new state, the services whose servers may have changed (None means all), and notes."""

    state: State
    services: frozenset[str] | None = frozenset()
    notes: tuple[Note, ...] = ()

    def then(self, later: "Transition") -> "Transition":
        """Return both transitions as one."""
        both = None
        if self.services is not None and later.services is not None:
            both = self.services | later.services
        return Transition(state=later.state, services=both, notes=(*self.notes, *later.notes))
