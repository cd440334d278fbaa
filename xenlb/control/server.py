"""The agent's side of the control socket: who may ask, how much, and how an answer goes out.

What the verbs do is the agent's business (handlers). Here: only one agent runs at a socket, the
socket's rights, a bound on requests, on clients of each user and on what waits to be sent, so that
no client can hold the agent up, nor keep root out.
"""

import asyncio
import contextlib
import functools
import grp
import json
import logging
import os
import socket
import stat
import struct
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from xenlb.control.client_limits import ClientLimits
from xenlb.control.json_pieces import SIZE, pieces
from xenlb.control.lock import Lock
from xenlb.control.protocol import NOT_PERMITTED, REQUEST_LIMIT, USAGE, ControlError
from xenlb.untrusted.printable import printable

log = logging.getLogger(__name__)

# A client that has sent no request, or takes nothing of its answer, for so long is cut off.
PATIENCE = 10.0
BACKLOG = 128
REFUSED = 64  # clients that were told so, and whose end is open until others are refused
# Connections that are taken, or refused, in one go, and the seconds until the next: a user who
# connects without end takes a tenth of the loop.
TOGETHER, BETWEEN = 16, 0.002
AT_ONCE = 8  # pieces of answers that are written in one round of the loop
LOOK = 5.0  # seconds between two looks whether the socket is still there


@dataclass(frozen=True, slots=True)
class Handler:
    """What answers a verb: one value, or items as they come.

    `call` gets the client's object with "by" set to who asks. Verbs that change something
    (`writes`) are for root alone. A stream ends when its client hangs up; a single answer is
    carried to its end.
    """

    call: Callable[[Mapping[str, object]], Awaitable[object] | AsyncIterator[object]]
    writes: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """The process at the other end, as the kernel knows it."""

    pid: int
    uid: int


class _Gone(Exception):
    """The client hung up, or took nothing of its answer for too long."""


class ControlServer:
    """Serves `handlers` at the unix socket `path` while its context is entered.

    Entering raises ControlError when another agent serves there, OSError when the socket
    cannot be made. `lock` may be held already. `group` may read; where there is no such group, root
    alone.
    """

    def __init__(
        self,
        path: Path,
        handlers: Mapping[str, Handler],
        *,
        group: str = "libvirt",
        patience: float = PATIENCE,
        look: float = LOOK,
        lock: Lock | None = None,
    ) -> None:
        self.path = path
        self._handlers = handlers
        self._group = group
        self._patience = patience
        self._every = look
        self._lock = lock or Lock(path)
        self._identity: tuple[int, int] | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._places = ClientLimits()
        self._refused = deque[socket.socket]()  # they may still write their request
        self._looking: asyncio.Task[None] | None = None
        self._clients: set[asyncio.Task[None]] = set()
        self._writing = asyncio.Semaphore(AT_ONCE)

    async def __aenter__(self) -> Self:
        self._lock.take()
        try:
            self._serve_here()
        except BaseException:
            self._lock.release()
            raise
        self._looking = asyncio.create_task(self._look(), name="look at the control socket")
        return self

    def _serve_here(self) -> None:
        listening = self._listen()
        self._accepting = asyncio.create_task(self._accept(listening), name="control socket")

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with listening:
            while True:
                try:
                    self._take((await loop.sock_accept(listening))[0])
                    for _ in range(TOGETHER):
                        self._take(listening.accept()[0])
                except BlockingIOError:
                    await asyncio.sleep(0)
                except OSError as error:  # no file descriptors, or a client that is gone already
                    log.debug("a client of the control socket failed: %s", error)
                    await asyncio.sleep(0.1)
                else:
                    await asyncio.sleep(BETWEEN)

    def _take(self, connection: socket.socket) -> None:
        """Judged by its user before it costs anything."""
        connection.setblocking(False)
        pid, uid, _gid = struct.unpack(
            "3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        )
        why = self._places.refusal(uid)
        if why:
            error = ControlError(why, hint="end some of them, or try again later", busy=True)
            with contextlib.suppress(OSError):
                connection.send(json.dumps(error.as_json()).encode() + b"\n")
                connection.shutdown(socket.SHUT_WR)
            self._refused.append(connection)
            if len(self._refused) > REFUSED:
                self._refused.popleft().close()
            return
        self._places.take(uid)
        peer = Peer(pid=pid, uid=uid)
        task = asyncio.create_task(self._accepted(connection, peer), name=f"client {pid}")
        self._clients.add(task)
        task.add_done_callback(functools.partial(self._left, connection, uid))

    def _left(self, connection: socket.socket, uid: int, task: asyncio.Task[None]) -> None:
        self._clients.discard(task)
        self._places.leave(uid)
        connection.close()  # a task that was cancelled before it began has not done so

    async def _look(self) -> None:
        """Makes the socket and its lock anew where they were removed (a cleaner of /run)."""
        complaint = ""
        while True:
            await asyncio.sleep(self._every)
            try:
                self._lock.take()
                if _identity(self.path) == self._identity:
                    continue
                old = self._accepting
                self._serve_here()
                if old is not None:
                    old.cancel()
                log.warning("%s was removed: it is made anew", self.path)
                complaint = ""
            except (OSError, ControlError) as error:
                if str(error) != complaint:
                    log.warning("%s was removed and cannot be made anew: %s", self.path, error)
                complaint = str(error)

    async def __aexit__(self, *_: object) -> None:
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait({self._looking})
        if self._accepting is not None:
            self._accepting.cancel()
            await asyncio.wait({self._accepting})
        for connection in self._refused:
            connection.close()
        for task in self._clients:
            task.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)
        with contextlib.suppress(OSError):
            if _identity(self.path) == self._identity:
                self.path.unlink()
        self._lock.release()

    def _listen(self) -> socket.socket:
        """Made under another name and renamed: clients never see it with the wrong rights, and
        the socket file of an agent that was killed is replaced in one step."""
        new = self.path.with_name(f".{self.path.name}.new")
        new.unlink(missing_ok=True)
        listening = socket.socket(
            socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        )
        try:
            mask = os.umask(0o177)
            try:
                listening.bind(os.fspath(new))
            except OSError as error:  # it does not say of which file
                raise OSError(error.errno, error.strerror, os.fspath(new)) from None
            finally:
                os.umask(mask)
            self._let_group_in(new)
            listening.listen(BACKLOG)
            new.replace(self.path)
            self._identity = _identity(self.path)
        except BaseException:
            listening.close()
            new.unlink(missing_ok=True)
            raise
        return listening

    def _let_group_in(self, path: Path) -> None:
        try:
            os.chown(path, -1, grp.getgrnam(self._group).gr_gid)
        except (KeyError, PermissionError) as error:
            log.debug("the control socket is for its owner alone: %s", error)
        else:
            path.chmod(0o660)

    async def _accepted(self, connection: socket.socket, peer: Peer) -> None:
        reader, writer = await asyncio.open_connection(sock=connection, limit=REQUEST_LIMIT)
        try:
            await self._serve(reader, writer, peer)
        except (_Gone, OSError, asyncio.CancelledError) as error:
            # Cancelled only by __aexit__, which waits for the end and needs no exception.
            log.debug("a client of the control socket was left: %s", type(error).__name__)
            writer.transport.abort()
        finally:
            writer.close()

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: Peer
    ) -> None:
        writer.transport.set_write_buffer_limits(high=SIZE)
        try:
            request = await self._read(reader)
            await self._answer(request, peer, reader, writer)
        except ControlError as error:
            await self._send(writer, error.as_json())
        async with asyncio.timeout(self._patience):
            await writer.drain()
            writer.close()
            await writer.wait_closed()

    async def _read(self, reader: asyncio.StreamReader) -> dict[str, object]:
        try:
            async with asyncio.timeout(self._patience):
                line = await reader.readuntil(b"\n")
        except asyncio.IncompleteReadError as incomplete:
            line = incomplete.partial
        except asyncio.LimitOverrunError:
            raise ControlError(
                f"the request is longer than {REQUEST_LIMIT} bytes", status=USAGE
            ) from None
        try:
            request = json.loads(line)
        except (ValueError, RecursionError):
            request = None
        if not isinstance(request, dict) or not isinstance(request.get("verb"), str):
            raise ControlError(
                "the request is not understood",
                hint='it must be one line of JSON: {"verb": "status"}',
                status=USAGE,
            )
        return request

    async def _answer(
        self,
        request: dict[str, object],
        peer: Peer,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        verb = str(request["verb"])
        handler = self._handlers.get(verb)
        if handler is None:
            raise ControlError(
                f"this agent does not know the request '{verb[:64]}'",
                hint="the agent is of another version; restart it: systemctl restart xenlb",
                status=USAGE,
            )
        if handler.writes and peer.uid != 0:
            raise ControlError(f"only root may {verb}", hint="run it as root", status=NOT_PERMITTED)
        if _too_late(request.pop("until", None)) and handler.writes:
            raise ControlError(f"{verb} was asked for too long ago", hint="ask again")
        request["by"] = _by(peer, request.get("by"))
        try:
            answer = handler.call(request)
            if isinstance(answer, AsyncIterator):
                await self._stream(answer, reader, writer)
                value = None
            else:
                value = await answer
            await self._send(writer, {"ok": value})
        except (ControlError, _Gone):
            raise
        except Exception as error:  # a bug in one verb must not stop the balancing
            log.exception("the request %s failed", verb)
            raise ControlError(
                f"the agent failed to answer: {error!r}", hint="see its log: journalctl -u xenlb"
            ) from error

    async def _stream(
        self,
        items: AsyncIterator[object],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        gone = asyncio.ensure_future(_hung_up(reader))
        step: asyncio.Future[object] | None = None
        try:
            while True:
                step = asyncio.ensure_future(anext(items, self))
                await asyncio.wait({step, gone}, return_when=asyncio.FIRST_COMPLETED)
                if not step.done():
                    raise _Gone("the client hung up")
                item = step.result()
                if item is self:
                    return
                await self._send(writer, {"item": item})
        finally:
            gone.cancel()
            if step is not None and not step.done():
                step.cancel()
                await asyncio.wait({step})
            if isinstance(items, AsyncGenerator):
                await items.aclose()

    async def _send(self, writer: asyncio.StreamWriter, value: object) -> None:
        last = ""
        for piece in pieces(value):
            if last:
                await self._put(writer, last)
            last = piece
        await self._put(writer, f"{last}\n")

    async def _put(self, writer: asyncio.StreamWriter, piece: str) -> None:
        async with self._writing:
            writer.write(piece.encode())
            await asyncio.sleep(0)
        try:
            async with asyncio.timeout(self._patience):
                await writer.drain()
        except OSError as error:
            raise _Gone(f"the client took no answer: {error!r}") from error


async def _hung_up(reader: asyncio.StreamReader) -> None:
    """Returns at the end of what the client sends; there is nothing more to come."""
    while await reader.read(4096):
        pass


def _too_late(until: object) -> bool:
    """Has the client given up by now? An agent that hung must not do then what it was asked for
    minutes ago. The clock is CLOCK_BOOTTIME, which both have."""
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    return isinstance(until, int | float) and now > until


def _by(peer: Peer, said: object) -> str:
    """Who asks, for the journal. root may say more (whom sudo stands for); it could do worse."""
    if peer.uid != 0:
        return f"uid {peer.uid}"
    if isinstance(said, str) and said:
        return printable(said, 64)
    return "root"


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return (found.st_dev, found.st_ino) if stat.S_ISSOCK(found.st_mode) else None
