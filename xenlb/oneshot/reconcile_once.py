"""One pass without a daemon, for `xenlb plan` and `xenlb apply`.

It uses the agent's engine; the sources run until each has reported once. asyncio and the sources
are imported only for a configuration with guests or checks, so that a configuration of plain hosts
is applied in the time of its batch.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from xenlb import clock
from xenlb.ipvs import text
from xenlb.ipvs.kernel import Kernel, KernelTable
from xenlb.ipvs.op import DeleteServer, DeleteService, Op, OpFailed
from xenlb.ipvs.reconciler import entry_key
from xenlb.ipvs.table import Table
from xenlb.model import change_summary
from xenlb.model.engine import Engine
from xenlb.model.events import Configured
from xenlb.model.reducer import reduce
from xenlb.model.service_remarks import removal
from xenlb.model.settings import Settings, needed_uris
from xenlb.model.state import State
from xenlb.store import state_file
from xenlb.store.saved_state import SavedState
from xenlb.untrusted.printable import quoted
from xenlb.untrusted.suggestions import did_you_mean


class OnceError(Exception):
    """The pass is not possible; nothing was changed."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(f"{message} ({hint})")
        self.message = message
        self.hint = hint


@dataclass(frozen=True, slots=True, kw_only=True)
class OncePass:
    """The result of a pass.

    `ops`: those planned or done. `failed`: those that the kernel refused. `notes`: sentences about
    entries of other tools. `summary`: what the operations change, in one line.
    """

    ops: tuple[Op, ...] = ()
    failed: tuple[OpFailed, ...] = ()
    notes: tuple[str, ...] = ()
    summary: str = ""


def run_once(
    settings: Settings,
    *,
    state_path: Path,
    change: bool,
    take_over: Collection[str] = (),
    kernel: KernelTable | None = None,
) -> OncePass:
    """Plan, and apply with `change`. Raises OnceError, and IpvsError from the kernel.

    `take_over`: services whose servers of other tools are removed as well.
    """
    if unknown := [name for name in take_over if name not in _names(settings)]:
        raise OnceError(
            f"there is no service {quoted(unknown[0])}",
            did_you_mean(unknown[0], _names(settings)) or "name one of the configuration",
        )
    saved = (state_file.load if change else state_file.read)(state_path)
    settings = replace(settings, uris=needed_uris(settings))
    state = reduce(
        State(remembered=saved.remembered), Configured(at=clock.now(), settings=settings)
    ).state
    if state.observed.links or state.remembered.health:
        from xenlb.hypervisor.uri import SourceUnavailable  # noqa: PLC0415
        from xenlb.oneshot.collect import collect  # noqa: PLC0415  (loads asyncio and libvirt)

        try:
            state = collect(state)
        except SourceUnavailable as error:
            raise OnceError(error.message, error.hint) from error
    table = kernel or Kernel()
    try:
        engine = Engine(
            state=state, now=clock.now(), services=saved.services, servers=saved.servers
        )
        # Connections matter only where a sorry server may wait for its last one.
        sorry = any(service.sorry_server is not None for service in settings.services)
        engine.load_snapshot(table.read(counters=sorry))
        for service in settings.services:
            if service.name in take_over:
                engine.take_over(service.kernel_keys())
        outcome = engine.handle((), clock.now())
        notes = tuple(_foreign(engine, outcome.want or Table()))
        summary = _summary(outcome.ops, table, engine, settings) if outcome.ops else ""
        if not change:
            return OncePass(ops=outcome.ops, notes=notes, summary=summary)
        # Plain hosts, as many as before, change nothing in the state file.
        remembered = saved.remembered
        hosts = not (state.observed.links or state.remembered.health)
        hosts = hosts and not (remembered.guests or remembered.health)
        same = hosts and len(state.remembered.admitted) == len(remembered.admitted)
        if outcome.claimed or outcome.ops or not same:
            state_file.save(state_path, _saved(saved, engine))
        failed = table.apply(outcome.ops) if outcome.ops else ()
        result = engine.executed(outcome, failed, clock.now())
        if result.released:
            state_file.save(state_path, _saved(saved, engine))
        return OncePass(ops=result.done, failed=tuple(failed), notes=notes, summary=summary)
    finally:
        table.close()


def _saved(before: SavedState, engine: Engine) -> SavedState:
    """What the state file must hold; a pass changes neither addresses nor sysctls."""
    return replace(
        before,
        remembered=engine.state.remembered,
        services=frozenset(engine.reconciler.services),
        servers=engine.reconciler.servers,
    )


def _names(settings: Settings) -> set[str]:
    return {service.name for service in settings.services}


def _summary(ops: Sequence[Op], table: KernelTable, engine: Engine, settings: Settings) -> str:
    goes = {entry_key(op)[0] for op in ops if isinstance(op, DeleteServer | DeleteService)}
    counts = table.read(goes).counters if goes else None
    return change_summary.summary(
        ops, engine.table, change_summary.names_of(settings.services), counts
    )


def _foreign(engine: Engine, want: Table) -> Iterable[str]:
    foreign = engine.reconciler.foreign(want)
    for key in foreign.services:
        yield f"the service {text.service_key(key)} is another tool's and is left alone"
    for key, server in foreign.servers:
        yield (
            f"the server {server.address} port {server.port} of {text.service_key(key)} is"
            f" another tool's and is left alone; to remove it: {removal(key, server)}"
        )
