"""What the journal is told of a pass over the kernel's table."""

from collections.abc import Collection, Iterable

from xenlb.ipvs.op import Op
from xenlb.ipvs.reconciler import Reconciler, ReconcileResult
from xenlb.ipvs.table import ServerKey, ServiceKey
from xenlb.model.change_summary import names_of
from xenlb.model.service_remarks import foreign_server
from xenlb.model.settings import ServiceSettings
from xenlb.model.state import Note


def pass_notes(
    result: ReconcileResult,
    reconciler: Reconciler,
    drift: Collection[Op],
    now: float,
    took: float | None,
) -> list[Note]:
    """What was done, and what the kernel has refused for the first time. `drift`: the operations
    that repair what others changed; `took`: the seconds since the event that the others follow."""
    after = "" if took is None else f" ({took * 1000:.1f} ms after the event)"
    notes = []
    for op in result.done:
        repair = op in drift
        text = f"drift repaired: ipvsadm {op}" if repair else f"ipvsadm {op}{after}"
        notes.append(Note(at=now, text=text, warning=repair))
    for failed in result.failed:
        failure = reconciler.failure_of(failed.op)
        if failure is not None and failure.attempts == 1:
            text = f"ipvsadm {failed.op} failed: {failure.reason}"
            notes.append(Note(at=now, text=text, warning=True))
    return notes


def foreign_notes(
    servers: Iterable[tuple[ServiceKey, ServerKey]], services: Iterable[ServiceSettings], now: float
) -> list[Note]:
    """Servers of other tools in services of ours that were not told yet."""
    names = names_of(services)
    return [
        Note(at=now, text=foreign_server(names[key], key, server), warning=True)
        for key, server in sorted(servers, key=str)
        if key in names
    ]
