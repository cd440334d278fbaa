"""Reads of the whole table that somebody waits for: all that ask while one is under way share the
next one, and get the same table, as it is when the owner has repaired it.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from xenlb.ipvs.errors import IpvsError
from xenlb.ipvs.kernel import KernelTable
from xenlb.ipvs.table import Snapshot, Table
from xenlb.model.drain import Counts


class TableReads:
    """Used by the owner. One read at a time, in a thread; `kernel` has a socket of its own."""

    def __init__(self, kernel: KernelTable) -> None:
        self._kernel = kernel
        # Its own: what others do in threads (files, connection tracking) does not hold it up.
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="xenlb-table")
        self._awaiting: list[asyncio.Future[Snapshot]] = []  # a read that has not begun yet
        self._served: list[asyncio.Future[Snapshot]] = []  # the read that was made last
        self._counters: Counts = {}  # of the last read that counted

    @property
    def wanted(self) -> bool:
        return bool(self._awaiting)

    def ask(self) -> asyncio.Future[Snapshot]:
        """The table after the next read, with counters; or an IpvsError."""
        done: asyncio.Future[Snapshot] = asyncio.get_running_loop().create_future()
        self._awaiting.append(done)
        return done

    async def read(self, *, counters: bool) -> Snapshot:
        """With counters also where somebody waits for this read. Raises IpvsError, also to those
        who do."""
        self._served, self._awaiting = self._awaiting, []
        counters = counters or bool(self._served)
        try:
            loop = asyncio.get_running_loop()
            read = partial(self._kernel.read, counters=counters)
            snapshot = await loop.run_in_executor(self._executor, read)
        except IpvsError as error:
            for waiting in self._served:
                if not waiting.done():
                    waiting.set_exception(error)
            raise
        if counters:
            self._counters = snapshot.counters
        return snapshot

    def answer(self, table: Table) -> None:
        """Gives the table, as it is after the repair, to those who have waited for the read."""
        served, self._served = self._served, []
        snapshot = Snapshot(table=table, counters=self._counters)
        for each in served:
            if not each.done():
                each.set_result(snapshot)

    def close(self) -> None:
        for waiting in (*self._awaiting, *self._served):
            waiting.cancel()
        self._executor.shutdown(wait=False, cancel_futures=True)
        self._kernel.close()
