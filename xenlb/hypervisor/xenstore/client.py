"""A small asyncio client of xenstored: reads, directories, watches.

Why not pyxs (0.4.1 was tried): its reader is a thread; when xenstored goes away that thread dies
of an exception, and whoever waits for an answer or in Monitor.wait() waits for ever, in threads
that nothing can end; there is no reconnecting; a value can only be read by another round trip
through a second thread, where a guest clears its shutdown request within 8 ms. Here a watch is
handed over in the loop's thread from the very read that brought it, and a request made there is
written before anything else happens.

The socket of xenstored is used where there is one, else the kernel's /dev/xen/xenbus (xenstored
in a domain of its own); XENSTORED_PATH in the environment names another, as to Xen's own programs
(libxenstore, tools/libs/store/xs.c). What the paths mean: source.py. Bytes: wire.py.
"""

import asyncio
import errno
import itertools
import logging
import os
import socket
import stat
from collections.abc import Callable
from contextlib import suppress

from xenlb.hypervisor.xenstore.wire import Decoder, Garbled, Message, Type, encode, strings

log = logging.getLogger(__name__)

SOCKETS = ("/run/xenstored/socket", "/var/run/xenstored/socket")
DEVICE = "/dev/xen/xenbus"
# Seconds. xenstored answers in milliseconds, and where it ends, so does its socket; but a Dom0 may
# stand still for ten. What a guest is asked while there is no connection is never heard.
ANSWER = 30.0


class XenstoreUnavailable(Exception):
    """There is no xenstored, or the connection to it is lost. `code`: an errno, 0 for none."""

    def __init__(self, reason: str, *, code: int = 0) -> None:
        super().__init__(reason)
        self.code = code


class XenstoreError(Exception):
    """xenstored answered with an error; `code` is an errno."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.code: int = getattr(errno, name, 0)


class XenstoreClient:
    """One connection. `watched(path, token)` is called in the loop's thread.

    `lost` is done, with the reason, when the connection has ended.
    """

    def __init__(self, watched: Callable[[str, str], None]) -> None:
        self._watched = watched
        self._loop = asyncio.get_running_loop()
        self.lost: asyncio.Future[str] = self._loop.create_future()
        self._fd = -1
        self._owner: socket.socket | None = None
        self._device = False
        self._decoder = Decoder()
        self._requests = itertools.count(1)
        self._waiting: dict[int, tuple[Type, asyncio.Future[bytes]]] = {}
        self._unsent = bytearray()

    def connect(self, path: str | None = None) -> None:
        """To `path`, or to where xenstored is usually found. Raises Unavailable."""
        path = path or os.environ.get("XENSTORED_PATH")
        tried = (path,) if path is not None else (*SOCKETS, DEVICE)
        reason, code = "there is no xenstored", 0
        for each in tried:
            try:
                self._connect(each)
            except FileNotFoundError:
                continue
            except OSError as error:
                reason, code = f"{each}: {error.strerror or error}", error.errno or 0
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
            # A Unix socket connects at once; EAGAIN means that its queue is full.
            owner.connect(path)
        except OSError:
            owner.close()
            raise
        self._owner, self._fd = owner, owner.fileno()

    def close(self, reason: str = "closed here") -> None:
        """Ends the connection and every request that waits; may be called again."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            self._loop.remove_writer(self._fd)
            with suppress(OSError):
                if self._owner is not None:
                    self._owner.close()
                else:
                    os.close(self._fd)
            self._fd, self._owner = -1, None
        waiting, self._waiting = self._waiting, {}
        for _, future in waiting.values():
            if not future.done():
                future.set_exception(XenstoreUnavailable(reason))
                future.exception()  # nobody may be waiting any more: that is no error
        if not self.lost.done():
            self.lost.set_result(reason)

    # --- requests --------------------------------------------------------------------------------

    def request(self, type_: Type, *parts: str) -> "asyncio.Future[bytes]":
        """Sends at once; the answer comes as the future's result. Raises Unavailable.

        The future raises Refused or Unavailable.
        """
        if self._fd < 0:
            raise XenstoreUnavailable("not connected")
        number = next(self._requests) & 0xFFFFFFFF
        future: asyncio.Future[bytes] = self._loop.create_future()
        self._waiting[number] = (type_, future)
        self._unsent += encode(type_, number, *parts)
        self._send()
        return future

    async def ask(self, type_: Type, *parts: str) -> bytes:
        """Raises Refused or Unavailable, also when no answer comes within ANSWER seconds."""
        try:
            async with asyncio.timeout(ANSWER):
                return await self.request(type_, *parts)
        except TimeoutError:
            self.close("xenstored does not answer")
            raise XenstoreUnavailable("xenstored does not answer") from None

    async def read(self, path: str) -> str | None:
        """The value, None where there is no such path."""
        try:
            payload = await self.ask(Type.READ, path)
        except XenstoreError as refused:
            if refused.code == errno.ENOENT:
                return None
            raise
        return payload.decode("ascii", errors="replace")

    async def directory(self, path: str) -> tuple[str, ...]:
        """The names below a path; none where there is no such path."""
        try:
            return strings(await self.ask(Type.DIRECTORY, path))
        except XenstoreError as refused:
            if refused.code == errno.ENOENT:
                return ()
            raise

    async def watch(self, path: str, token: str) -> None:
        """`watched` is called once at once, then at every change at or below the path."""
        await self.ask(Type.WATCH, path, token)

    async def introduced(self, domid: int) -> bool:
        """Does xenstored talk to that domain?"""
        return (await self.ask(Type.IS_DOMAIN_INTRODUCED, str(domid))).startswith(b"T")

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
            self.close(f"what xenstored says is not understood: {error}")

    def _handle(self, message: Message) -> None:
        if message.type == Type.WATCH_EVENT:
            path, token, *_ = (*strings(message.payload), "", "")
            self._watched(path, token)
            return
        request = message.request
        if request not in self._waiting and self._device:
            # The kernel answers WATCH and UNWATCH itself, with request id 0, in order.
            same = (n for n, (type_, _) in self._waiting.items() if type_ == message.type)
            request = next(same, request)
        _, future = self._waiting.pop(request, (None, None))
        if future is None or future.done():
            return  # its caller has gone
        if message.type == Type.ERROR:
            future.set_exception(
                XenstoreError(message.payload.rstrip(b"\0").decode("ascii", "replace"))
            )
        else:
            future.set_result(message.payload)
