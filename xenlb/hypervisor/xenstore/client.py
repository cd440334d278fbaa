"""Asyncio client of xenstored: reads, directories, watches.

pyxs (0.4.1 was tried) reads in a thread. When xenstored ends, that thread dies of an exception, and
threads that wait for a reply or in Monitor.wait() wait for ever. It does not reconnect. A value can
only be read by a round trip through a second thread, while a guest clears its shutdown request
within 8 ms. Here the callback of a watch runs in the loop's thread right after the read of its
message, and a request made in it is written at once.

The client uses xenstored's socket if there is one, else the kernel's /dev/xen/xenbus (xenstored in
a domain of its own). The environment variable XENSTORED_PATH names another, as for Xen's programs
(libxenstore, tools/libs/store/xs.c).
"""

import asyncio
import errno
import itertools
import os
import socket
import stat
from collections.abc import Callable
from contextlib import suppress

from xenlb.hypervisor.xenstore.wire import Decoder, Garbled, Message, Type, encode, strings

SOCKETS = ("/run/xenstored/socket", "/var/run/xenstored/socket")
DEVICE = "/dev/xen/xenbus"
# Seconds. xenstored answers in milliseconds, and its socket ends with it; but a Dom0 may hang for
# ten seconds. Requests to guests are missed while there is no connection, so it is given up late.
ANSWER = 30.0


class XenstoreUnavailable(Exception):
    """There is no xenstored, or the connection is lost. `code`: an errno, 0 for none."""

    def __init__(self, reason: str, *, code: int = 0) -> None:
        super().__init__(reason)
        self.code = code


class XenstoreError(Exception):
    """xenstored answered with an error; `code` is an errno."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.code: int = getattr(errno, name, 0)


class XenstoreClient:
    """One connection. `on_watch(path, token)` is called in the loop's thread.

    `lost` is done, with the reason, once the connection has ended.
    """

    def __init__(self, on_watch: Callable[[str, str], None]) -> None:
        self._on_watch = on_watch
        self._loop = asyncio.get_running_loop()
        self.lost: asyncio.Future[str] = self._loop.create_future()
        self._fd = -1
        self._owner: socket.socket | None = None
        self._device = False
        self._decoder = Decoder()
        self._requests = itertools.count(1)
        self._pending: dict[int, tuple[Type, asyncio.Future[bytes]]] = {}
        self._unsent = bytearray()

    def connect(self, path: str | None = None) -> None:
        """Connect to `path`, by default to xenstored's usual paths. Raises XenstoreUnavailable."""
        path = path or os.environ.get("XENSTORED_PATH")
        reason, code = "there is no xenstored", 0
        for candidate in (path,) if path is not None else (*SOCKETS, DEVICE):
            try:
                self._connect(candidate)
            except FileNotFoundError:
                continue
            except OSError as error:
                reason, code = f"{candidate}: {error.strerror or error}", error.errno or 0
                continue
            self._loop.add_reader(self._fd, self._readable)
            return
        raise XenstoreUnavailable(reason, code=code)

    def _connect(self, path: str) -> None:
        if stat.S_ISCHR(os.stat(path).st_mode):
            self._device = True
            self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            return
        owner = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            owner.setblocking(False)
            # A Unix socket connects at once; EAGAIN means that the listener's queue is full.
            owner.connect(path)
        except OSError:
            owner.close()
            raise
        self._owner, self._fd = owner, owner.fileno()

    def close(self, reason: str = "closed here") -> None:
        """End the connection and fail every pending request; may be repeated."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            self._loop.remove_writer(self._fd)
            with suppress(OSError):
                if self._owner is not None:
                    self._owner.close()
                else:
                    os.close(self._fd)
            self._fd, self._owner = -1, None
        pending, self._pending = self._pending, {}
        for _, future in pending.values():
            if not future.done():
                future.set_exception(XenstoreUnavailable(reason))
                future.exception()  # marks it as retrieved: its caller may be gone
        if not self.lost.done():
            self.lost.set_result(reason)

    # --- requests --------------------------------------------------------------------------------

    def request(self, type_: Type, *parts: str) -> "asyncio.Future[bytes]":
        """Send at once and return a future of the reply. Raises XenstoreUnavailable.

        The future raises XenstoreError or XenstoreUnavailable.
        """
        if self._fd < 0:
            raise XenstoreUnavailable("not connected")
        number = next(self._requests) & 0xFFFFFFFF
        future: asyncio.Future[bytes] = self._loop.create_future()
        self._pending[number] = (type_, future)
        self._unsent += encode(type_, number, *parts)
        self._send()
        return future

    async def call(self, type_: Type, *parts: str) -> bytes:
        """Send a request and return the reply. Raises XenstoreError or XenstoreUnavailable.

        After ANSWER seconds without a reply it closes the connection (XenstoreUnavailable).
        """
        try:
            async with asyncio.timeout(ANSWER):
                return await self.request(type_, *parts)
        except TimeoutError:
            self.close("xenstored does not answer")
            raise XenstoreUnavailable("xenstored does not answer") from None

    async def read(self, path: str) -> str | None:
        """Return the value of a path, None if it does not exist."""
        try:
            payload = await self.call(Type.READ, path)
        except XenstoreError as error:
            if error.code == errno.ENOENT:
                return None
            raise
        return payload.decode("ascii", errors="replace")

    async def directory(self, path: str) -> tuple[str, ...]:
        """Return the names below a path, none if it does not exist."""
        try:
            return strings(await self.call(Type.DIRECTORY, path))
        except XenstoreError as error:
            if error.code == errno.ENOENT:
                return ()
            raise

    async def watch(self, path: str, token: str) -> None:
        """Have `on_watch` called now and after every change at or below the path."""
        await self.call(Type.WATCH, path, token)

    async def is_introduced(self, domid: int) -> bool:
        """Whether xenstored is connected to the domain."""
        return (await self.call(Type.IS_DOMAIN_INTRODUCED, str(domid))).startswith(b"T")

    # --- the connection --------------------------------------------------------------------------

    def _send(self) -> None:
        try:
            sent = os.write(self._fd, self._unsent)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._loop.call_soon(self.close, f"writing to xenstored: {error.strerror}")
            return
        del self._unsent[:sent]
        if self._unsent:
            self._loop.add_writer(self._fd, self._writable)

    def _writable(self) -> None:
        self._loop.remove_writer(self._fd)
        self._send()

    def _readable(self) -> None:
        try:
            data = os.read(self._fd, 65536)
        except BlockingIOError:
            return
        except OSError as error:
            self.close(f"reading from xenstored: {error.strerror}")
            return
        if not data:
            self.close("xenstored has closed the connection")
            return
        try:
            for message in self._decoder.feed(data):
                self._handle(message)
        except Garbled as error:
            self.close(f"the stream of xenstored is malformed: {error}")

    def _handle(self, message: Message) -> None:
        if message.type == Type.WATCH_EVENT:
            path, token, *_ = (*strings(message.payload), "", "")
            self._on_watch(path, token)
            return
        request = message.request
        if request not in self._pending and self._device:
            # The kernel answers WATCH and UNWATCH itself, with request id 0, in order.
            same_type = (n for n, (type_, _) in self._pending.items() if type_ == message.type)
            request = next(same_type, request)
        _, future = self._pending.pop(request, (None, None))
        if future is None or future.done():
            return  # its caller is gone
        if message.type == Type.ERROR:
            future.set_exception(
                XenstoreError(message.payload.rstrip(b"\0").decode("ascii", "replace"))
            )
        else:
            future.set_result(message.payload)
