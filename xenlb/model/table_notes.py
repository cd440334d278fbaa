"""Notes about operations on the kernel's table, and about what other tools have put there."""

from collections.abc import Collection, Iterable, Sequence

from xenlb.ipvs.op import Op, OpFailed
from xenlb.ipvs.reconciler import Reconciler
from xenlb.ipvs.table import ServerKey, ServiceKey
from xenlb.model.change_summary import names_of
from xenlb.model.note import Note, NoteKind
from xenlb.model.service_remarks import foreign_server
from xenlb.model.settings import ServiceSettings


def pass_notes(
    done: Sequence[Op],
    refused: Sequence[OpFailed],
    reconciler: Reconciler,
    *,
    drift: Collection[Op],
    now: float,
    took: float | None,
) -> list[Note]:
    """Operations that were done, and those that the kernel has refused for the first time.

    `drift`: those that repair what others changed. `took`: seconds since the event.
    """
    after = "" if took is None else f" ({took * 1000:.1f} ms after the event)"
    notes = []
    for op in done:
        repair = op in drift
        kind = NoteKind.TABLE_REPAIRED if repair else NoteKind.TABLE_CHANGED
        text = f"drift repaired: ipvsadm {op}" if repair else f"ipvsadm {op}{after}"
        notes.append(Note(at=now, kind=kind, text=text, warning=repair))
    for failed in refused:
        failure = reconciler.failure_of(failed.op)
        if failure is not None and failure.attempts == 1:
            text = f"ipvsadm {failed.op} failed: {failure.reason}"
            notes.append(Note(at=now, kind=NoteKind.TABLE_REFUSED, text=text, warning=True))
    return notes


def foreign_notes(
    servers: Iterable[tuple[ServiceKey, ServerKey]], services: Iterable[ServiceSettings], now: float
) -> list[Note]:
    """Servers of other tools in services of ours that were not told yet."""
    names = names_of(services)
    return [
        Note(
            at=now,
            kind=NoteKind.TABLE_FOREIGN,
            text=foreign_server(names[key], key, server),
            warning=True,
        )
        for key, server in sorted(servers, key=str)
        if key in names
    ]
