"""Reads of the whole table. Requests that come during a read share the next one.

They all get the same table, as it is after the engine has repaired it.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from xenlb.ipvs.errors import IpvsError
from xenlb.ipvs.kernel import KernelTable
from xenlb.ipvs.table import Snapshot, Table
from xenlb.model.drain import Counts


class TableReads:
    """One read at a time, in a thread. `kernel` has a socket of its own."""

    def __init__(self, kernel: KernelTable) -> None:
        self._kernel = kernel
        # Its own: other work in threads (files, connection tracking) must not delay a read.
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="xenlb-table")
        self._waiting: list[asyncio.Future[Snapshot]] = []  # for a read that has not begun yet
        self._served: list[asyncio.Future[Snapshot]] = []  # by the last read
        self._counters: Counts = {}  # of the last read that counted

    @property
    def wanted(self) -> bool:
        """Whether a request waits for a read."""
        return bool(self._waiting)

    def request(self) -> asyncio.Future[Snapshot]:
        """The table after the next read, with counters; or an IpvsError."""
        done: asyncio.Future[Snapshot] = asyncio.get_running_loop().create_future()
        self._waiting.append(done)
        return done

    async def read(self, *, counters: bool) -> Snapshot:
        """Read the table, with counters also for those that wait. Raises IpvsError, to them too."""
        self._served, self._waiting = self._waiting, []
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
        """Give the table, as it is after the repair, to those that waited for the read."""
        served, self._served = self._served, []
        snapshot = Snapshot(table=table, counters=self._counters)
        for waiting in served:
            if not waiting.done():
                waiting.set_result(snapshot)

    def close(self) -> None:
        """Cancel all requests; a read that is under way is not waited for."""
        for waiting in (*self._waiting, *self._served):
            waiting.cancel()
        self._executor.shutdown(wait=False, cancel_futures=True)
        self._kernel.close()
