"""Flushes connection tracking of servers that have failed in a service with `flush: true`.

The table comes first: the kernel would make new entries for a server that is still in it. The table
was changed in the same round, before on_state_change() is called.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator

from xenlb.director.conntrack import FailedServer, flush
from xenlb.ipvs.table import AddressKey
from xenlb.model.guest import Phase
from xenlb.model.note import NoteKind
from xenlb.model.settings import OnFailure
from xenlb.model.state import State

log = logging.getLogger(__name__)


def failed_servers(before: State, after: State) -> frozenset[FailedServer]:
    """Servers that left the table because their check fails."""
    return frozenset(_failed(before, after))


def _failed(before: State, after: State) -> Iterator[FailedServer]:
    for service in after.settings.services:
        if not service.flush or service.on_failure is not OnFailure.REMOVE:
            continue
        for candidate in after.derived.candidates[service.name]:
            server = candidate.server
            if (
                server is None
                or server in after.remembered.admitted
                or server not in before.remembered.admitted
            ):
                continue
            guest = None if server.owner is None else after.guests.get(server.owner)
            verdict = after.verdict(candidate, service)
            if verdict is None or verdict.up is not False:
                continue
            if guest is not None and guest.phase is Phase.ABSENT:
                continue
            protocol = server.service.protocol if isinstance(server.service, AddressKey) else None
            yield FailedServer(address=server.key.address, protocol=protocol, port=server.key.port)


class ConntrackFlusher:
    """Flushes in a thread, one batch at a time; `note` writes a line of the event log."""

    def __init__(self, note: Callable[..., object]) -> None:
        self._note = note
        self._failed: set[FailedServer] = set()
        self._wake = asyncio.Event()

    def on_state_change(self, before: State, after: State) -> None:
        """Queue the servers that left the table because their check fails."""
        if before.remembered.admitted is not after.remembered.admitted and (
            failed := failed_servers(before, after)
        ):
            self._failed |= failed
            self._wake.set()

    async def run(self) -> None:
        """Run until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            failed, self._failed = self._failed, set()
            names = ", ".join(sorted({str(server.address) for server in failed}))
            try:
                deleted = await asyncio.to_thread(flush, failed)
            except OSError as error:
                log.warning("connection tracking of %s is not flushed: %s", names, error)
                continue
            if deleted:
                text = f"{deleted} entries of connection tracking flushed: {names} failed"
                self._note(text, kind=NoteKind.FLUSHED)
