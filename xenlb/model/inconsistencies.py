"""Inconsistencies between configuration, metadata and the guests of libvirt.

Each is noted once, when it begins; `status` and `why` show it as long as it lasts.
"""

from collections.abc import Iterator
from dataclasses import replace
from fnmatch import fnmatchcase

from xenlb.model.addresses import AddressCandidate, AddressSource
from xenlb.model.domain import GuestId
from xenlb.model.guest import Guest
from xenlb.model.membership import metadata_rejection, service_names
from xenlb.model.note import Note, NoteKind
from xenlb.model.settings import Member, ServiceSettings, uuid_text
from xenlb.model.state import State, Transition
from xenlb.untrusted.printable import quoted
from xenlb.untrusted.suggestions import did_you_mean


def unknown_members(state: State, service: ServiceSettings) -> Iterator[tuple[Member, str]]:
    """Yield the entries of `servers` for which no libvirt has a guest, each with a reason."""
    if not state.synced or not state.observed.links:
        return
    names = {guest.name for guest in state.guests.values()}
    uuids = {str(guest.id.uuid) for guest in state.guests.values()}
    for member in service.servers:
        if member.guest is None:
            continue
        uuid = uuid_text(member.guest)
        if member.guest in names if uuid is None else uuid in uuids:
            continue
        if uuid is not None:
            yield member, "no libvirt has a guest of this UUID"
        elif not member.is_pattern:
            reason = "no libvirt has a guest of this name"
            yield member, _with_hint(reason, did_you_mean(member.guest, names))
        elif not any(fnmatchcase(name, member.guest) for name in names):
            yield member, "no libvirt has a guest that matches"


def metadata_findings(state: State, guest: Guest) -> list[str]:
    """Return the entries of a guest's metadata that have no effect, with the reason."""
    if not guest.metadata:
        return []
    services = {service.name: service for service in state.settings.services}
    joined = service_names(state, guest)
    findings = []
    for entry in guest.metadata:
        subject = f"its metadata names the service {quoted(entry.name)}, which"
        if entry.name in joined:
            if entry.address is not None:
                given = AddressCandidate(address=entry.address, source=AddressSource.METADATA)
                if reason := metadata_rejection(given, state):
                    findings.append(f"its metadata gives the address {entry.address}: {reason}")
        elif entry.name in services:
            findings.append(f"{subject} accepts no guest by metadata (from-metadata: true does)")
        else:
            hint = did_you_mean(entry.name, services)
            findings.append(_with_hint(f"{subject} is not configured", hint))
    return findings


def _with_hint(text: str, hint: str) -> str:
    return f"{text}; {hint}" if hint else text


def _all(state: State) -> Iterator[tuple[GuestId | None, str]]:
    for problem in state.settings.warnings:
        yield None, str(problem)
    for service in state.settings.services:
        for member, reason in unknown_members(state, service):
            if not member.is_pattern:
                yield None, f"service {service.name}: guest {quoted(member.guest or '')}: {reason}"
    for guest in state.guests.values():
        for text in metadata_findings(state, guest):
            yield guest.id, text


def with_inconsistencies(before: State, result: Transition, at: float) -> Transition:
    """Return the transition with the inconsistencies after it, and a warning for each new one."""
    present = tuple(_all(result.state))
    notes = (
        Note(at, NoteKind.INCONSISTENCY, text, guest, warning=True)
        for guest, text in present
        if (guest, text) not in before.derived.inconsistencies
    )
    derived = replace(result.state.derived, inconsistencies=present)
    state = replace(result.state, derived=derived)
    return replace(result, state=state, notes=(*result.notes, *notes))
