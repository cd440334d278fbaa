"""libvirt's event loop on top of asyncio, safe to be called from any thread.

libvirt needs a program that watches its sockets and runs its timers. libvirtaio, which ships with
libvirt-python, does that for programs that make every libvirt call in the loop's thread. This agent
makes none there: a call on a hung daemon never returns. A call in another thread changes the
watched sockets and timers *from that thread*, as the remote driver takes the socket away from the
loop while it waits for its reply. libvirtaio then calls add_reader(), remove_reader() and
ensure_future() in the wrong thread: the loop is not woken, two threads edit one selector, and in
asyncio's debug mode each such call raises.

Here the six functions that libvirt calls only record what is wanted and schedule, with
call_soon_threadsafe(), an update of the loop's selector and timers. The update reads the record
when it runs, so the order of the functions' calls does not matter.

The module also finds and shuts down the socket of a connection, for which libvirt has no function.
"""

import asyncio
import itertools
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import libvirt

log = logging.getLogger(__name__)

READABLE = 1  # VIR_EVENT_HANDLE_READABLE
WRITABLE = 2  # VIR_EVENT_HANDLE_WRITABLE

# libvirt-python passes it to each callback: (function, its data, its destructor).
Opaque = Any


@dataclass(slots=True, kw_only=True)
class _Handle:
    number: int
    fd: int
    wanted: int
    call: Callable[[int, int, int, Opaque], None]
    opaque: Opaque
    removed: bool = False


@dataclass(slots=True, kw_only=True)
class _Timer:
    number: int
    wanted: int  # milliseconds; 0: in each round of the loop; negative: off
    call: Callable[[int, Opaque], None]
    opaque: Opaque
    removed: bool = False
    armed: asyncio.Handle | None = None


@dataclass(slots=True)
class EventLoop:
    """The process's one implementation; `attach` sets the asyncio loop it runs on."""

    loop: asyncio.AbstractEventLoop | None = None
    _numbers: "itertools.count[int]" = field(default_factory=lambda: itertools.count(1))
    _handles: dict[int, _Handle] = field(default_factory=dict)
    _timers: dict[int, _Timer] = field(default_factory=dict)
    _by_fd: dict[int, list[_Handle]] = field(default_factory=dict)
    _watched: dict[int, int] = field(default_factory=dict)
    _open: dict[int, _Handle] = field(default_factory=dict)  # descriptor not closed yet
    # `numbers`: a list to which the handles that libvirt adds in this thread are appended.
    collected: threading.local = field(default_factory=threading.local)

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Run on `loop` from now on, with the handles and timers of an earlier one."""
        if loop is self.loop:
            return
        self.loop = loop
        self._by_fd.clear()
        self._watched.clear()
        for handle in tuple(self._handles.values()):
            self._soon(self._adopt, handle)
        for timer in tuple(self._timers.values()):
            timer.armed = None
            self._soon(self._arm, timer)

    @property
    def idle(self) -> bool:
        """Whether nothing is watched and no timer set, as it must be without a connection."""
        return not (self._handles or self._timers or self._by_fd or self._watched)

    def _soon(self, call: Callable[..., object], *args: object) -> None:
        # Always through the loop's queue, also in the loop's thread: libvirt forbids the destructor
        # to run inside its own call, and one queue keeps the order.
        assert self.loop is not None
        try:
            self.loop.call_soon_threadsafe(call, *args)
        except RuntimeError:  # the loop is closed; the call of an abandoned thread has returned
            log.debug("libvirt calls an event loop that is closed")

    # --- called by libvirt, in any thread --------------------------------------------------------

    def add_handle(
        self, fd: int, events: int, call: Callable[[int, int, int, Opaque], None], opaque: Opaque
    ) -> int:
        """Watch a descriptor for `events` (READABLE, WRITABLE) and return the handle's number."""
        handle = _Handle(number=next(self._numbers), fd=fd, wanted=events, call=call, opaque=opaque)
        self._handles[handle.number] = self._open[handle.number] = handle
        numbers: list[int] | None = getattr(self.collected, "numbers", None)
        if numbers is not None:
            numbers.append(handle.number)
        self._soon(self._adopt, handle)
        return handle.number

    def update_handle(self, number: int, events: int) -> None:
        """Set the watched events; 0 suspends the handle."""
        handle = self._handles.get(number)
        if handle is not None:
            handle.wanted = events
            self._soon(self._update_selector, handle.fd)

    def remove_handle(self, number: int) -> int:
        """Stop watching, and have the destructor called; return 0, or -1 for an unknown number."""
        handle = self._handles.pop(number, None)
        if handle is None:
            return -1
        handle.removed = True
        self._soon(self._drop, handle)
        return 0

    def add_timer(
        self, milliseconds: int, call: Callable[[int, Opaque], None], opaque: Opaque
    ) -> int:
        """Start a timer that repeats, and return its number; negative `milliseconds`: it is off."""
        timer = _Timer(number=next(self._numbers), wanted=milliseconds, call=call, opaque=opaque)
        self._timers[timer.number] = timer
        self._soon(self._arm, timer)
        return timer.number

    def update_timer(self, number: int, milliseconds: int) -> None:
        """Restart a timer with another interval; a negative one switches it off."""
        timer = self._timers.get(number)
        if timer is not None:
            timer.wanted = milliseconds
            self._soon(self._arm, timer)

    def remove_timer(self, number: int) -> int:
        """Stop a timer, and have the destructor called; return 0, or -1 for an unknown number."""
        timer = self._timers.pop(number, None)
        if timer is None:
            return -1
        timer.removed = True
        self._soon(self._disarm, timer)
        return 0

    # --- in the loop's thread --------------------------------------------------------------------

    def _adopt(self, handle: _Handle) -> None:
        self._by_fd.setdefault(handle.fd, []).append(handle)
        self._update_selector(handle.fd)

    def _drop(self, handle: _Handle) -> None:
        handles = self._by_fd.get(handle.fd, [])
        if handle in handles:
            handles.remove(handle)
        if not handles:
            self._by_fd.pop(handle.fd, None)
        self._update_selector(handle.fd)
        # Only now may libvirt close the descriptor: the destructor gives up its reference.
        self._open.pop(handle.number, None)
        libvirt.virEventInvokeFreeCallback(handle.opaque)

    def hang_up(self, number: int) -> None:
        """Shut a socket down: reads and writes of all threads end."""
        handle = self._open.get(number)
        if handle is None:
            return
        # Of a duplicate: libvirt closes its own descriptor itself.
        with suppress(OSError), socket.socket(fileno=os.dup(handle.fd)) as own:
            own.shutdown(socket.SHUT_RDWR)

    def _update_selector(self, fd: int) -> None:
        """Have the selector watch `fd` for what its handles want."""
        assert self.loop is not None
        wanted = 0
        for handle in self._by_fd.get(fd, ()):
            if not handle.removed:
                wanted |= handle.wanted
        wanted &= READABLE | WRITABLE
        watched = self._watched.get(fd, 0)
        if wanted & READABLE and not watched & READABLE:
            self.loop.add_reader(fd, self._ready, fd, READABLE)
        elif watched & READABLE and not wanted & READABLE:
            self.loop.remove_reader(fd)
        if wanted & WRITABLE and not watched & WRITABLE:
            self.loop.add_writer(fd, self._ready, fd, WRITABLE)
        elif watched & WRITABLE and not wanted & WRITABLE:
            self.loop.remove_writer(fd)
        if wanted:
            self._watched[fd] = wanted
        else:
            self._watched.pop(fd, None)

    def _ready(self, fd: int, event: int) -> None:
        for handle in tuple(self._by_fd.get(fd, ())):
            if not handle.removed and handle.wanted & event:
                handle.call(handle.number, fd, event, handle.opaque)

    def _arm(self, timer: _Timer) -> None:
        assert self.loop is not None
        if timer.armed is not None:
            timer.armed.cancel()
            timer.armed = None
        if timer.removed or timer.wanted < 0:
            return
        if timer.wanted == 0:
            timer.armed = self.loop.call_soon(self._expired, timer)
        else:
            timer.armed = self.loop.call_later(timer.wanted / 1000, self._expired, timer)

    def _disarm(self, timer: _Timer) -> None:
        self._arm(timer)
        libvirt.virEventInvokeFreeCallback(timer.opaque)

    def _expired(self, timer: _Timer) -> None:
        timer.armed = None
        if timer.removed or timer.wanted < 0:
            return
        self._arm(timer)  # libvirt's timers repeat
        timer.call(timer.number, timer.opaque)


IMPLEMENTATION = EventLoop()


def install(loop: asyncio.AbstractEventLoop) -> None:
    """Give libvirt this event loop. Call it before the first connection is opened.

    libvirt accepts one implementation in a process's life.
    """
    if IMPLEMENTATION.loop is None:
        libvirt.virEventRegisterImpl(
            IMPLEMENTATION.add_handle,
            IMPLEMENTATION.update_handle,
            IMPLEMENTATION.remove_handle,
            IMPLEMENTATION.add_timer,
            IMPLEMENTATION.update_timer,
            IMPLEMENTATION.remove_timer,
        )
    IMPLEMENTATION.attach(loop)


class Sockets:
    """The sockets of one connection; none if its driver runs in this process.

    libvirt has no function that returns a connection's descriptor. But it has the descriptor
    watched, from the thread that opens the connection, before its first call to the daemon.
    """

    def __init__(self) -> None:
        self._numbers: list[int] = []

    def __bool__(self) -> bool:
        return bool(self._numbers)

    @contextmanager
    def collect(self) -> Iterator[None]:
        """Context for the opening of the connection, in its thread, after install()."""
        if IMPLEMENTATION.loop is None:
            raise RuntimeError("libvirt has no event loop")
        IMPLEMENTATION.collected.numbers = self._numbers
        try:
            yield
        finally:
            IMPLEMENTATION.collected.numbers = None

    def hang_up(self) -> None:
        """Shut the sockets down, as if the daemon had ended. In the loop's thread."""
        for number in tuple(self._numbers):
            IMPLEMENTATION.hang_up(number)
