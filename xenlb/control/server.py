"""The server of the control socket: permissions, limits, requests and answers.

Only one agent serves a socket. Requests, clients of each user, and unsent output are limited, so
that no client can delay the agent or lock root out.
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

from xenlb.control.accept import accept_connections
from xenlb.control.client_limits import ClientSlots
from xenlb.control.json_chunks import SIZE, json_chunks
from xenlb.control.lock import Lock
from xenlb.control.protocol import NOT_PERMITTED, REQUEST_LIMIT, USAGE, ControlError
from xenlb.untrusted.printable import printable

log = logging.getLogger(__name__)

# Seconds until a client that sends no request, or reads nothing of its answer, is disconnected.
PATIENCE = 10.0
BACKLOG = 128
REFUSED = 64  # refused clients whose connection stays open to read the error
BATCH, PAUSE = 16, 0.002  # a user who connects without end takes a tenth of the loop's time
AT_ONCE = 8  # chunks of answers that are written in one round of the loop
CHECK_INTERVAL = 5.0  # seconds between two checks whether the socket still exists


@dataclass(frozen=True, slots=True)
class Handler:
    """The handler of a verb; it returns one value, or a stream of items.

    `call` gets the client's request with "by" set to the requester. Verbs that change something
    (`writes`) are for root only. A stream ends when its client disconnects; a single answer is
    completed.
    """

    call: Callable[[Mapping[str, object]], Awaitable[object] | AsyncIterator[object]]
    writes: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientProcess:
    """The process at the other end, as the kernel reports it."""

    pid: int
    uid: int


class _Disconnected(Exception):
    """The client disconnected, or read nothing of its answer for too long."""


class ControlServer:
    """Serves `handlers` at the unix socket `path` while its context is entered.

    Entering raises ControlError if another agent serves there, OSError if the socket cannot be
    created. `lock` may be held already. `group` may read; without such a group, only root may.
    """

    def __init__(
        self,
        path: Path,
        handlers: Mapping[str, Handler],
        *,
        group: str = "libvirt",
        patience: float = PATIENCE,
        check_interval: float = CHECK_INTERVAL,
        lock: Lock | None = None,
    ) -> None:
        self.path = path
        self._handlers = handlers
        self._group = group
        self._patience = patience
        self._check_interval = check_interval
        self._lock = lock or Lock(path)
        self._identity: tuple[int, int] | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._slots = ClientSlots()
        self._refused = deque[socket.socket]()  # they may still send their request
        self._checking: asyncio.Task[None] | None = None
        self._clients: set[asyncio.Task[None]] = set()
        self._writing = asyncio.Semaphore(AT_ONCE)

    async def __aenter__(self) -> Self:
        self._lock.take()
        try:
            self._serve_here()
        except BaseException:
            self._lock.release()
            raise
        self._checking = asyncio.create_task(self._check_socket(), name="check the control socket")
        return self

    def _serve_here(self) -> None:
        listening = self._listen()
        self._accepting = asyncio.create_task(self._accept(listening), name="control socket")

    async def _accept(self, listening: socket.socket) -> None:
        with listening:
            await accept_connections(listening, self._take, batch=BATCH, pause=PAUSE)

    def _take(self, connection: socket.socket, _address: object) -> None:
        """Serve a client, or refuse it before it costs anything, by its user's limit."""
        connection.setblocking(False)
        pid, uid, _gid = struct.unpack(
            "3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        )
        refusal = self._slots.refusal(uid)
        if refusal:
            error = ControlError(refusal, hint="end some of them, or try again later", busy=True)
            with contextlib.suppress(OSError):
                connection.send(json.dumps(error.as_json()).encode() + b"\n")
                connection.shutdown(socket.SHUT_WR)
            self._refused.append(connection)
            if len(self._refused) > REFUSED:
                self._refused.popleft().close()
            return
        self._slots.take(uid)
        client = ClientProcess(pid=pid, uid=uid)
        task = asyncio.create_task(self._converse(connection, client), name=f"client {pid}")
        self._clients.add(task)
        task.add_done_callback(functools.partial(self._forget, connection, uid))

    def _forget(self, connection: socket.socket, uid: int, task: asyncio.Task[None]) -> None:
        self._clients.discard(task)
        self._slots.release(uid)
        connection.close()  # a task that was cancelled before it began has not closed it

    async def _check_socket(self) -> None:
        """Create the socket and its lock again if they were removed, as by a cleaner of /run."""
        complaint = ""
        while True:
            await asyncio.sleep(self._check_interval)
            try:
                self._lock.take()
                if _identity(self.path) == self._identity:
                    continue
                old = self._accepting
                self._serve_here()
                if old is not None:
                    old.cancel()
                log.warning("%s was removed; it has been created again", self.path)
                complaint = ""
            except (OSError, ControlError) as error:
                if str(error) != complaint:
                    log.warning("%s was removed and cannot be created again: %s", self.path, error)
                complaint = str(error)

    async def __aexit__(self, *_: object) -> None:
        if self._checking is not None:
            self._checking.cancel()
            await asyncio.wait({self._checking})
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
        """Create the socket under another name and rename it.

        Clients never see it with the wrong permissions, and the socket file of a killed agent is
        replaced in one step.
        """
        new = self.path.with_name(f".{self.path.name}.new")
        new.unlink(missing_ok=True)
        listening = socket.socket(
            socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        )
        try:
            mask = os.umask(0o177)
            try:
                listening.bind(os.fspath(new))
            except OSError as error:  # the error does not name the file
                raise OSError(error.errno, error.strerror, os.fspath(new)) from None
            finally:
                os.umask(mask)
            self._permit_group(new)
            listening.listen(BACKLOG)
            new.replace(self.path)
            self._identity = _identity(self.path)
        except BaseException:
            listening.close()
            new.unlink(missing_ok=True)
            raise
        return listening

    def _permit_group(self, path: Path) -> None:
        try:
            os.chown(path, -1, grp.getgrnam(self._group).gr_gid)
        except (KeyError, PermissionError) as error:
            log.debug("the control socket is for its owner only: %s", error)
        else:
            path.chmod(0o660)

    async def _converse(self, connection: socket.socket, client: ClientProcess) -> None:
        reader, writer = await asyncio.open_connection(sock=connection, limit=REQUEST_LIMIT)
        try:
            await self._serve(reader, writer, client)
        except (_Disconnected, OSError, asyncio.CancelledError) as error:
            # Only __aexit__ cancels, and it needs no exception.
            log.debug("a client of the control socket was disconnected: %s", type(error).__name__)
            writer.transport.abort()
        finally:
            writer.close()

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, client: ClientProcess
    ) -> None:
        writer.transport.set_write_buffer_limits(high=SIZE)
        try:
            request = await self._read_request(reader)
            await self._answer(request, client, reader, writer)
        except ControlError as error:
            await self._send(writer, error.as_json())
        async with asyncio.timeout(self._patience):
            await writer.drain()
            writer.close()
            await writer.wait_closed()

    async def _read_request(self, reader: asyncio.StreamReader) -> dict[str, object]:
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
        client: ClientProcess,
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
        if handler.writes and client.uid != 0:
            raise ControlError(f"only root may {verb}", hint="run it as root", status=NOT_PERMITTED)
        if _expired(request.pop("until", None)) and handler.writes:
            raise ControlError(f"the request {verb} has expired", hint="try again")
        request["by"] = _requester(client, request.get("by"))
        try:
            answer = handler.call(request)
            if isinstance(answer, AsyncIterator):
                await self._stream(answer, reader, writer)
                value = None
            else:
                value = await answer
            await self._send(writer, {"ok": value})
        except (ControlError, _Disconnected):
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
        gone = asyncio.ensure_future(_disconnected(reader))
        step: asyncio.Future[object] | None = None
        try:
            while True:
                step = asyncio.ensure_future(anext(items, self))
                await asyncio.wait({step, gone}, return_when=asyncio.FIRST_COMPLETED)
                if not step.done():
                    raise _Disconnected("the client disconnected")
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
        for chunk in json_chunks(value):
            if last:
                await self._write(writer, last)
            last = chunk
        await self._write(writer, f"{last}\n")

    async def _write(self, writer: asyncio.StreamWriter, chunk: str) -> None:
        async with self._writing:
            writer.write(chunk.encode())
            await asyncio.sleep(0)
        try:
            async with asyncio.timeout(self._patience):
                await writer.drain()
        except OSError as error:
            raise _Disconnected(f"the client read no answer: {error!r}") from error


async def _disconnected(reader: asyncio.StreamReader) -> None:
    """Return when the client disconnects."""
    while await reader.read(4096):
        pass


def _expired(until: object) -> bool:
    """Whether the client has given up: an agent that hung must not carry out old requests.

    `until` is in seconds of CLOCK_BOOTTIME.
    """
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    return isinstance(until, int | float) and now > until


def _requester(client: ClientProcess, name: object) -> str:
    """The requester, for the event log. root may name the user behind it, as with sudo."""
    if client.uid != 0:
        return f"uid {client.uid}"
    if isinstance(name, str) and name:
        return printable(name, 64)
    return "root"


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return (status.st_dev, status.st_ino) if stat.S_ISSOCK(status.st_mode) else None
