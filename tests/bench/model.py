"""What the pure part costs: from an event to the table that should be, without kernel or network.

    make bench ONLY=model

`few`: each of 100 guests serves in one of 20 services. `all`: each serves in all 20, so that one
request changes 20 of 2,000 servers. `hosts`: 1,000 services of 10 plain hosts, read once.
"""

import statistics
import time
from collections.abc import Callable
from ipaddress import IPv4Address
from uuid import UUID

from xenlb.ipvs.table import Snapshot
from xenlb.model.addresses import AddressCandidate, AddressSource
from xenlb.model.desired import desired
from xenlb.model.domain import DomainDescription, DomainState, GuestId, RequestKind
from xenlb.model.engine import Engine
from xenlb.model.events import (
    AddressesFound,
    Configured,
    Died,
    Event,
    GuestsListed,
    ProbeFinished,
    ShutdownRequested,
    Started,
    Tick,
)
from xenlb.model.reducer import reduce
from xenlb.model.settings import Member, Port, ServiceSettings, Settings
from xenlb.model.state import State

URI = "xen:///system"
GUESTS = 100
SERVICES = 20


def guest(number: int) -> GuestId:
    return GuestId(uri=URI, uuid=UUID(int=number + 1))


def service(number: int, *servers: Member) -> ServiceSettings:
    return ServiceSettings(
        name=f"s{number}",
        address=IPv4Address("192.0.2.0") + number,
        ports=(Port(number=25),),
        servers=servers,
    )


def world(settings: Settings) -> State:
    """All guests run and serve."""
    events: list[Event] = [
        Configured(at=0.0, settings=settings),
        GuestsListed(
            at=1.0,
            uri=URI,
            requested_at=0.5,
            guests=tuple(
                DomainDescription(
                    guest=guest(n), name=f"g{n}", domain_state=DomainState.RUNNING, incarnation=n
                )
                for n in range(GUESTS)
            ),
        ),
    ]
    for number in range(GUESTS):
        found = AddressCandidate(
            address=IPv4Address("10.0.0.1") + number, source=AddressSource.LEASE
        )
        events.append(
            AddressesFound(at=2.0, guest=guest(number), incarnation=number, candidates=(found,))
        )
    state = State()
    for event in events:
        state = reduce(state, event).state
    for target in state.remembered.health:
        passed = ProbeFinished(at=3.0, target=target, started=2.5, up=True, detail="connected")
        state = reduce(state, passed).state
    return state


def cost(state: State, make: Callable[[int], Event], rounds: int = 50) -> str:
    """Milliseconds of CPU time (medians): the step, the part of the table that it names, and both
    with the operations that follow, as the agent's engine does them."""
    steps, tables, wholes = [], [], []
    engine = Engine(state=state, now=8.0)
    engine.load_snapshot(Snapshot(table=desired(state.settings.services, state, 8.0)))
    engine.executed(engine.handle((), 8.0), (), 8.0)
    for number in range(rounds):
        event = make(number)
        begun = time.process_time()
        result = reduce(state, event)
        stepped = time.process_time()
        names = result.services
        named = [s for s in result.state.settings.services if names is None or s.name in names]
        desired(named, result.state, event.at)
        drawn = time.process_time()
        engine.state = state
        again = time.process_time()
        engine.handle((event,), event.at)
        wholes.append(time.process_time() - again)
        tables.append(drawn - stepped)
        steps.append(stepped - begun)
    return " ".join(f"{statistics.median(each) * 1000:9.2f}" for each in (steps, tables, wholes))


def rows(state: State) -> list[tuple[str, State, Callable[[int], Event]]]:
    """What happens, from which state, and the event of each round."""
    first = next(iter(state.remembered.health))
    failing = state
    for at in (4.0, 5.0):
        failed = ProbeFinished(at=at, target=first, started=at, up=False, detail="refused")
        failing = reduce(failing, failed).state
    return [
        (
            "asked to shut down",
            state,
            lambda n: ShutdownRequested(
                at=9.0, guest=guest(n), incarnation=n, kind=RequestKind.POWEROFF
            ),
        ),
        ("died", state, lambda n: Died(at=9.0, guest=guest(n), incarnation=n)),
        (
            "started anew",
            state,
            lambda n: Started(at=9.0, guest=guest(n), name=f"g{n}", incarnation=n + GUESTS),
        ),
        (
            "check passed, as before",
            state,
            lambda _: ProbeFinished(at=9.0, target=first, started=8.0, up=True, detail="connected"),
        ),
        (
            "check failed for the third time",
            failing,
            lambda _: ProbeFinished(at=9.0, target=first, started=8.0, up=False, detail="refused"),
        ),
        ("tick", state, lambda _: Tick(at=9.0)),
    ]


def main() -> None:
    few = Settings(
        uris=(URI,),
        services=tuple(
            service(n, *(Member(guest=f"g{g}") for g in range(n, GUESTS, SERVICES)))
            for n in range(SERVICES)
        ),
    )
    every = Settings(
        uris=(URI,), services=tuple(service(n, Member(guest="g*")) for n in range(SERVICES))
    )
    print(f"{'milliseconds of CPU (medians)':36} {'step':>9} {'desired':>9} {'engine':>9}")
    for name, settings in (("few", few), ("all", every)):
        for what, state, make in rows(world(settings)):
            print(f"{name + ': ' + what:36} {cost(state, make)}")
    hosts = Settings(
        services=tuple(
            service(n, *(Member(host=IPv4Address("10.0.0.0") + 10 * n + h) for h in range(10)))
            for n in range(1000)
        )
    )
    print(
        f"{'hosts: configuration read':36}"
        f" {cost(State(), lambda _: Configured(at=0.0, settings=hosts), rounds=5)}"
    )


if __name__ == "__main__":
    main()
