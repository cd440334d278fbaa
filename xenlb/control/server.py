"""The agent's side of the control socket: who may ask, how much, and how an answer goes out.

What the verbs do is the agent's business (handlers). Here: only one agent runs at a socket, the
socket's rights, a bound on requests, on clients and on what waits to be sent, so that no client
can hold the agent up.
"""

import asyncio
import contextlib
import fcntl
import grp
import json
import logging
import os
import socket
import stat
import struct
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from xenlb.control.protocol import NOT_PERMITTED, REQUEST_LIMIT, USAGE, ControlError

log = logging.getLogger(__name__)

# A client that has sent no request, or takes nothing of its answer, for so long is cut off.
PATIENCE = 10.0
CLIENTS = 64
# An answer goes out in pieces of about this size; between two of them the loop runs on.
PIECE = 64 * 1024


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
    cannot be made. `group` may read; where there is no such group, root alone.
    """

    def __init__(
        self,
        path: Path,
        handlers: Mapping[str, Handler],
        *,
        group: str = "libvirt",
        patience: float = PATIENCE,
    ) -> None:
        self.path = path
        self._handlers = handlers
        self._group = group
        self._patience = patience
        self._lock: int | None = None
        self._identity: tuple[int, int] | None = None
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = _only_agent(self.path)
        try:
            listening = self._listen()
            self._server = await asyncio.start_unix_server(
                self._accepted, sock=listening, limit=REQUEST_LIMIT
            )
        except BaseException:
            self._unlock()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._clients:
            task.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)
        with contextlib.suppress(OSError):
            if _identity(self.path) == self._identity:
                self.path.unlink()
        self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

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
            finally:
                os.umask(mask)
            self._let_group_in(new)
            listening.listen(CLIENTS)
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

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._clients.add(task)
        try:
            await self._serve(reader, writer)
        except (_Gone, OSError, asyncio.CancelledError) as error:
            # Cancelled only by __aexit__, which waits for the end and needs no exception.
            log.debug("a client of the control socket was left: %r", error)
            writer.transport.abort()
        finally:
            self._clients.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.set_write_buffer_limits(high=PIECE)
        connection = writer.get_extra_info("socket")
        pid, uid, _gid = struct.unpack(
            "3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        )
        try:
            if len(self._clients) > CLIENTS:
                raise ControlError("the agent has too many clients", hint="try again later")
            request = await self._read(reader)
            await self._answer(request, Peer(pid=pid, uid=uid), reader, writer)
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
        pending: list[str] = []
        size = 0
        for part in _parts(value):
            pending.append(part)
            size += len(part)
            if size >= PIECE:
                await self._put(writer, pending)
                size = 0
        pending.append("\n")
        await self._put(writer, pending)

    async def _put(self, writer: asyncio.StreamWriter, pending: list[str]) -> None:
        writer.write("".join(pending).encode())
        pending.clear()
        try:
            async with asyncio.timeout(self._patience):
                await writer.drain()
        except OSError as error:
            raise _Gone(f"the client took no answer: {error!r}") from error
        await asyncio.sleep(0)


def _parts(value: object, depth: int = 4) -> Iterator[str]:
    """JSON of `value`, bit by bit: the status of a big table at once would stop the loop for
    tens of milliseconds, and a guest's weight with it."""
    if depth and isinstance(value, Mapping) and value:
        for n, (key, each) in enumerate(value.items()):
            yield f"{', ' if n else '{'}{json.dumps(str(key))}: "
            yield from _parts(each, depth - 1)
        yield "}"
    elif depth and isinstance(value, list | tuple) and value:
        for n, each in enumerate(value):
            yield ", " if n else "["
            yield from _parts(each, depth - 1)
        yield "]"
    else:
        yield json.dumps(value)


async def _hung_up(reader: asyncio.StreamReader) -> None:
    """Returns at the end of what the client sends; there is nothing more to come."""
    while await reader.read(4096):
        pass


def _by(peer: Peer, said: object) -> str:
    """Who asks, for the journal. root may say more (whom sudo stands for); it could do worse."""
    if peer.uid != 0:
        return f"uid {peer.uid}"
    if isinstance(said, str) and said.isprintable() and 0 < len(said) <= 64:
        return said
    return "root"


def _only_agent(path: Path) -> int:
    """A lock that lives as long as this process; a second agent would undo what this one does."""
    lock = os.open(
        path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644
    )
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(lock, 0)
        os.pwrite(lock, b"%d\n" % os.getpid(), 0)
    except BlockingIOError:
        pid = os.pread(lock, 32, 0).decode(errors="replace").strip()
        os.close(lock)
        raise ControlError(
            f"another agent runs, pid {pid}",
            hint="there is one agent a host: systemctl status xenlb",
        ) from None
    except BaseException:
        os.close(lock)
        raise
    return lock


def _identity(path: Path) -> tuple[int, int] | None:
    found = path.stat()
    return (found.st_dev, found.st_ino) if stat.S_ISSOCK(found.st_mode) else None
