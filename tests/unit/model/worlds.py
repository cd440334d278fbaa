"""Small worlds for the tests of the model: a few guests, configurations and events."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from ipaddress import ip_address
from math import nan
from random import Random
from uuid import UUID

from hypothesis import strategies as st

from xenlb.ipvs.table import Counters, Family, Forwarding, Protocol
from xenlb.model.addresses import AddressCandidate, AddressSource, RejectedAddress
from xenlb.model.checks import Agent, Share
from xenlb.model.domain import (
    DomainDescription,
    DomainState,
    GuestId,
    MetadataService,
    RequestKind,
    StopReason,
)
from xenlb.model.drain import NODEST, QUIESCENT, REUSE, Drain
from xenlb.model.draining import services_to_count
from xenlb.model.events import (
    AddressesFound,
    ConfigurationRefused,
    Configured,
    ConnectionsCounted,
    Crashed,
    Died,
    Disconnected,
    DrainAllRequested,
    DrainRequested,
    Event,
    GuestInspected,
    GuestsListed,
    MetadataChanged,
    Paused,
    ProbeFinished,
    Rebooted,
    RequestSent,
    Resumed,
    ShutdownCancelled,
    ShutdownRequested,
    Started,
    Stopped,
    SysctlsChecked,
    Tick,
    Undefined,
    UndrainRequested,
    Verdict,
)
from xenlb.model.guest import Guest
from xenlb.model.guest_side import Delivery, GuestSide, OnBoot
from xenlb.model.problem import Problem
from xenlb.model.reserved_addresses import HostNetwork, HostNetworkChanged
from xenlb.model.settings import (
    Check,
    DrainPolicy,
    Member,
    OnFailure,
    Port,
    ServiceSettings,
    Settings,
)
from xenlb.model.state import State

URIS = ("xen:///system", "qemu:///system")
GUESTS = (
    GuestId(uri=URIS[0], uuid=UUID(int=1)),
    GuestId(uri=URIS[0], uuid=UUID(int=2)),
    GuestId(uri=URIS[0], uuid=UUID(int=3)),
    GuestId(uri=URIS[1], uuid=UUID(int=1)),  # the first, migrating to another libvirt
)
NAMES = ("mail1", "mail2", "web1", "mail1")
ADDRESSES = tuple(
    ip_address(text)
    for text in ("10.0.0.11", "10.0.0.12", "10.0.0.13", "10.0.0.5", "fd00::11", "10.0.0.99")
)


def service(name: str, port: int, *servers: Member) -> ServiceSettings:
    return ServiceSettings(
        name=name,
        address=ip_address("192.0.2.10"),
        ports=(Port(number=port),),
        checks=(Check(fall=1),),
        drain=DrainPolicy(shutdown_grace=20.0),
        servers=servers,
    )


ALL = Member(guest="*")
HOST = Member(host=ip_address("10.0.0.5"))
WRITTEN = Member(guest="mail1", address=ip_address("10.0.0.11"), weight=4)
SORRY = (ip_address("10.0.0.99"), 0)

AGENT_CHECK = Check(type="agent", asks=Agent(share=Share(least=0.0, most=1.0)), port=9, fall=1)
FIRST = Check(fall=1, flap_damping=0.0)

SETTINGS = (
    Settings(
        uris=URIS,
        services=(
            replace(service("mail", 25, ALL, HOST), weight=3, slow_start=10.0),
            replace(service("web", 80, WRITTEN, ALL), from_metadata=True, sorry_server=SORRY),
        ),
    ),
    Settings(
        uris=URIS,
        services=(
            replace(
                service("mail", 25, ALL, HOST),
                keep_in_service=0.5,
                checks=(Check(rise=2, fall=2),),
            ),
            replace(
                service("web", 80, Member(guest="web*")),
                ports=(Port(number=80), Port(number=53, protocol=Protocol.UDP)),
                from_metadata=True,
                on_failure=OnFailure.QUIESCE,
                keep_in_service=0.4,
            ),
            replace(
                service("six", 25, ALL),
                address=ip_address("2001:db8::10"),
                family=Family.INET6,
                side=GuestSide(delivery=Delivery.SSH, on_boot=OnBoot.VERIFY),
            ),
        ),
    ),
    Settings(
        uris=URIS[:1],
        services=(
            replace(service("smtp", 25, ALL), checks=(), forwarding=Forwarding.GATEWAYING),
            replace(
                service("web", 80, ALL, HOST),
                on_failure=OnFailure.QUIESCE,
                slow_start=5.0,
                weight=7,
                sorry_server=(ip_address("10.0.0.11"), 80),
            ),
            ServiceSettings(
                name="mark", fwmark=7, family=Family.INET6, servers=(ALL,), checks=(Check(port=80),)
            ),
        ),
    ),
    Settings(
        uris=URIS,
        services=(
            replace(
                service("mail", 25, WRITTEN, ALL, HOST),
                weight=3,
                slow_start=10.0,
                checks=(FIRST, AGENT_CHECK),
                keep_in_service=0.5,
            ),
            replace(
                service("web", 80, WRITTEN, ALL, HOST),
                checks=(Check(fall=1), AGENT_CHECK),
                any_check=True,
                on_failure=OnFailure.QUIESCE,
                keep_in_service=0.4,
                sorry_server=SORRY,
            ),
        ),
    ),
    # With the second of these `web` gets a check that `mail` has already.
    *(
        Settings(
            uris=URIS,
            services=(
                replace(service("mail", 25, WRITTEN, ALL, HOST), checks=(FIRST, often)),
                replace(service("web", 80, WRITTEN, ALL, HOST), checks=checks),
            ),
        )
        for often in (replace(AGENT_CHECK, fall=2),)
        for checks in ((), (often,))
    ),
)
SHARING = len(SETTINGS) - 2


def with_addresses(guest: Guest, *texts: str) -> Guest:
    found = tuple(
        AddressCandidate(address=ip_address(text), source=AddressSource.LEASE) for text in texts
    )
    return replace(guest, candidates=found)


def drained(guest: Guest, drain: Drain) -> Guest:
    return replace(guest, drain=drain)


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """An event after `wait` seconds; `make` returns it for the state at that time."""

    wait: float
    make: Callable[[State, float], Event]
    text: str

    def __repr__(self) -> str:
        return f"+{self.wait:g} {self.text}"


def _candidates(dice: Random) -> tuple[AddressCandidate, ...]:
    sources = [AddressSource.INTERFACE_XML, AddressSource.LEASE, AddressSource.NEIGHBOUR]
    candidates = {
        AddressCandidate(address=dice.choice(ADDRESSES), source=dice.choice(sources))
        for _ in range(dice.choice([0, 1, 1, 2]))
    }
    return tuple(
        sorted(candidates, key=lambda item: (sources.index(item.source), str(item.address)))
    )


def _metadata(dice: Random) -> tuple[MetadataService, ...]:
    return tuple(
        MetadataService(
            name=name,
            weight=dice.choice([None, 0, 2]),
            address=dice.choice([None, None, ADDRESSES[1]]),
        )
        for name in dice.choice([(), ("mail",), ("web",), ("mail", "web")])
    )


def _incarnation(state: State, guest: GuestId, shift: int | None) -> int | None:
    """Return the present incarnation shifted, or None."""
    known = state.guests.get(guest)
    now = 3 if known is None or known.incarnation is None else known.incarnation
    return None if shift is None else max(1, now + shift)


def _life(wait: float, number: int, shift: int | None, kind: str, word: str) -> Move:
    guest, name = GUESTS[number], NAMES[number]

    def make(state: State, at: float) -> Event:
        incarnation = _incarnation(state, guest, shift)
        match kind:
            case "started":
                return Started(
                    at=at,
                    guest=guest,
                    name=name,
                    incarnation=incarnation or 1,
                    paused=word == "reboot",
                )
            case "asked":
                return ShutdownRequested(
                    at=at, guest=guest, incarnation=incarnation, kind=RequestKind(word)
                )
            case "died":
                return Died(at=at, guest=guest, incarnation=incarnation)
            case "stopped":
                return Stopped(
                    at=at, guest=guest, incarnation=incarnation, reason=StopReason.SHUTDOWN
                )
            case "crashed":
                return Crashed(at=at, guest=guest, incarnation=incarnation)
            case "paused":
                return Paused(at=at, guest=guest, incarnation=incarnation)
            case "resumed":
                return Resumed(at=at, guest=guest, incarnation=incarnation)
            case "rebooted":
                return Rebooted(at=at, guest=guest, incarnation=incarnation)
            case "undefined":
                return Undefined(at=at, guest=guest)
            case "stays":
                return ShutdownCancelled(at=at, guest=guest, incarnation=incarnation)
            case "drained":
                then = {"poweroff": RequestKind.POWEROFF, "reboot": RequestKind.REBOOT}.get(word)
                return DrainRequested(at=at, guest=guest, by="root", then=then)
            case "sent":
                drain = state.guests[guest].drain if guest in state.guests else None
                ask = (drain and drain.then) or RequestKind.REBOOT
                failure = "no" if word == "suspend" else ""
                return RequestSent(at=at, guest=guest, kind=ask, failure=failure)
            case "undrained":
                return UndrainRequested(at=at, guest=guest, by="root")
        raise AssertionError(kind)

    shown = f"{kind} {name}/{number} {'' if shift is None else f'{shift:+d}'} {word}"
    return Move(wait=wait, make=make, text=shown)


def _probe(wait: float, index: int, up: bool, ago: float, share: float | None = None) -> Move:
    def make(state: State, at: float) -> Event:
        targets = sorted(state.remembered.health, key=str)
        if not targets:
            return Tick(at=at)
        return ProbeFinished(
            at=at,
            target=targets[index % len(targets)],
            started=at - ago,
            up=up,
            detail=str(up),
            share=share,
        )

    said = "" if share is None else f", says {share:g}"
    return Move(wait=wait, make=make, text=f"probe {index} {up} asked {ago:g} ago{said}")


def _address(
    wait: float, number: int, found: tuple[AddressCandidate, ...], shift: int | None, refused: bool
) -> Move:
    def make(state: State, at: float) -> Event:
        no = RejectedAddress(text="192.0.2.10", source=AddressSource.REPORTED, reason="no")
        return AddressesFound(
            at=at,
            guest=GUESTS[number],
            incarnation=_incarnation(state, GUESTS[number], shift),
            candidates=found,
            rejected=(no,) if refused else (),
        )

    shown = [f"{item.source}={item.address}" for item in found]
    return Move(wait=wait, make=make, text=f"address {NAMES[number]}/{number} {shown} {shift}")


def _listing(wait: float, uri: str, states: list[tuple[DomainState, int]], ago: float) -> Move:
    def make(state: State, at: float) -> Event:
        described = [
            DomainDescription(
                guest=guest,
                name=name,
                domain_state=domain_state,
                incarnation=None
                if domain_state is DomainState.OFF
                else _incarnation(state, guest, shift),
            )
            for guest, name, (domain_state, shift) in zip(GUESTS, NAMES, states, strict=False)
            if guest.uri == uri
        ]
        return GuestsListed(at=at, uri=uri, requested_at=at - ago, guests=tuple(described))

    return Move(wait=wait, make=make, text=f"listed {uri} {states} asked {ago:g} ago")


def _metadata_move(wait: float, number: int, services: tuple[MetadataService, ...]) -> Move:
    return Move(
        wait=wait,
        make=lambda _, at: MetadataChanged(at=at, guest=GUESTS[number], services=services),
        text=f"metadata {NAMES[number]}/{number} {services}",
    )


def _counted(wait: float, dice: Random) -> Move:
    most = dice.choice([0, 0, 2])

    def make(state: State, at: float) -> Event:
        counters = {
            key: {
                server.key: Counters(active_connections=most)
                for server in state.remembered.admitted
            }
            for key in services_to_count(state)
        }
        return ConnectionsCounted(at=at, counters=counters)

    return Move(wait=wait, make=make, text=f"counted {most}")


def _side(wait: float, guest: GuestId, index: int, problem: str) -> Move:
    def make(state: State, at: float) -> GuestInspected:
        known = state.guests.get(guest)
        return GuestInspected(
            at=at,
            guest=guest,
            incarnation=known.incarnation if known is not None else None,
            verdicts=tuple(Verdict(service=s, problem=problem) for s in SETTINGS[index].services),
        )

    return Move(wait=wait, make=make, text=f"inside of {guest}: {problem or 'in place'}")


def _configured(wait: float, index: int) -> Move:
    # A copy, as reading the file again makes one.
    return Move(
        wait=wait,
        make=lambda _, at: Configured(at=at, settings=replace(SETTINGS[index])),
        text=f"configured {index}",
    )


PROBLEM = Problem(file="f", line=1, column=1, path="", message="wrong", hint="")
DRAIN_ALL = Move(wait=0.0, make=lambda _, at: DrainAllRequested(at=at, by="root"), text="drain all")
OTHERS = (
    Move(wait=0.0, make=lambda _, at: Tick(at=at), text="tick"),
    Move(
        wait=0.0,
        make=lambda _, at: SysctlsChecked(at=at, wrong=frozenset({NODEST, QUIESCENT, REUSE})),
        text="wrong sysctls",
    ),
    Move(
        wait=0.0,
        make=lambda _, at: HostNetworkChanged(
            at=at, host=HostNetwork(own=frozenset(ADDRESSES[1:3]))
        ),
        text="two addresses are this host's",
    ),
    Move(
        wait=0.0,
        make=lambda _, at: HostNetworkChanged(at=at, host=HostNetwork()),
        text="no address is this host's",
    ),
    DRAIN_ALL,
    Move(
        wait=0.0, make=lambda _, at: DrainAllRequested(at=at, by="root", rest=True), text="and rest"
    ),
    Move(
        wait=0.0,
        make=lambda _, at: Disconnected(at=at, uri=URIS[0], reason="gone"),
        text="disconnected",
    ),
    Move(
        wait=0.0,
        make=lambda _, at: ConfigurationRefused(at=at, problems=(PROBLEM, PROBLEM)),
        text="configuration refused",
    ),
)
KINDS = {
    "probe": 20,
    "address": 6,
    "listed": 4,
    "metadata": 3,
    "configured": 2,
    "other": 1,
    "started": 6,
    "asked": 5,
    "died": 2,
    "stopped": 2,
    "crashed": 1,
    "paused": 2,
    "resumed": 3,
    "rebooted": 2,
    "undefined": 1,
    "drained": 4,
    "undrained": 2,
    "counted": 6,
    "sent": 3,
    "stays": 2,
    "side": 4,
}


def move(seed: int) -> Move:
    """Return the move of a seed; any number is one. So stories are generated quickly."""
    dice = Random(seed)
    (kind,) = dice.choices(list(KINDS), weights=list(KINDS.values()))
    wait = dice.choice([0.0, 0.1, 1.0, 1.0, 5.0, 25.0, 90.0])
    number = dice.choice([0, 0, 1, 1, 2, 2, 3])
    shift = dice.choice([0, 0, 0, 0, 0, 1, 1, -1, 2, None])
    match kind:
        case "probe":
            ago = dice.choice([0.0, 0.0, 0.0, 0.05, 3.0])
            share = dice.choice([None, None, 0.0, 0.0, 0.01, 0.3, 0.5, 1.0, 7.0, -1.0, nan])
            return _probe(wait, dice.randrange(16), dice.random() < 0.65, ago, share)
        case "address":
            return _address(wait, number, _candidates(dice), shift, dice.random() < 0.3)
        case "listed":
            mostly = [DomainState.RUNNING] * 6 + list(DomainState)
            states = [(dice.choice(mostly), dice.choice([0, 0, 0, 1])) for _ in range(4)]
            some = states[: dice.choice([2, 3, 4, 4])]
            return _listing(wait, dice.choice(URIS), some, dice.choice([0.0, 0.05, 2.0]))
        case "metadata":
            return _metadata_move(wait, number, _metadata(dice))
        case "configured":
            return _configured(wait, dice.randrange(len(SETTINGS)))
        case "counted":
            return _counted(wait, dice)
        case "side":
            index = dice.randrange(len(SETTINGS))
            return _side(wait, GUESTS[number], index, dice.choice(["", "", "no rule"]))
        case "other":
            return dice.choice(OTHERS)
        case _:
            return _life(wait, number, shift, kind, dice.choice(list(RequestKind)))


def opening(index: int) -> list[Move]:
    """Return a configuration, and running guests with addresses whose checks pass."""
    return [
        _configured(0.0, index),
        _listing(0.0, URIS[0], [(DomainState.RUNNING, 0)] * 3, 0.0),
        *(
            _address(
                0.0,
                number,
                (AddressCandidate(address=ADDRESSES[number], source=AddressSource.LEASE),),
                0,
                False,
            )
            for number in range(3)
        ),
        *(_side(0.0, GUESTS[number], index, "") for number in range(2)),
        *(_probe(0.0, target, True, 0.0) for target in [*range(16), *range(16)]),
    ]


def flapping(target: int) -> list[Move]:
    """Return results that hold a server back, of a check with `fall: 1`."""
    return [_probe(1.0, target, up, 0.0) for up in (False, True) * 3]


def alone(target: int) -> list[Move]:
    """Return results by which all fail, and one flaps."""
    return [_probe(0.1, number, False, 0.0) for number in [*range(16), *range(16)]] + flapping(
        target
    )


def shared(numbers: list[int]) -> list[Move]:
    """Return reloads that give servers a check which another service already runs."""
    results = [
        _probe(0.1, number, number % 3 > 0, 0.0, 0.5 if number % 5 == 1 else None)
        for number in numbers
    ]
    now = [_configured(1.0, SHARING), *results[::2], _configured(1.0, SHARING + 1)]
    return [*now, *results[1::2]]


def a_story(seed: int) -> list[Move]:
    dice = Random(seed)
    begin = opening(seed % len(SETTINGS))
    if dice.random() < 0.3:
        begin += dice.choice([flapping, alone])(dice.randrange(8))
    elif dice.random() < 0.3:
        begin += shared([dice.randrange(64) for _ in range(16)])
    elif dice.random() < 0.3:
        begin.append(DRAIN_ALL)
    return begin + [move(dice.getrandbits(32)) for _ in range(40)]


moves = st.integers(0, 2**32 - 1).map(move)
stories = st.builds(
    lambda begin, flaps, rest: [*begin, *flaps, *rest],
    st.one_of(st.integers(0, len(SETTINGS) - 1).map(opening), st.just([])),
    st.one_of(
        st.just([]),
        st.integers(0, 7).map(flapping),
        st.integers(0, 7).map(alone),
        st.just([DRAIN_ALL]),
        st.lists(st.integers(0, 63), min_size=8, max_size=16).map(shared),
    ),
    st.lists(moves, min_size=10, max_size=40),
)
