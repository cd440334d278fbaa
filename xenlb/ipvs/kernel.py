"""The kernel's IPVS table through a generic netlink socket.

Blocking calls, each done within milliseconds; one thread at a time. Nothing is remembered of the
table: what `read` returns is what the kernel said. Which operations to do is diff.py's.
"""

import contextlib
import errno
import logging
import os
import socket
import struct
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Protocol, TypeVar

from xenlb.ipvs import codec, wire
from xenlb.ipvs.errors import IpvsError, no_access
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
# A dump fills at most 32 KiB a message, and as much as the reader has room for.
_RECEIVE = 65536
# So many operations a send: should every one fail, the answers (1.3 KiB of accounting each)
# still fit a receive buffer of the default size.
_CHUNK = 256
_ATTEMPTS = 10
# Seconds of silence in the middle of an answer; the kernel answers within the call or not at all.
_TIMEOUT = 10


class KernelTable(Protocol):
    """A table that can be read and changed: the kernel's, or the tests' strict fake."""

    def read(
        self, keys: Collection[ServiceKey] | None = None, *, counters: bool = True
    ) -> Snapshot:
        """The table with its counters, or only the services of `keys` that are there."""

    def apply(self, ops: Sequence[Op]) -> tuple[OpFailed, ...]:
        """Do `ops` in turn; a failure stops none of the others."""

    def close(self) -> None:
        """Give up what is held open; the next call opens it again."""


class Kernel:
    """The table of the network namespace this process is in.

    The socket is opened by the first call and, after an error, by the next. Every call may
    raise IpvsError: no IPVS in the kernel, no permission, a socket that fails.
    """

    def __init__(self, *, connect: Callable[[], socket.socket] | None = None) -> None:
        """`connect` makes the socket; a test may give one whose other end is no kernel."""
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
        """The table with its counters, or only the services of `keys` that are there.

        Without `counters` the snapshot has none, and is made faster.
        """
        return self._guarded(lambda: self._read(keys, counters=counters))

    def apply(self, ops: Sequence[Op]) -> tuple[OpFailed, ...]:
        """Do `ops` in turn; returns those that the kernel refused, in order.

        A failure stops none of the others. Deleting what has gone already is no failure.
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

    # ---- reading ----

    def _read(self, keys: Collection[ServiceKey] | None, *, counters: bool) -> Snapshot:
        sock = self._opened()
        services = self._services(sock) if keys is None else self._named(sock, keys)
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
        for data, start, end in self._dump(sock, codec.CMD_GET_SERVICE, None):
            service = codec.decode_service(data, start, end)
            if service is None:
                log.debug("a service of a protocol that IPVS does not know is passed over")
            else:
                services.append(service)
        return services

    def _named(self, sock: socket.socket, keys: Collection[ServiceKey]) -> Iterator[Service]:
        for key in keys:
            sequence = self._next()
            sock.send(
                codec.request(
                    codec.CMD_GET_SERVICE,
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
            service = codec.decode_service(data, start, end)
            if service is not None:
                yield service

    def _servers(
        self, sock: socket.socket, key: ServiceKey, *, counters: bool
    ) -> tuple[dict[ServerKey, Server], dict[ServerKey, Counters]]:
        servers = {}
        counted = {}
        family = key.family
        for data, start, end in self._dump(sock, codec.CMD_GET_DEST, key):
            server, numbers = codec.decode_server(
                data, start, end, family=family, counters=counters
            )
            servers[server.key] = server
            if numbers is not None:
                counted[server.key] = numbers
        return servers, counted

    def _dump(
        self, sock: socket.socket, command: int, key: ServiceKey | None
    ) -> list[tuple[bytes, int, int]]:
        """The messages of a dump; again from the start if the table changed under it."""
        for _ in range(_ATTEMPTS):
            sequence = self._next()
            sock.send(
                codec.request(
                    command,
                    family=self._family,
                    sequence=sequence,
                    flags=wire.NLM_F_DUMP,
                    key=key,
                )
            )
            found, interrupted = self._dumped(sock, sequence)
            if not interrupted:
                return found
        raise IpvsError(
            "the IPVS table changes faster than it can be read",
            "look for a program that changes it without end",
        )

    def _dumped(
        self, sock: socket.socket, sequence: int
    ) -> tuple[list[tuple[bytes, int, int]], bool]:
        found: list[tuple[bytes, int, int]] = []
        interrupted = False
        while True:
            data = sock.recv(_RECEIVE)
            for kind, flags, number, start, end in wire.messages(data):
                if number != sequence:
                    continue
                if flags & wire.NLM_F_DUMP_INTR:
                    interrupted = True
                if kind == wire.NLMSG_DONE:
                    return found, interrupted
                if kind == wire.NLMSG_ERROR:
                    self._raise(wire.error_number(data, start))
                found.append((data, start, end))

    def _answer(self, sock: socket.socket, sequence: int) -> tuple[bytes, int, int]:
        while True:
            data = sock.recv(_RECEIVE)
            for kind, _flags, number, start, end in wire.messages(data):
                if number != sequence:
                    continue
                if kind == wire.NLMSG_ERROR:
                    self._raise(wire.error_number(data, start))
                return data, start, end

    @staticmethod
    def _raise(number: int) -> None:
        raise OSError(number, os.strerror(number))

    # ---- writing ----

    def _apply(self, ops: Sequence[Op]) -> Iterator[OpFailed]:
        for first in range(0, len(ops), _CHUNK):
            sock = self._opened()
            chunk = ops[first : first + _CHUNK]
            sequence = self._next(len(chunk))
            sock.send(codec.encode(chunk, family=self._family, sequence=sequence))
            for position, number in sorted(self._refused(sock, sequence, len(chunk)).items()):
                op = chunk[position]
                if number == errno.EPERM:
                    self._raise(number)
                if not _gone_anyway(op, number):
                    yield OpFailed(op=op, errno=number)

    def _refused(self, sock: socket.socket, sequence: int, count: int) -> dict[int, int]:
        """Position and errno of each of `count` messages that failed.

        Failures are answered one by one, success of the last only; it comes last of all.
        """
        refused: dict[int, int] = {}
        while True:
            try:
                data = sock.recv(_RECEIVE)
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                # Answers were lost: nobody knows which operations failed.
                self.close()
                return dict.fromkeys(range(count), errno.ENOBUFS)
            for kind, _flags, number, start, _end in wire.messages(data):
                position = number - sequence
                if kind != wire.NLMSG_ERROR or not 0 <= position < count:
                    continue
                failure = wire.error_number(data, start)
                if failure:
                    refused[position] = failure
                if position == count - 1:
                    return refused

    # ---- the socket ----

    def _next(self, count: int = 1) -> int:
        """The first of `count` sequence numbers that are in use by nothing else."""
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
                sock.send(wire.family_request(sequence))
                self._family = wire.family_of_answer(*self._answer(sock, sequence))
            except BaseException:
                sock.close()
                raise
            self._socket = sock
        return self._socket


def _connect() -> socket.socket:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_GENERIC)
    try:
        sock.bind((0, 0))
        # Not settimeout(), which puts a poll() before every receive.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", _TIMEOUT, 0))
        for forced, plain in (
            (_SO_RCVBUFFORCE, socket.SO_RCVBUF),
            (_SO_SNDBUFFORCE, socket.SO_SNDBUF),
        ):
            try:
                sock.setsockopt(socket.SOL_SOCKET, forced, _BUFFER)
            except PermissionError:
                sock.setsockopt(socket.SOL_SOCKET, plain, _BUFFER)
        # Failures then come back without the message that failed; before Linux 4.3, with it.
        with contextlib.suppress(OSError):
            sock.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
    except BaseException:
        sock.close()
        raise
    return sock


def _gone_anyway(op: Op, number: int) -> bool:
    return isinstance(op, DeleteService | DeleteServer) and number in {errno.ESRCH, errno.ENOENT}
