"""Insight into a running agent: its state as JSON, and the stacks of its tasks and threads."""

import asyncio
import faulthandler
import json
import logging
import signal
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any

from xenlb import __version__, clock
from xenlb.model.state import State

log = logging.getLogger(__name__)

FEW = 64  # entries of a value that are encoded at once
AT_ONCE = 4096  # characters that are encoded before the loop runs on: half a millisecond
NAMES = 5  # tasks that are named of those with the same stack
# Fields that may hold a password or a token.
CONCEALED: Mapping[str, Callable[[Any], Any]] = {
    "send": lambda text: text and f"({len(text)} characters)",
    "command": lambda words: [*words[:1], *("(argument)" for _ in words[1:])],
    "path": lambda path: path.partition("?")[0] + "?(query)" * ("?" in path),
}


# --- the state as JSON ----------------------------------------------------------------------------


async def state_answer(state: State) -> dict[str, object]:
    """The answer to `debug-state`, made while the loop runs on.

    A dataclass is an object with all fields, a mapping a list of objects with `key` and `value`.
    Times are seconds of the boot-time clock, as `now` is.
    """
    now, parts, size = clock.now(), [], 0
    for part in _parts(state):
        parts.append(part)
        size += len(part)
        if size > AT_ONCE:
            await asyncio.sleep(0)
            size = 0
    return {"version": __version__, "time": clock.wall(now), "now": now, "state": iter(parts)}


def _parts(value: Any, depth: int = 3) -> Iterator[str]:
    """`depth`: dataclasses of so many levels are taken apart, however few entries they have."""
    plain = value
    if is_dataclass(value) and (depth or _has_many_entries(value)):
        plain = _plain(value)
    if not isinstance(plain, tuple | dict):
        yield _ENCODER.encode(value)
        return
    start, end = "{}" if isinstance(plain, dict) else "[]"
    yield start
    for number, item in enumerate(plain):
        yield "," if number else ""
        if isinstance(plain, dict):
            yield f"{json.dumps(item)}:"
        yield from _parts(plain[item] if isinstance(plain, dict) else item, max(depth - 1, 0))
    yield end


def _has_many_entries(value: Any) -> bool:
    items = (getattr(value, name) for name in _names(value.__class__))
    return any(isinstance(item, tuple) and len(item) > FEW for item in items)


def _plain(value: Any) -> Any:
    """The value in a type that `json` knows; its items may need the same."""
    if is_dataclass(value):
        items = {name: getattr(value, name) for name in _names(value.__class__)}
        return {
            name: CONCEALED[name](item) if name in CONCEALED else _entries(item)
            for name, item in items.items()
        }
    return sorted(value, key=str) if isinstance(value, frozenset) else str(value)


def _entries(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    return tuple({"key": key, "value": _entries(item)} for key, item in value.items())


@cache
def _names(kind: Any) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind))


_ENCODER = json.JSONEncoder(default=_plain)


# --- stacks, on a signal --------------------------------------------------------------------------


def install(loop: asyncio.AbstractEventLoop) -> None:
    """Install signal handlers that write stacks to stderr and the log.

    SIGUSR1 writes those of all threads and tasks, a fatal signal those of the threads. The threads
    come first, and also if the loop is blocked.
    """
    faulthandler.enable()
    loop.add_signal_handler(signal.SIGUSR1, lambda: log.warning("%s", tasks_text()))
    faulthandler.register(signal.SIGUSR1, chain=True)


def tasks_text() -> str:
    """Return all tasks of the running loop with their stacks, and the names of the threads.

    The innermost call is last; tasks with the same stack are listed together.
    """
    names = defaultdict[str, list[str]](list)
    for task in asyncio.all_tasks():
        names["".join(_stack(task.get_coro()))].append(task.get_name())
    lines = []
    for stack, tasks in sorted(names.items(), key=lambda item: item[1]):
        more = f" and {len(tasks) - NAMES} more" if len(tasks) > NAMES else ""
        lines.append(f"task {', '.join(sorted(tasks)[:NAMES])}{more}\n{stack}")
    threads = ", ".join(f"{each.name} 0x{each.ident or 0:016x}" for each in threading.enumerate())
    count = sum(map(len, names.values()))
    return f"{count} tasks, threads: {threads}\n{''.join(lines)}".rstrip()


def _stack(waiting: Any) -> Iterator[str]:
    """A line for each coroutine or generator that waits for the next one."""
    while waiting is not None:
        for prefix, inner in (("cr", "cr_await"), ("gi", "gi_yieldfrom"), ("ag", "ag_await")):
            frame = getattr(waiting, f"{prefix}_frame", None)
            if frame is not None:
                code = frame.f_code
                yield f'  File "{code.co_filename}", line {frame.f_lineno}, in {code.co_qualname}\n'
                waiting = getattr(waiting, inner)
                break
        else:
            return
