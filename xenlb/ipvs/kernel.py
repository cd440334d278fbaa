"""The kernel's IPVS table, through a generic netlink socket.

Calls block for milliseconds and must come from one thread at a time. Nothing of the table is
cached.
"""

import contextlib
import errno
import logging
import os
import socket
import struct
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Protocol, TypeVar

from xenlb.ipvs import netlink, netlink_codec
from xenlb.ipvs.errors import PERMISSION_DENIED, IpvsError, no_access
from xenlb.ipvs.op import DeleteServer, DeleteService, Op, OpFailed
from xenlb.ipvs.table import (
    Counters,
    Entry,
    Server,
    ServerKey,
    Service,
    ServiceKey,
    Snapshot,
    Table,
)

log = logging.getLogger(__name__)

T = TypeVar("T")

_NETLINK_GENERIC = 16
_SOL_NETLINK = 270
_NETLINK_CAP_ACK = 10
_SO_SNDBUFFORCE = 32
_SO_RCVBUFFORCE = 33
_BUFFER = 4 * 1024 * 1024
# A dump fills at most 32 KiB a message, or the reader's buffer.
_RECEIVE = 65536
# Operations a send: if all fail, the answers (1.3 KiB of accounting each) still fit a receive
# buffer of the default size.
_CHUNK = 256
_ATTEMPTS = 10
# Seconds without data inside an answer; the kernel answers within the call or not at all.
_TIMEOUT = 10


class KernelTable(Protocol):
    """A table that can be read and changed: the kernel's, or a fake."""

    def read(
        self, keys: Collection[ServiceKey] | None = None, *, counters: bool = True
    ) -> Snapshot:
        """The table with its counters, or only the services of `keys` that exist."""

    def apply(self, ops: Sequence[Op]) -> tuple[OpFailed, ...]:
        """Apply `ops` in turn; a failure does not stop the others."""

    def close(self) -> None:
        """Close what is open; the next call opens it again."""


class Kernel:
    """The table of this process's network namespace.

    The first call opens the socket, and the next one after an error. Every call may raise
    IpvsError: no IPVS in the kernel, no permission, a socket that fails.
    """

    def __init__(self, *, connect: Callable[[], socket.socket] | None = None) -> None:
        """`connect` creates the socket; a test may return one that is connected to a fake."""
        self._connect = connect or _connect
        self._socket: socket.socket | None = None
        self._family = 0
        self._sequence = 0

    def __enter__(self) -> "Kernel":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket, if it is open; the next call opens it again."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def read(
        self, keys: Collection[ServiceKey] | None = None, *, counters: bool = True
    ) -> Snapshot:
        """The table with its counters, or only the services of `keys` that exist.

        Without `counters` the snapshot has none, and is faster.
        """
        return self._guarded(lambda: self._read(keys, counters=counters))

    def apply(self, ops: Sequence[Op]) -> tuple[OpFailed, ...]:
        """Apply `ops` in turn; return those that the kernel refused, in order.

        A failure does not stop the others. Deleting what has gone already is no failure.
        """
        if not ops:
            return ()
        return self._guarded(lambda: tuple(self._apply(ops)))

    def _guarded(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except OSError as error:
            self.close()
            raise no_access(error.errno or errno.EIO) from error
        except (ValueError, KeyError, struct.error) as error:
            self.close()
            raise IpvsError(
                f"the kernel's answer cannot be understood: {error!r}",
                "report it with the output of: uname -r; ipvsadm -Sn",
            ) from error
        except IpvsError:
            self.close()
            raise

    # Reading

    def _read(self, keys: Collection[ServiceKey] | None, *, counters: bool) -> Snapshot:
        sock = self._opened()
        services = self._services(sock) if keys is None else self._services_of(sock, keys)
        entries: dict[ServiceKey, Entry] = {}
        counted: dict[ServiceKey, dict[ServerKey, Counters]] = {}
        for service in services:
            key = service.key
            servers, numbers = self._servers(sock, key, counters=counters)
            entries[key] = Entry(service=service, servers=servers)
            if counters:
                counted[key] = numbers
        return Snapshot(table=Table(entries=entries), counters=counted)

    def _services(self, sock: socket.socket) -> list[Service]:
        services = []
        for data, start, end in self._dump(sock, netlink_codec.CMD_GET_SERVICE, None):
            service = netlink_codec.decode_service(data, start, end)
            if service is None:
                log.debug("a service of a protocol unknown to IPVS is ignored")
            else:
                services.append(service)
        return services

    def _services_of(self, sock: socket.socket, keys: Collection[ServiceKey]) -> Iterator[Service]:
        for key in keys:
            sequence = self._next()
            sock.send(
                netlink_codec.request(
                    netlink_codec.CMD_GET_SERVICE,
                    family=self._family,
                    sequence=sequence,
                    flags=0,
                    key=key,
                )
            )
            try:
                data, start, end = self._answer(sock, sequence)
            except OSError as error:
                if error.errno == errno.ESRCH:
                    continue
                raise
            service = netlink_codec.decode_service(data, start, end)
            if service is not None:
                yield service

    def _servers(
        self, sock: socket.socket, key: ServiceKey, *, counters: bool
    ) -> tuple[dict[ServerKey, Server], dict[ServerKey, Counters]]:
        servers = {}
        counted = {}
        family = key.family
        for data, start, end in self._dump(sock, netlink_codec.CMD_GET_DEST, key):
            server, numbers = netlink_codec.decode_server(
                data, start, end, family=family, counters=counters
            )
            servers[server.key] = server
            if numbers is not None:
                counted[server.key] = numbers
        return servers, counted

    def _dump(
        self, sock: socket.socket, command: int, key: ServiceKey | None
    ) -> list[tuple[bytes, int, int]]:
        """The messages of a dump, repeated if the table changed meanwhile."""
        for _ in range(_ATTEMPTS):
            sequence = self._next()
            sock.send(
                netlink_codec.request(
                    command,
                    family=self._family,
                    sequence=sequence,
                    flags=netlink.NLM_F_DUMP,
                    key=key,
                )
            )
            messages, interrupted = self._receive_dump(sock, sequence)
            if not interrupted:
                return messages
        raise IpvsError(
            "the IPVS table changes faster than it can be read",
            "look for a program that changes it without end",
        )

    def _receive_dump(
        self, sock: socket.socket, sequence: int
    ) -> tuple[list[tuple[bytes, int, int]], bool]:
        messages: list[tuple[bytes, int, int]] = []
        interrupted = False
        while True:
            data = sock.recv(_RECEIVE)
            for kind, flags, number, start, end in netlink.messages(data):
                if number != sequence:
                    continue
                if flags & netlink.NLM_F_DUMP_INTR:
                    interrupted = True
                if kind == netlink.NLMSG_DONE:
                    return messages, interrupted
                if kind == netlink.NLMSG_ERROR:
                    self._raise(netlink.error_number(data, start))
                messages.append((data, start, end))

    def _answer(self, sock: socket.socket, sequence: int) -> tuple[bytes, int, int]:
        while True:
            data = sock.recv(_RECEIVE)
            for kind, _flags, number, start, end in netlink.messages(data):
                if number != sequence:
                    continue
                if kind == netlink.NLMSG_ERROR:
                    self._raise(netlink.error_number(data, start))
                return data, start, end

    @staticmethod
    def _raise(number: int) -> None:
        raise OSError(number, os.strerror(number))

    # Writing

    def _apply(self, ops: Sequence[Op]) -> Iterator[OpFailed]:
        for first in range(0, len(ops), _CHUNK):
            sock = self._opened()
            chunk = ops[first : first + _CHUNK]
            sequence = self._next(len(chunk))
            sock.send(netlink_codec.encode(chunk, family=self._family, sequence=sequence))
            for position, number in sorted(self._refused(sock, sequence, len(chunk)).items()):
                op = chunk[position]
                if number in PERMISSION_DENIED:
                    self._raise(number)
                if not _already_gone(op, number):
                    yield OpFailed(op=op, errno=number)

    def _refused(self, sock: socket.socket, sequence: int, count: int) -> dict[int, int]:
        """Position and errno of each of `count` messages that failed.

        The kernel answers each failure, and success only for the last message.
        """
        refused: dict[int, int] = {}
        while True:
            try:
                data = sock.recv(_RECEIVE)
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                # Answers were lost: which operations failed is unknown.
                self.close()
                return dict.fromkeys(range(count), errno.ENOBUFS)
            for kind, _flags, number, start, _end in netlink.messages(data):
                position = number - sequence
                if kind != netlink.NLMSG_ERROR or not 0 <= position < count:
                    continue
                failure = netlink.error_number(data, start)
                if failure:
                    refused[position] = failure
                if position == count - 1:
                    return refused

    # The socket

    def _next(self, count: int = 1) -> int:
        """The first of `count` unused sequence numbers."""
        if self._sequence + count >= 2**32:
            self._sequence = 0
        first = self._sequence + 1
        self._sequence += count
        return first

    def _opened(self) -> socket.socket:
        if self._socket is None:
            sock = self._connect()
            try:
                sequence = self._next()
                # The kernel loads the module ip_vs for this look-up, if it may.
                sock.send(netlink.family_request(sequence))
                self._family = netlink.family_number(*self._answer(sock, sequence))
            except BaseException:
                sock.close()
                raise
            self._socket = sock
        return self._socket


def _connect() -> socket.socket:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_GENERIC)
    try:
        sock.bind((0, 0))
        # settimeout() would add a poll() before every receive.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", _TIMEOUT, 0))
        for forced, plain in (
            (_SO_RCVBUFFORCE, socket.SO_RCVBUF),
            (_SO_SNDBUFFORCE, socket.SO_SNDBUF),
        ):
            try:
                sock.setsockopt(socket.SOL_SOCKET, forced, _BUFFER)
            except PermissionError:
                sock.setsockopt(socket.SOL_SOCKET, plain, _BUFFER)
        # Failures come back without the message that failed; before Linux 4.3, with it.
        with contextlib.suppress(OSError):
            sock.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
    except BaseException:
        sock.close()
        raise
    return sock


def _already_gone(op: Op, number: int) -> bool:
    return isinstance(op, DeleteService | DeleteServer) and number in {errno.ESRCH, errno.ENOENT}
