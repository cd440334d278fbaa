"""The socket's side of Kernel against a scripted other end: what a real kernel seldom does."""

import errno
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.ipvsadm.parse import parse, parse_op
from xenlb.ipvs import netlink, netlink_codec
from xenlb.ipvs.errors import IpvsError
from xenlb.ipvs.kernel import Kernel
from xenlb.ipvs.op import AddService, OpFailed

FAMILY = 30
# (sequence number of the request) → the datagrams that answer it
Answer = Callable[[int], list[bytes]]


def message(kind: int, sequence: int, body: bytes, flags: int = 2) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, flags, sequence, 0) + body


def error(sequence: int, number: int) -> bytes:
    return message(netlink.NLMSG_ERROR, sequence, struct.pack("=i", -number) + bytes(16), 0)


def done(sequence: int, flags: int = 2) -> bytes:
    return message(netlink.NLMSG_DONE, sequence, bytes(4), flags)


def family(sequence: int) -> list[bytes]:
    return [message(16, sequence, bytes(4) + struct.pack("=HHHxx", 6, 1, FAMILY))]


def services(*lines: str, flags: int = 2) -> Answer:
    """A dump of services, each in its datagram."""

    def answer(sequence: int) -> list[bytes]:
        found = []
        for line in lines:
            op = parse_op(line)
            data = netlink_codec.encode([op], family=FAMILY, sequence=1)
            found.append(message(FAMILY, sequence, data[16:], flags))
        return [*found, done(sequence, flags)]

    return answer


def refuse(number: int) -> Answer:
    return lambda sequence: [error(sequence, number)]


@contextmanager
def scripted(*connections: list[Answer]) -> Iterator[Kernel]:
    """A Kernel whose every connection answers one request after the other from its list."""
    waiting = list(connections)
    threads: list[threading.Thread] = []
    left: list[int] = []

    def serve(end: socket.socket, answers: list[Answer]) -> None:
        with end:
            for answer in answers:
                request = end.recv(65536)
                if not request:
                    left.append(1)
                    return
                [*_, (_, _, sequence, _, _)] = netlink.messages(request)
                for datagram in answer(sequence):
                    end.send(datagram)
            assert not end.recv(65536)

    def connect() -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        threads.append(threading.Thread(target=serve, args=(theirs, waiting.pop(0))))
        threads[-1].start()
        return ours

    with Kernel(connect=connect) as kernel:
        yield kernel
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert not waiting
    assert not left


def test_an_interrupted_dump_is_repeated() -> None:
    torn = services("-A -f 1", flags=2 | netlink.NLM_F_DUMP_INTR)
    whole = services("-A -f 1", "-A -f 2")
    with scripted([family, torn, torn, whole, services(), services()]) as kernel:
        assert kernel.read().table == parse("-A -f 1\n-A -f 2")


def test_a_dump_that_is_always_interrupted() -> None:
    torn = services("-A -f 1", flags=2 | netlink.NLM_F_DUMP_INTR)
    with (
        scripted([family, *[torn] * 10]) as kernel,
        pytest.raises(IpvsError, match="changes faster"),
    ):
        kernel.read()


def test_answers_of_another_request_are_ignored() -> None:
    def late(sequence: int) -> list[bytes]:
        return [error(sequence - 1, errno.EPERM), done(77), *services()(sequence)]

    with scripted([family, late]) as kernel:
        assert not kernel.read().table.entries


def test_the_socket_is_opened_again_after_an_error() -> None:
    with scripted(
        [refuse(errno.ENOENT)], [family, refuse(errno.EIO)], [family, services()]
    ) as kernel:
        with pytest.raises(IpvsError, match="the module ip_vs is not loaded"):
            kernel.read()
        with pytest.raises(IpvsError, match="Input/output error") as caught:
            kernel.read()
        assert caught.value.errno == errno.EIO
        assert not kernel.read().table.entries


def test_malformed_messages_are_an_error_and_the_socket_is_opened_again() -> None:
    def torn(sequence: int) -> list[bytes]:
        return [done(sequence)[:-2]]

    with scripted([family, torn], [family, services()]) as kernel:
        with pytest.raises(IpvsError, match="cannot be understood"):
            kernel.read()
        assert not kernel.read().table.entries


def test_a_missing_permission_is_one_error() -> None:
    ops = [parse_op(f"-A -f {mark}") for mark in (1, 2, 3)]

    def refused(sequence: int) -> list[bytes]:
        return [error(sequence - n, errno.EPERM) for n in (2, 1, 0)]

    with (
        scripted([family, refused]) as kernel,
        pytest.raises(IpvsError, match="CAP_NET_ADMIN"),
    ):
        kernel.apply(ops)


def test_failures_belong_to_their_operations() -> None:
    ops = [parse_op(f"-A -f {mark}") for mark in range(1, 6)]

    def some(sequence: int) -> list[bytes]:
        first = sequence - 4
        return [
            error(first + 1, errno.EEXIST) + error(first + 3, errno.ENOENT),
            error(sequence, 0),
        ]

    with scripted([family, some]) as kernel:
        assert kernel.apply(ops) == (
            OpFailed(op=ops[1], errno=errno.EEXIST),
            OpFailed(op=ops[3], errno=errno.ENOENT),
        )


def test_deletions_of_what_has_gone_are_no_failures() -> None:
    ops = [parse_op("-D -f 1"), parse_op("-d -f 2 -r 10.0.0.1"), parse_op("-e -f 2 -r 10.0.0.1")]

    def gone(sequence: int) -> list[bytes]:
        return [
            error(sequence - 2, errno.ESRCH),
            error(sequence - 1, errno.ENOENT),
            error(sequence, errno.ENOENT),
        ]

    with scripted([family, gone]) as kernel:
        assert kernel.apply(ops) == (OpFailed(op=ops[2], errno=errno.ENOENT),)


def test_no_operations_open_no_socket() -> None:
    with scripted() as kernel:
        assert kernel.apply([]) == ()


def test_sequence_numbers_begin_again_before_they_run_out() -> None:
    with scripted([family, services(), services()]) as kernel:
        kernel._sequence = 2**32 - 2
        kernel.read()
        kernel.read()
        assert kernel._sequence < 10


def test_the_other_end_is_a_kernels() -> None:
    """An AddService, as the scripts above make one, is what GET_SERVICE would be answered by."""
    op = parse_op("-A -f 7 -s sh -p 9")
    assert isinstance(op, AddService)
    [data, end] = services("-A -f 7 -s sh -p 9")(5)
    [(_, _, sequence, start, stop)] = netlink.messages(data)
    assert (sequence, netlink_codec.decode_service(data, start, stop)) == (5, op.service)
    assert end == done(5)
