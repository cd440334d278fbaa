"""A xenstored on a Unix socket, as far as the agent uses one.

Watches fire as in the real one: once when registered, then for every write at, below or above
the path, in order, never merged. It keeps no permissions and knows no transactions.
"""

import asyncio
import struct
from dataclasses import dataclass, field

_HEADER = struct.Struct("=IIII")
DIRECTORY, READ, WATCH, UNWATCH, WATCH_EVENT, ERROR, INTRODUCED = 1, 2, 4, 5, 15, 16, 17
WRITE = 11


@dataclass(eq=False)
class _Client:
    writer: asyncio.StreamWriter
    watches: list[tuple[str, str]] = field(default_factory=list)


class FakeXenstored:
    """`answering` cleared: requests wait, watches do not. `refusing`: each with that error."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.values: dict[str, str] = {"/local/domain/0/name": "Domain-0"}
        self.introduced: set[int] = {0}
        self.answering = asyncio.Event()
        self.answering.set()
        self.refusing = ""
        self.requests: list[tuple[int, tuple[str, ...]]] = []
        self.clients: set[_Client] = set()
        self._server: asyncio.Server | None = None
        self._handlers: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> "FakeXenstored":
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, self.path)

    async def stop(self) -> None:
        """As if the daemon had been killed: the socket's file stays."""
        assert self._server is not None
        self._server.close()
        self.drop()
        await asyncio.gather(*self._handlers, return_exceptions=True)
        self._server = None

    def drop(self) -> None:
        """Closes every connection."""
        for client in tuple(self.clients):
            client.writer.transport.abort()

    # --- what happens on the host ----------------------------------------------------------------

    def write(self, path: str, value: str) -> None:
        self.values[path] = value
        self._fire(path)

    def remove(self, path: str) -> None:
        for known in [p for p in self.values if p == path or p.startswith(path + "/")]:
            del self.values[known]
        self._fire(path)

    def create(self, domid: int, uuid: str) -> None:
        """As libxl makes a domain: nodes first, '' twice, introduced at the end."""
        base = f"/local/domain/{domid}"
        self.write(f"{base}/vm", f"/vm/{uuid}")
        self.write(f"{base}/control/shutdown", "")
        self.write(f"{base}/control/shutdown", "")
        self.introduced.add(domid)
        self._fire("@introduceDomain")

    def release(self) -> None:
        """A guest has shut down or crashed: who, is not said."""
        self._fire("@releaseDomain")

    def destroy(self, domid: int) -> None:
        self.introduced.discard(domid)
        self.release()
        self.remove(f"/local/domain/{domid}")

    # --- the protocol ----------------------------------------------------------------------------

    def _fire(self, path: str) -> None:
        for client in self.clients:
            for watched, token in client.watches:
                if path == watched or path.startswith(watched + "/"):
                    self._event(client, path, token)
                elif watched.startswith(path + "/") and watched not in self.values:
                    self._event(client, watched, token)  # it went with its parent

    def _event(self, client: _Client, path: str, token: str) -> None:
        self._send(client, WATCH_EVENT, 0, f"{path}\0{token}\0".encode())

    @staticmethod
    def _send(client: _Client, kind: int, request: int, payload: bytes) -> None:
        client.writer.write(_HEADER.pack(kind, request, 0, len(payload)) + payload)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = _Client(writer)
        self.clients.add(client)
        task = asyncio.current_task()
        assert task is not None
        self._handlers.add(task)
        try:
            while True:
                kind, request, _, length = _HEADER.unpack(await reader.readexactly(_HEADER.size))
                payload = await reader.readexactly(length)
                await self.answering.wait()
                # The value that is written has no zero byte at its end.
                text = payload.decode()
                parts = tuple((text if kind == WRITE else text.removesuffix("\0")).split("\0"))
                self.requests.append((kind, parts))
                self._answer(client, kind, request, parts)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.clients.discard(client)
            self._handlers.discard(task)
            writer.close()

    def _answer(self, client: _Client, kind: int, request: int, parts: tuple[str, ...]) -> None:
        path = parts[0]
        error = ""
        answer = b"OK\0"
        if self.refusing:
            error = self.refusing
        elif kind == READ:
            answer = self.values.get(path, "").encode()
            error = "" if path in self.values else "ENOENT"
        elif kind == DIRECTORY:
            below = [p[len(path) + 1 :] for p in self.values if p.startswith(path + "/")]
            names = sorted({rest.split("/")[0] for rest in below})
            answer = b"".join(name.encode() + b"\0" for name in names)
            error = "" if names or path in self.values else "ENOENT"
        elif kind == WATCH:
            if (path, parts[1]) in client.watches:
                error = "EEXIST"
            else:
                client.watches.append((path, parts[1]))
        elif kind == UNWATCH:
            if (path, parts[1]) in client.watches:
                client.watches.remove((path, parts[1]))
            else:
                error = "ENOENT"
        elif kind == WRITE:
            self.write(path, parts[1])
        elif kind == INTRODUCED:
            answer = b"T\0" if int(path) in self.introduced else b"F\0"
        else:
            error = "ENOSYS"
        if error:
            self._send(client, ERROR, request, error.encode() + b"\0")
            return
        self._send(client, kind, request, answer)
        if kind == WATCH:
            self._event(client, path, parts[1])
