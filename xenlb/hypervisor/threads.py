"""Blocking calls in threads that never hold up the loop or the end of the process.

A call on a hung daemon may never return. So each call has a daemon thread of its own (starting
one costs some 50 µs; concurrent.futures joins its threads at exit and would hang there), a time
limit, and is left behind when that has passed. No libvirt here.
"""

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")


class CallTimeout(Exception):
    """A call did not return in time; its thread was left behind."""


async def in_thread(
    call: Callable[[], T], *, limit: float | None, late: Callable[[T], object] | None = None
) -> T:
    """The result of `call`, made in a thread of its own; what it raises is raised here.

    After `limit` seconds (None: no limit) Stuck is raised. `late` is called, in a thread, with a
    result that nobody waits for any more: it closes a connection that was opened too late.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()
    results: list[T] = []  # taken by the caller or by `late`, never by both
    left = threading.Event()
    lock = threading.Lock()

    def finish(error: BaseException | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(results[0])
        else:
            future.set_exception(error)

    def give_up() -> None:
        with lock:
            left.set()
            unwanted = results.copy()
            results.clear()
        if late is not None and unwanted:
            threading.Thread(target=late, args=(unwanted[0],), daemon=True).start()

    def run() -> None:
        error: BaseException | None = None
        try:
            result = call()
        except BaseException as raised:  # whatever it is, it belongs to the caller
            error = raised
        else:
            with lock:
                wanted = not left.is_set()
                if wanted:
                    results.append(result)
            if not wanted:
                if late is not None:
                    late(result)
                return
        try:
            loop.call_soon_threadsafe(finish, error)
        except RuntimeError:
            give_up()  # the loop is closed

    threading.Thread(target=run, name="xenlb-call", daemon=True).start()
    try:
        async with asyncio.timeout(limit):
            return await future
    except TimeoutError:
        if future.done() and not future.cancelled():
            raise  # the call's own
        give_up()
        raise CallTimeout(f"no answer within {limit} s") from None
    except asyncio.CancelledError:
        give_up()
        raise
