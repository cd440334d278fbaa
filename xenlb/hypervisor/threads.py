"""Blocking calls in threads that hold up neither the loop nor the end of the process.

A call on a hung daemon may never return. Each call therefore has a daemon thread of its own and a
time limit, after which the thread is abandoned. Starting a thread costs some 50 µs;
concurrent.futures joins its threads at exit and would hang there.
"""

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class CallTimeout(Exception):
    """A call did not return in time; its thread was abandoned."""


async def in_thread(
    call: Callable[[], T], *, limit: float | None, late: Callable[[T], object] | None = None
) -> T:
    """Run `call` in a new thread and return its result or raise its exception.

    Raises CallTimeout after `limit` seconds (None: no limit). `late` is called, in a thread, with a
    result that comes after the caller has gone: it closes a connection that was opened too late.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()
    results: list[T] = []  # taken by the caller or by `late`, never by both
    abandoned = threading.Event()
    lock = threading.Lock()

    def finish(error: BaseException | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(results[0])
        else:
            future.set_exception(error)

    def abandon() -> None:
        with lock:
            abandoned.set()
            unwanted = results.copy()
            results.clear()
        if late is not None and unwanted:
            threading.Thread(target=late, args=(unwanted[0],), daemon=True).start()

    def run() -> None:
        error: BaseException | None = None
        try:
            result = call()
        except BaseException as raised:  # any exception belongs to the caller
            error = raised
        else:
            with lock:
                wanted = not abandoned.is_set()
                if wanted:
                    results.append(result)
            if not wanted:
                if late is not None:
                    late(result)
                return
        try:
            loop.call_soon_threadsafe(finish, error)
        except RuntimeError:
            abandon()  # the loop is closed

    threading.Thread(target=run, name="xenlb-call", daemon=True).start()
    try:
        async with asyncio.timeout(limit):
            return await future
    except TimeoutError:
        if future.done() and not future.cancelled():
            raise  # the call's own
        abandon()
        raise CallTimeout(f"no answer within {limit} s") from None
    except asyncio.CancelledError:
        abandon()
        raise
