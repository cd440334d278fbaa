"""The owner of an address that sources give for several guests.

The rank of the source decides: written on the host, evidence of the host, served with before the
last stop or boot, reported by the guest. So no guest takes an address for which there is evidence
of another, whatever it reports. While a guest reboots, its address waits for it. Between equal
claims the guest that has the address keeps it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from xenlb.ipvs.table import IPAddress
from xenlb.model.addresses import RANKS, AddressCandidate, AddressSource
from xenlb.model.domain import GuestId
from xenlb.model.events import AddressesFound
from xenlb.model.guest import Guest, Phase
from xenlb.model.membership import (
    addresses_of,
    metadata_rejection,
    owner_name,
    services_and_addresses,
)
from xenlb.model.note import Note, NoteKind
from xenlb.model.state import State, Transition

# Seconds that an address waits for its guest, after a stop or a boot. The slowest shutdown of the
# defaults takes 5 minutes, a boot takes minutes; afterwards other guests may report it.
RESERVED = 600.0
MAX_NOTES = 16  # about the addresses of one guest in one boot


def address_owners(state: State) -> Mapping[IPAddress, GuestId | None]:
    """Return the owner of each address: None for a host, else the guest with the best source."""
    owners: dict[IPAddress, GuestId | None] = {
        member.host: None
        for service in state.settings.services
        for member in service.servers
        if member.host is not None
    }
    holders = {server.key.address: server.owner for server in state.remembered.admitted} | dict(
        state.derived.owners
    )
    running = {g.id.uuid for g in state.guests.values() if g.phase is not Phase.ABSENT}
    claims = sorted(
        (
            (candidate, guest)
            for guest in state.guests.values()
            # A guest that runs at another libvirt has migrated, and has its address there.
            if guest.phase is not Phase.ABSENT or guest.id.uuid not in running
            for candidate in claims_of(state, guest)
        ),
        key=lambda claim: (
            RANKS[claim[0].source],
            holders.get(claim[0].address) != claim[1].id,
            claim[1].booted,
            claim[1].id.uri,
            claim[1].id.uuid.int,
        ),
    )
    for candidate, guest in claims:
        owners.setdefault(candidate.address, guest.id)
    return owners


def claims_of(state: State, guest: Guest) -> tuple[AddressCandidate, ...]:
    """Return every address that is the guest's, unless another guest has a better claim."""
    services, written = services_and_addresses(state, guest)
    if not services:
        return ()
    written = tuple(address for address in written if not metadata_rejection(address, state))
    absent = guest.phase is Phase.ABSENT
    # An address of configuration or metadata is not free while its guest is off, either.
    waiting = guest.reserved.union(address.address for address in written if absent)
    served = tuple(AddressCandidate(address=ip, source=AddressSource.SERVED) for ip in waiting)
    return served if absent else (*written, *guest.candidates, *served)


def with_reservations(before: State, state: State, at: float) -> State:
    """Return the state with the addresses of guests that stopped or booted reserved for them."""
    waiting: list[Guest] = []
    for key, old in before.guests.items():
        new = state.guests.get(key)
        if new is None or new is old:
            continue
        stopped = new.phase is Phase.ABSENT and old.phase is not Phase.ABSENT
        if stopped or new.booted != old.booted:
            addresses = frozenset(candidate.address for candidate in old.candidates)
            served = addresses.intersection(addresses_of(before, old).values()) or old.reserved
            until = at + RESERVED if served else None
            waiting.append(replace(new, reserved=served, reserved_until=until))
    return state.with_guests(*waiting)


def without_expired_reservation(guest: Guest, at: float) -> Guest:
    """Return the guest, without reserved addresses from `reserved_until` on."""
    if guest.reserved_until is None or guest.reserved_until > at:
        return guest
    return replace(guest, reserved=frozenset(), reserved_until=None)


def with_address_notes(before: Guest, event: AddressesFound, result: Transition) -> Transition:
    """Return the transition with notes about new addresses, each once in a boot."""
    after = result.state.guests[event.guest]
    notes: list[Note] = []
    for candidate in after.candidates:
        if candidate not in before.candidates:
            notes += _candidate_notes(candidate, after, result.state, event.at)
    for rejected in event.rejected:
        if rejected not in before.rejected:
            text = f"address {rejected.text} ({rejected.source}) refused: {rejected.reason}"
            notes.append(Note(event.at, NoteKind.ADDRESS, text, after.id, warning=True))
    noted = set(after.address_notes)
    new: list[Note] = []
    for note in notes:
        key = f"{note.guest}: {note.text}"
        if key in noted or len(noted) > MAX_NOTES:
            continue
        noted.add(key)
        if len(noted) > MAX_NOTES:
            text = "further addresses in this boot are not logged"
            new.append(Note(event.at, NoteKind.ADDRESS, text, after.id, warning=True))
        else:
            new.append(note)
    state = result.state.with_guests(replace(after, address_notes=frozenset(noted)))
    return replace(result, state=state, notes=(*new, *result.notes))


def _candidate_notes(
    candidate: AddressCandidate, guest: Guest, state: State, at: float
) -> list[Note]:
    """Return a note about a new address, and a warning for each other guest that claims it."""
    address, owner = candidate.address, state.derived.owners.get(candidate.address, guest.id)
    others = [
        other
        for other in state.guests.values()
        if other.id.uuid != guest.id.uuid
        and (
            other.id == owner
            or (
                other.phase is not Phase.ABSENT
                and any(claim.address == address for claim in other.candidates)
            )
        )
    ]
    text = f"address {candidate}"
    if owner != guest.id:
        text += f" refused: it belongs to {owner_name(owner, state)}"
    elif others:
        text += f": also claimed by {_names(others)}, refused there"
    warning = owner != guest.id or bool(others)
    notes = [Note(at, NoteKind.ADDRESS, text, guest.id, warning=warning)]
    for other in others:
        result = "refused" if owner == other.id else f"it belongs to {owner_name(owner, state)}"
        text = f"guest {guest.name} also claims the address {candidate}: {result}"
        notes.append(Note(at, NoteKind.ADDRESS, text, other.id, warning=True))
    return notes


def _names(guests: Sequence[Guest]) -> str:
    return "guest " + " and ".join(guest.name for guest in guests[:3])
