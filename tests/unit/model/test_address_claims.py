"""The owner of an address, whatever guests report."""

from dataclasses import replace
from ipaddress import ip_address
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from xenlb.ipvs.table import IPAddress
from xenlb.model.address_claims import MAX_NOTES
from xenlb.model.addresses import RANKS, AddressCandidate, AddressSource, RejectedAddress
from xenlb.model.domain import DomainDescription, DomainState, GuestId
from xenlb.model.events import AddressesFound, Configured, Died, Event, GuestsListed, Started
from xenlb.model.note import Note
from xenlb.model.reducer import reduce
from xenlb.model.reserved_addresses import HostNetwork, HostNetworkChanged
from xenlb.model.settings import Member, Port, ServiceSettings, Settings
from xenlb.model.state import State

URI = "xen:///system"
NUMBERS = range(1, 6)  # of guests; the host has evidence of one address for each
FREE = (ip_address("10.0.0.101"), ip_address("10.0.0.102"), ip_address("2001:db8::11"))


def guest(number: int) -> GuestId:
    return GuestId(uri=URI, uuid=UUID(int=number))


def address(number: int) -> IPAddress:
    return ip_address(f"10.0.0.{number}")


MAIL = ServiceSettings(
    name="mail",
    address=ip_address("192.0.2.10"),
    ports=(Port(number=25),),
    checks=(),
    servers=(Member(guest="mail*"),),
)


class World:
    """A state, with the notes on the way to it."""

    def __init__(self, service: ServiceSettings = MAIL) -> None:
        self.state = State()
        self.now = 1000.0
        self.notes: list[Note] = []
        self.handle(Configured(at=self.now, settings=Settings(uris=(URI,), services=(service,))))
        described = tuple(
            DomainDescription(
                guest=guest(number),
                name=f"mail{number}",
                domain_state=DomainState.RUNNING,
                incarnation=number,
            )
            for number in NUMBERS
        )
        self.handle(GuestsListed(at=self.now, requested_at=self.now, uri=URI, guests=described))

    def handle(self, event: Event) -> None:
        result = reduce(self.state, event)
        self.state = result.state
        self.notes += result.notes

    def found(
        self, number: int, *given: tuple[IPAddress, AddressSource], refused: tuple[str, ...] = ()
    ) -> None:
        self.now += 1
        ordered = sorted(given, key=lambda item: RANKS[item[1]])
        self.handle(
            AddressesFound(
                at=self.now,
                guest=guest(number),
                incarnation=self.state.guests[guest(number)].incarnation,
                candidates=tuple(
                    AddressCandidate(address=ip, source=source) for ip, source in ordered
                ),
                rejected=tuple(
                    RejectedAddress(text=text, source=AddressSource.REPORTED, reason="it is not")
                    for text in refused
                ),
            )
        )

    def reboot(self, number: int) -> None:
        """A reboot of ten seconds; addresses and evidence are gone afterwards."""
        old = self.state.guests[guest(number)].incarnation
        assert old is not None
        self.handle(Died(at=self.now, guest=guest(number), incarnation=old))
        self.now += 10
        started = Started(
            at=self.now, guest=guest(number), name=f"mail{number}", incarnation=old + 10
        )
        self.handle(started)

    def serving(self) -> dict[IPAddress, int]:
        """The guest at each address in the table."""
        return {
            server.key.address: server.owner.uuid.int
            for server in self.state.remembered.admitted
            if server.owner is not None
        }


ADDRESSES = st.sampled_from([*map(address, NUMBERS), *FREE])
GUEST = st.sampled_from(NUMBERS)
EVIDENCE = st.sampled_from([AddressSource.LEASE, AddressSource.NEIGHBOUR])
STEPS = st.lists(
    st.tuples(st.just("reports"), GUEST, st.frozensets(ADDRESSES, max_size=6))
    | st.tuples(st.just("is seen"), GUEST, EVIDENCE)
    | st.tuples(st.just("reboots"), GUEST, st.none()),
    max_size=30,
)


@given(steps=STEPS)
def test_no_report_moves_an_address_with_evidence_of_the_host(
    steps: list[tuple[str, int, frozenset[IPAddress] | AddressSource | None]],
) -> None:
    """Neither while its guest runs, nor while it boots.

    Evidence lasts until the guest boots: the finder keeps it when the host's entry expires.
    """
    world = World()
    seen: dict[int, AddressSource] = {}
    served: set[int] = set()  # in this boot, or in an earlier one and with no other address since
    for action, number, argument in steps:
        if action == "reboots":
            world.reboot(number)
            seen.pop(number, None)
        elif isinstance(argument, AddressSource):
            seen[number] = argument
            world.found(number, (address(number), argument))
            served.add(number)
        else:
            assert isinstance(argument, frozenset)
            evidence = [(address(number), seen[number])] if number in seen else []
            reports = [(reported, AddressSource.REPORTED) for reported in argument]
            world.found(number, *evidence, *reports)
        for address_, owner in world.serving().items():
            number_of = int(address_) & 0xFF if address_.version == 4 else 0
            if number_of in seen or number_of in served:
                assert owner == number_of, f"{address_} is served by {owner}"
        for owner in seen:
            assert world.state.derived.owners[address(owner)] == guest(owner)
            assert world.serving()[address(owner)] == owner


def test_a_conflict_is_noted_once_for_each_guest() -> None:
    world = World()
    world.found(1, (address(1), AddressSource.NEIGHBOUR))
    world.notes.clear()
    for _ in range(20):
        world.found(2, (address(1), AddressSource.REPORTED))
        world.found(2, (FREE[0], AddressSource.REPORTED))
    warnings = [(note.guest, note.text) for note in world.notes if note.warning]
    given = "address 10.0.0.1 (reported by the guest)"
    assert [warning for warning in warnings if warning[0] is not None] == [
        (guest(2), f"{given} refused: it belongs to guest mail1"),
        (guest(1), f"guest mail2 also claims the {given}: refused"),
    ]


def test_the_notes_about_addresses_of_one_guest_are_bounded() -> None:
    world = World()
    world.notes.clear()
    for number in range(200):
        world.found(2, refused=(f"10.9.0.{number}",))
    texts = [note.text for note in world.notes if note.guest == guest(2)]
    assert len(texts) == MAX_NOTES + 1
    assert "further addresses in this boot" in texts[-1]
    world.reboot(2)
    world.notes.clear()
    world.found(2, refused=("10.9.0.1",))
    assert "address 10.9.0.1 (reported by the guest) refused: it is not" in [
        note.text for note in world.notes
    ]


def test_a_configured_address_stays_against_evidence_and_while_its_guest_is_off() -> None:
    configured = Member(guest="mail1", address=address(1))
    world = World(replace(MAIL, servers=(configured, Member(guest="mail*"))))
    host = HostNetwork(own=frozenset({address(1)}), strangers=frozenset({address(1)}))
    world.handle(HostNetworkChanged(at=world.now, host=host))
    assert world.serving()[address(1)] == 1
    world.found(2, (address(1), AddressSource.NEIGHBOUR))
    assert world.serving()[address(1)] == 1
    world.handle(Died(at=world.now, guest=guest(1), incarnation=1))
    world.found(3, (address(1), AddressSource.REPORTED))
    assert world.serving()[address(1)] == 2
