"""Notes about operations on the kernel's table, and about entries of other tools."""

from collections.abc import Collection, Iterable, Sequence

from xenlb.ipvs import text
from xenlb.ipvs.op import Op, OpFailed
from xenlb.ipvs.reconciler import Reconciler
from xenlb.ipvs.table import ServerKey, ServiceKey
from xenlb.model.change_summary import names_of
from xenlb.model.note import Note, NoteKind
from xenlb.model.service_remarks import removal
from xenlb.model.settings import ServiceSettings


def pass_notes(
    done: Sequence[Op],
    refused: Sequence[OpFailed],
    reconciler: Reconciler,
    *,
    drift: Collection[Op],
    now: float,
    delay: float | None,
) -> list[Note]:
    """Return notes for operations that were done, and for those refused for the first time.

    `drift`: those that repair changes by others. `delay`: seconds since the event.
    """
    after = "" if delay is None else f" ({delay * 1000:.1f} ms after the event)"
    notes = []
    for op in done:
        repair = op in drift
        kind = NoteKind.TABLE_REPAIRED if repair else NoteKind.TABLE_CHANGED
        message = f"drift repaired: ipvsadm {op}" if repair else f"ipvsadm {op}{after}"
        notes.append(Note(now, kind, message, warning=repair))
    for failed in refused:
        failure = reconciler.failure_of(failed.op)
        if failure is not None and failure.attempts == 1:
            message = f"ipvsadm {failed.op} failed: {failure.reason}"
            notes.append(Note(now, NoteKind.TABLE_REFUSED, message, warning=True))
    return notes


def foreign_notes(
    servers: Iterable[tuple[ServiceKey, ServerKey]], services: Iterable[ServiceSettings], now: float
) -> list[Note]:
    """Return a warning for each of these servers of other tools in configured services."""
    names = names_of(services)
    notes = []
    for key, server in sorted(servers, key=str):
        if (name := names.get(key)) is not None:
            message = (
                f"service {name} ({text.label(key)}) has a server of another tool, which stays and"
                f" gets its share of the connections: {text.endpoint(server.address, server.port)};"
                f" to remove it: {removal(key, server)} (all: xenlb apply --take-over {name})"
            )
            notes.append(Note(now, NoteKind.TABLE_FOREIGN, message, warning=True))
    return notes
