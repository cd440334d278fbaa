"""The reconciler against the strict fake kernel: ownership, drift, failures and their retries."""

import errno
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import ip_address

from tests.fakes.kernel import FakeKernel
from xenlb.ipvs.op import AddServer, AddService, DeleteServer, Op, OpFailed, SetServer
from xenlb.ipvs.reconciler import Reconciler, contradicts_cache
from xenlb.ipvs.table import (
    AddressKey,
    Counters,
    Entry,
    Forwarding,
    Protocol,
    Server,
    ServerKey,
    Service,
    Table,
)

KEY = AddressKey(protocol=Protocol.TCP, address=ip_address("192.0.2.10"), port=25)
SERVICE = Service(key=KEY, prefix=32)


def server(last: int, weight: int = 1) -> Server:
    return Server(
        key=ServerKey(address=ip_address(f"10.0.0.{last}"), port=25),
        forwarding=Forwarding.MASQUERADE,
        weight=weight,
    )


def table(*servers: Server) -> Table:
    return Table(entries={KEY: Entry(service=SERVICE, servers={s.key: s for s in servers})})


def always(uri: str) -> bool:
    return True


class Desk:
    """A kernel and the reconciler of its table."""

    def __init__(self, kernel: FakeKernel) -> None:
        self.kernel, self.reconciler = kernel, Reconciler()

    def execute(self, ops: Sequence[Op], now: float = 0.0) -> tuple[list[str], Sequence[OpFailed]]:
        """The operations that were done, as ipvsadm lines, and those that failed."""
        due = self.reconciler.due(ops, now)
        failed = self.kernel.apply(due)
        return [str(op) for op in self.reconciler.record(due, failed, now)], failed

    def bring(self, want: Table, *, now: float = 0.0, whole: bool = True) -> list[str]:
        self.reconciler.claim(want, {})
        ops = self.reconciler.plan(want, whole=whole, removable=always)
        done, _ = self.execute(ops, now)
        if whole:
            self.reconciler.forgive(ops)
        return done


def test_what_was_done_is_believed_and_nothing_is_left_to_do() -> None:
    kernel = FakeKernel()
    desk = Desk(kernel)
    reconciler = desk.reconciler
    assert len(desk.bring(table(server(11), server(12)))) == 3
    assert reconciler.cached == kernel.read().table.entries
    assert desk.bring(table(server(11), server(12))) == []


def test_one_weight_goes_out_without_a_read() -> None:
    kernel = FakeKernel()
    desk = Desk(kernel)
    desk.bring(table(server(11), server(12)))
    done = desk.bring(table(server(11, weight=0), server(12)), whole=False)
    assert len(done) == 1
    assert done[0].startswith("-e -t 192.0.2.10:25 -r 10.0.0.11:25 -m -w 0")


def test_only_what_is_ours_is_removed() -> None:
    kernel = FakeKernel()
    kernel.do(AddService(service=SERVICE), AddServer(service=KEY, server=server(99)))
    desk = Desk(kernel)
    reconciler = desk.reconciler
    reconciler.load_snapshot(kernel.read())
    desk.bring(table(server(11)))
    desk.bring(table())
    assert list(kernel.read().table.entries[KEY].servers) == [server(99).key]
    foreign = reconciler.foreign(table())
    assert foreign.servers == {(KEY, server(99).key)}


def test_a_guest_of_a_libvirt_that_was_not_listed_is_not_removed_yet() -> None:
    kernel = FakeKernel()
    desk = Desk(kernel)
    reconciler = desk.reconciler
    both = table(server(11), server(12))
    reconciler.claim(both, {(KEY, server(11).key): "xen:///system"})
    desk.execute(reconciler.plan(both, whole=True, removable=always))
    for whole in (True, False):
        ops = reconciler.plan(table(), whole=whole, removable=lambda uri: uri != "xen:///system")
        assert ops == (DeleteServer(service=KEY, key=server(12).key),)


def test_drift_is_found_by_the_next_read() -> None:
    kernel = FakeKernel()
    desk = Desk(kernel)
    reconciler = desk.reconciler
    desk.bring(table(server(11), server(12)))
    kernel.do(SetServer(service=KEY, server=server(11, weight=7)))
    kernel.do(DeleteServer(service=KEY, key=server(12).key))
    reconciler.touched.clear()
    reconciler.load_snapshot(kernel.read())
    assert len(desk.bring(table(server(11), server(12)))) == 2
    assert kernel.read().table == table(server(11), server(12))


def test_a_read_that_was_under_way_does_not_undo_what_was_done_meanwhile() -> None:
    kernel = FakeKernel()
    desk = Desk(kernel)
    reconciler = desk.reconciler
    desk.bring(table(server(11)))
    reconciler.touched.clear()
    old = kernel.read()
    desk.bring(table(server(11, weight=0)), whole=False)
    reconciler.load_snapshot(old)
    assert reconciler.cached == kernel.read().table.entries


def test_a_refused_operation_is_a_reason_and_is_retried_later_and_stops_no_other() -> None:
    kernel = FakeKernel()
    kernel.fail("10.0.0.11", errno.ENOMEM, times=2)
    desk = Desk(kernel)
    reconciler = desk.reconciler
    want = table(server(11), server(12))
    assert len(desk.bring(want, now=0.0)) == 2
    place = (KEY, server(11).key)
    assert "memory" in reconciler.failures[place].reason.lower()
    assert desk.bring(want, now=0.5) == []  # not due yet
    assert reconciler.retry_at() == 1.0
    desk.bring(want, now=1.0)
    assert reconciler.failures[place].attempts == 2
    assert reconciler.retry_at() == 3.0
    assert len(desk.bring(want, now=3.0)) == 1
    assert reconciler.failures == {}
    assert kernel.read().table == want


def test_servers_of_a_service_that_was_refused_wait_for_it() -> None:
    kernel = FakeKernel()
    kernel.fail("-A", errno.ENOENT)
    desk = Desk(kernel)
    reconciler = desk.reconciler
    want = table(server(11))
    reconciler.claim(want, {})
    _, failed = desk.execute(reconciler.plan(want, whole=True, removable=always))
    assert contradicts_cache(failed)
    assert len(desk.bring(want, now=60.0)) == 2


def test_a_failure_of_something_nobody_wants_any_more_is_forgotten() -> None:
    kernel = FakeKernel()
    kernel.fail("10.0.0.11", errno.ENOMEM)
    desk = Desk(kernel)
    reconciler = desk.reconciler
    desk.bring(table(server(11)))
    assert reconciler.failures
    desk.bring(table(), now=0.1)
    assert reconciler.failures == {}
    assert reconciler.retry_at() is None


def test_what_is_gone_and_not_wanted_is_released() -> None:
    kernel = FakeKernel()
    desk = Desk(kernel)
    reconciler = desk.reconciler
    desk.bring(table(server(11)))
    desk.bring(table())
    assert reconciler.release(table())
    assert reconciler.servers == {}
    assert reconciler.services == {KEY}
    assert not reconciler.release(table())


def test_a_leaving_server_goes_when_its_connections_have_ended() -> None:
    """It has weight 0 until a read of the table that began after that finds none."""
    kernel = FakeKernel()
    desk = Desk(kernel)
    reconciler = desk.reconciler
    sorry, real = server(99), server(11)
    desk.bring(table(sorry))
    reconciler.load_snapshot(kernel.read())  # no connection: that was before the next ones
    entry = table(real).entries[KEY]
    want = Table(entries={KEY: replace(entry, leaving=frozenset({sorry.key}))})
    changed = [line.partition(" -m")[0] for line in desk.bring(want)]
    assert changed == [
        "-a -t 192.0.2.10:25 -r 10.0.0.11:25",
        "-e -t 192.0.2.10:25 -r 10.0.0.99:25",
    ]
    assert desk.bring(want) == []
    for left in (Counters(active_connections=1), Counters(inactive_connections=1)):
        kernel.count(KEY, sorry.key, left)
        reconciler.touched.clear()
        reconciler.load_snapshot(kernel.read())
        assert desk.bring(want) == []
        assert reconciler.foreign(want).servers == frozenset()
    kernel.count(KEY, sorry.key, Counters())
    reconciler.load_snapshot(kernel.read())
    assert desk.bring(want) == ["-d -t 192.0.2.10:25 -r 10.0.0.99:25"]
