"""What configuration, metadata and the lists of guests say that does not fit together.

Told once, when it comes to be so; `status` and `why` have it as long as it is.
"""

from collections.abc import Iterator
from dataclasses import replace
from fnmatch import fnmatchcase

from xenlb.model.addresses import AddressCandidate, AddressSource
from xenlb.model.domain import GuestId
from xenlb.model.guest import Guest
from xenlb.model.membership import names_of, refused_metadata
from xenlb.model.note import Note, NoteKind
from xenlb.model.settings import Member, ServiceSettings, uuid_text
from xenlb.model.state import State, Transition
from xenlb.untrusted.printable import quoted
from xenlb.untrusted.suggestions import did_you_mean

Finding = tuple[GuestId | None, str]


def unknown(state: State, service: ServiceSettings) -> Iterator[tuple[Member, str]]:
    """The entries of `servers` that mean no guest of any libvirt, each with a reason."""
    if not state.synced or not state.observed.links:
        return
    names = {guest.name for guest in state.guests.values()}
    uuids = {str(guest.id.uuid) for guest in state.guests.values()}
    for member in service.servers:
        if member.guest is None:
            continue
        meant = uuid_text(member.guest)
        if member.guest in names if meant is None else meant in uuids:
            continue
        if meant is not None:
            yield member, "no libvirt has a guest of this UUID"
        elif not member.is_pattern:
            hint = did_you_mean(member.guest, names)
            said = "no libvirt has a guest of this name"
            yield member, f"{said}; {hint}" if hint else said
        elif not any(fnmatchcase(name, member.guest) for name in names):
            yield member, "no libvirt has a guest that matches"


def of_metadata(state: State, guest: Guest) -> list[str]:
    """The services that a guest's metadata names in vain, and addresses that no guest may have."""
    if not guest.metadata:
        return []
    services = {service.name: service for service in state.settings.services}
    mine = names_of(state, guest)
    said = []
    for entry in guest.metadata:
        if entry.name in mine:
            if entry.address is not None:
                given = AddressCandidate(address=entry.address, source=AddressSource.METADATA)
                if reason := refused_metadata(given, state):
                    said.append(f"its metadata gives the address {entry.address}: {reason}")
            continue
        if entry.name in services:
            said.append(
                f"its metadata names the service {quoted(entry.name)}, which takes no guest from"
                " metadata (from-metadata: true)"
            )
        else:
            hint = did_you_mean(entry.name, services)
            text = f"its metadata names the service {quoted(entry.name)}, which is not configured"
            said.append(f"{text}; {hint}" if hint else text)
    return said


def _all(state: State) -> Iterator[Finding]:
    for problem in state.settings.warnings:
        yield None, str(problem)
    for service in state.settings.services:
        for member, reason in unknown(state, service):
            if not member.is_pattern:
                yield None, f"service {service.name}: guest {quoted(member.guest or '')}: {reason}"
    for guest in state.guests.values():
        for text in of_metadata(state, guest):
            yield guest.id, text


def noted(before: State, step: Transition, at: float) -> Transition:
    """The step with what is found after it, and a warning for each that is new."""
    found = tuple(_all(step.state))
    news = (
        Note(at=at, kind=NoteKind.INCONSISTENCY, text=text, guest=guest, warning=True)
        for guest, text in found
        if (guest, text) not in before.derived.inconsistencies
    )
    derived = replace(step.state.derived, inconsistencies=found)
    return replace(step, state=replace(step.state, derived=derived), notes=(*step.notes, *news))
