"""The engine's own rules: what it plans when, and what it waits for."""

import errno
from dataclasses import replace
from ipaddress import ip_address

from tests.fakes.kernel import FakeKernel
from xenlb.ipvs.op import AddServer, AddService, DeleteServer, DeleteService, SetServer
from xenlb.ipvs.table import AddressKey, Forwarding, Protocol, Server, ServerKey
from xenlb.model.engine import RESULTS, Engine, Executed, Outcome
from xenlb.model.events import Configured, ProbeFinished
from xenlb.model.note import NoteKind
from xenlb.model.settings import Check, Member, Port, ServiceSettings, Settings
from xenlb.model.state import State

VIP = ip_address("192.0.2.10")
KEY = AddressKey(protocol=Protocol.TCP, address=VIP, port=25)
SERVICE = ServiceSettings(
    name="mail",
    address=VIP,
    ports=(Port(number=25),),
    checks=(),
    servers=tuple(Member(host=ip_address("10.0.0.10") + n) for n in (1, 2)),
)
CHECKED = replace(SERVICE, checks=(Check(),))


def configured(*services: ServiceSettings, at: float = 1.0) -> Configured:
    return Configured(at=at, settings=Settings(services=services))


class World:
    """An engine and a strict kernel."""

    def __init__(self) -> None:
        self.kernel = FakeKernel()
        self.engine = Engine(state=State(), now=0.0)

    def read(self) -> None:
        self.engine.begin_read()
        self.engine.load_snapshot(self.kernel.read())

    def apply(self, outcome: Outcome, now: float = 1.0) -> Executed:
        return self.engine.executed(outcome, self.kernel.apply(outcome.ops), now)


def test_nothing_is_planned_before_the_table_was_read() -> None:
    world = World()
    outcome = world.engine.handle([configured(SERVICE)], 1.0)
    assert (outcome.ops, outcome.want) == ((), None)
    world.read()
    outcome = world.engine.handle((), 2.0)
    assert [type(op) for op in outcome.ops] == [AddService, AddServer, AddServer]
    assert outcome.claimed, "what is owned must be saved before the kernel has it"
    assert world.apply(outcome).done == outcome.ops
    assert world.engine.handle((), 3.0).ops == ()


def test_a_service_is_deleted_only_right_after_a_read() -> None:
    world = World()
    world.read()
    world.apply(world.engine.handle([configured(SERVICE)], 1.0))
    outcome = world.engine.handle([configured(at=2.0)], 2.0)
    assert outcome.stale
    assert not any(isinstance(op, DeleteService) for op in outcome.ops)
    world.apply(outcome)
    # Meanwhile another tool puts a server of its own into the service: it stays.
    world.kernel.do(AddServer(service=KEY, server=other_server()))
    world.read()
    world.apply(world.engine.handle((), 3.0))
    assert list(world.kernel.read().table.entries[KEY].servers) == [other_server().key]


def other_server() -> Server:
    key = ServerKey(address=ip_address("10.0.0.99"), port=25)
    return Server(key=key, forwarding=Forwarding.MASQUERADE, weight=1)


def test_changes_by_others_are_repaired_and_named() -> None:
    world = World()
    world.read()
    world.apply(world.engine.handle([configured(SERVICE)], 1.0))
    (server, *_) = world.kernel.read().table.entries[KEY].servers.values()
    world.kernel.do(SetServer(service=KEY, server=replace(server, weight=7)))
    world.read()
    outcome = world.engine.handle((), 2.0)
    (note,) = world.apply(outcome).notes
    assert note.kind is NoteKind.TABLE_REPAIRED
    (line,) = world.engine.repairs
    assert line.startswith("ipvsadm -e -t 192.0.2.10:25 -r 10.0.0.11:25 ")
    world.read()
    world.apply(world.engine.handle((), 3.0))
    assert not world.engine.repairs


def results(world: World, count: int) -> list[ProbeFinished]:
    (target, *_) = world.engine.state.remembered.health
    return [
        ProbeFinished(at=2.0, target=target, started=2.0, up=True, detail=f"{n}")
        for n in range(count)
    ]


def test_results_of_checks_do_not_delay_other_events() -> None:
    world = World()
    world.read()
    world.apply(world.engine.handle([configured(CHECKED)], 1.0))
    many = results(world, RESULTS + 10)
    assert len(world.engine.handle(many, 2.0).deferred) == 10
    assert len(world.engine.handle(many, 2.0, out_of_time=lambda: True).deferred) == len(many) - 1
    outcome = world.engine.handle([*many, configured(SERVICE, at=2.0)], 2.0)
    assert len(outcome.deferred) == len(many) - 1
    assert world.engine.state.settings.services == (SERVICE,)


def test_a_refused_operation_is_retried_when_it_is_due() -> None:
    world = World()
    world.read()
    world.kernel.fail("10.0.0.11", errno.ENOMEM)
    outcome = world.engine.handle([configured(SERVICE)], 1.0)
    kinds = [note.kind for note in world.apply(outcome, 1.0).notes]
    assert kinds.count(NoteKind.TABLE_REFUSED) == 1
    assert world.engine.handle((), 1.5).ops == ()
    assert world.engine.next_deadline == 2.0
    assert [type(op) for op in world.engine.handle((), 2.0).ops] == [AddServer]


def test_a_kernel_that_fails_is_noted_once() -> None:
    world = World()
    assert [note.kind for note in world.engine.kernel_failed("no IPVS", 1.0)] == [
        NoteKind.KERNEL_FAILED
    ]
    assert world.engine.kernel_failed("no IPVS", 2.0) == ()
    assert world.engine.kernel_failing
    world.read()
    world.apply(world.engine.handle([configured(SERVICE)], 3.0))
    assert (world.engine.kernel_failing, world.engine.kernel_problem) == (False, "")


def test_servers_that_leave_the_configuration_are_removed() -> None:
    world = World()
    world.read()
    world.apply(world.engine.handle([configured(SERVICE)], 1.0))
    fewer = replace(SERVICE, servers=SERVICE.servers[:1])
    outcome = world.engine.handle([configured(fewer, at=2.0)], 2.0)
    assert [type(op) for op in outcome.ops] == [DeleteServer]
    assert world.apply(outcome).released
