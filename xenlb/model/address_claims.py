"""Whose an address is, of those that are given for several guests.

What is written on the host comes first, then what the host sees, then what a guest served with
before it went or booted, and last what a guest says of itself. So no guest takes an address for
which there is evidence of another, whatever it reports and however long it runs; and while a guest
reboots, its address waits for it. Between equal claims the one who has the address keeps it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from xenlb.ipvs.table import IPAddress
from xenlb.model.addresses import RANKS, AddressCandidate, AddressSource
from xenlb.model.domain import GuestId
from xenlb.model.events import AddressesFound
from xenlb.model.guest import Guest, Phase
from xenlb.model.membership import addresses_of, belonging, owner_name, refused_metadata
from xenlb.model.note import Note, NoteKind
from xenlb.model.state import State, Transition

# Seconds that the address of a guest which went or boots waits for it. With the slowest shutdown of
# the defaults (5 minutes) before, and minutes for a boot: afterwards others may report it.
RESERVED = 600.0
MOST_TOLD = 16  # warnings and news of the addresses of one guest in one boot


def claims(state: State) -> Mapping[IPAddress, GuestId | None]:
    """Whose each address is: a host's (None), else that of the guest with the best source."""
    owners: dict[IPAddress, GuestId | None] = {
        member.host: None
        for service in state.settings.services
        for member in service.servers
        if member.host is not None
    }
    holders = {slot.server.address: slot.owner for slot in state.remembered.admitted} | dict(
        state.derived.owners
    )
    running = {g.id.uuid for g in state.guests.values() if g.phase is not Phase.ABSENT}
    ranked = sorted(
        (
            (found, guest)
            for guest in state.guests.values()
            # A guest that runs at another libvirt has migrated, and has its address there.
            if guest.phase is not Phase.ABSENT or guest.id.uuid not in running
            for found in claimed(state, guest)
        ),
        key=lambda claim: (
            RANKS[claim[0].source],
            holders.get(claim[0].address) != claim[1].id,
            claim[1].booted,
            claim[1].id.uri,
            claim[1].id.uuid.int,
        ),
    )
    for found, guest in ranked:
        owners.setdefault(found.address, guest.id)
    return owners


def claimed(state: State, guest: Guest) -> tuple[AddressCandidate, ...]:
    """Every address that is the guest's, unless another has a better claim: as a server of any
    service."""
    services, written = belonging(
        state.settings.services, guest.name, guest.id.uuid, guest.metadata
    )
    if not services:
        return ()
    written = tuple(found for found in written if not refused_metadata(found, state))
    absent = guest.phase is Phase.ABSENT
    # What is written for a guest is not free while it is off, either.
    waiting = guest.reserved.union(found.address for found in written if absent)
    served = tuple(AddressCandidate(address=each, source=AddressSource.SERVED) for each in waiting)
    return served if absent else (*written, *guest.candidates, *served)


def reserved(before: State, state: State, at: float) -> State:
    """The state in which the addresses of guests that have gone, or boot anew, wait for them."""
    waiting: list[Guest] = []
    for key, was in before.guests.items():
        now = state.guests.get(key)
        if now is None or now is was:
            continue
        went = now.phase is Phase.ABSENT and was.phase is not Phase.ABSENT
        if went or now.booted != was.booted:
            found = frozenset(each.address for each in was.candidates)
            served = found.intersection(addresses_of(before, was).values()) or was.reserved
            until = at + RESERVED if served else None
            waiting.append(replace(now, reserved=served, reserved_until=until))
    return state.with_guests(*waiting)


def over(guest: Guest, at: float) -> Guest:
    """The guest, without the addresses for which it was waited long enough."""
    if guest.reserved_until is None or guest.reserved_until > at:
        return guest
    return replace(guest, reserved=frozenset(), reserved_until=None)


def noted(before: Guest, event: AddressesFound, step: Transition) -> Transition:
    """The step with what is to be said of the addresses that the event brings: each once in a boot,
    and not more than so much of one guest."""
    after = step.state.guests[event.guest]
    notes: list[Note] = []
    for found in after.candidates:
        if found not in before.candidates:
            notes += _of_found(found, after, step.state, event.at)
    notes += [
        Note(
            at=event.at,
            kind=NoteKind.ADDRESS,
            guest=after.id,
            text=f"address {item.text} ({item.source}) refused: {item.reason}",
            warning=True,
        )
        for item in event.rejected
        if item not in before.rejected
    ]
    told = set(after.told)
    said: list[Note] = []
    for note in notes:
        key = f"{note.guest}: {note.text}"
        if key in told or len(told) > MOST_TOLD:
            continue
        if len(told) == MOST_TOLD:
            text = "more addresses are given for it, in this boot, than is told here"
            note = Note(at=event.at, kind=NoteKind.ADDRESS, guest=after.id, text=text, warning=True)  # noqa: PLW2901
        told.add(key)
        said.append(note)
    state = step.state.with_guests(replace(after, told=frozenset(told)))
    return replace(step, state=state, notes=(*said, *step.notes))


def _of_found(found: AddressCandidate, guest: Guest, state: State, at: float) -> list[Note]:
    """One line, and where the address is another guest's, too, a warning for each of both."""
    address, owner = found.address, state.derived.owners.get(found.address, guest.id)
    text = f"address {address} ({found.source})"
    others = [
        other
        for other in state.guests.values()
        if other.id.uuid != guest.id.uuid
        and (
            other.id == owner
            or (
                other.phase is not Phase.ABSENT
                and any(each.address == address for each in other.candidates)
            )
        )
    ]
    if owner != guest.id:
        text += f" refused: it is that of {owner_name(owner, state)}"
    elif others:
        text += f": {_names(others)} claims it, too, and does not get it"
    notes = [
        Note(
            at=at,
            kind=NoteKind.ADDRESS,
            guest=guest.id,
            text=text,
            warning=owner != guest.id or bool(others),
        )
    ]
    for other in others:
        outcome = (
            "it does not get it"
            if owner == other.id
            else f"it is that of {owner_name(owner, state)}"
        )
        claim = f"guest {guest.name} claims the address {address} ({found.source}), too; {outcome}"
        notes.append(Note(at=at, kind=NoteKind.ADDRESS, guest=other.id, text=claim, warning=True))
    return notes


def _names(guests: Sequence[Guest]) -> str:
    return "guest " + " and ".join(guest.name for guest in guests[:3])
