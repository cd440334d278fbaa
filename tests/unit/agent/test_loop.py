"""The owner task against the strict fake kernel: what is heard becomes what the kernel has."""

import asyncio
import errno
import os
import threading
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from uuid import UUID

import pytest

from tests.fakes.kernel import FakeKernel
from xenlb import clock
from xenlb.agent import loop as agent_module
from xenlb.agent.loop import Agent
from xenlb.ipvs.diff import Owned, diff
from xenlb.ipvs.errors import IpvsError
from xenlb.ipvs.op import AddServer, DeleteServer, Op, OpFailed, SetServer
from xenlb.ipvs.table import (
    AddressKey,
    Counters,
    Protocol,
    Server,
    ServerKey,
    ServiceKey,
    Snapshot,
    Table,
)
from xenlb.model.domain import DomainDescription, DomainState, GuestId, RequestKind
from xenlb.model.engine import RESULTS
from xenlb.model.events import (
    Died,
    Disconnected,
    DrainRequested,
    Event,
    GuestsListed,
    ProbeFinished,
    ShutdownRequested,
    Started,
)
from xenlb.model.settings import Member, Port, ServiceSettings, Settings
from xenlb.store import state_file
from xenlb.store.state_file import StateFile

XEN = "xen:///system"
VIP = ip_address("192.0.2.10")
KEY = AddressKey(protocol=Protocol.TCP, address=VIP, port=25)
SERVICE = ServiceSettings(
    name="mail",
    address=VIP,
    ports=(Port(number=25),),
    servers=(
        Member(guest="mail1", address=ip_address("10.0.0.11")),
        Member(guest="mail2", address=ip_address("10.0.0.12")),
        Member(host=ip_address("10.0.0.13")),
    ),
)
SETTINGS = Settings(uris=(XEN,), services=(SERVICE,))


def guest(number: int) -> GuestId:
    return GuestId(uri=XEN, uuid=UUID(int=number))


def key(last: int) -> ServerKey:
    return ServerKey(address=ip_address(f"10.0.0.{last}"), port=25)


def listed(**power: int | None) -> GuestsListed:
    """mail1=5: it runs as domain 5; mail1=None: it is off."""
    at = clock.now()
    described = tuple(
        DomainDescription(
            guest=guest(int(name.removeprefix("mail"))),
            name=name,
            domain_state=DomainState.OFF if domain is None else DomainState.RUNNING,
            incarnation=domain,
        )
        for name, domain in power.items()
    )
    return GuestsListed(at=at, requested_at=at, uri=XEN, guests=described)


class Desk:
    """An agent at work on a fake kernel, and what a test does with it."""

    def __init__(self, file: StateFile, kernel: FakeKernel) -> None:
        self.kernel = kernel
        self.agent = Agent(
            config=file.path.with_name("xenlb.yaml"),
            state_file=file,
            socket=file.path.with_name("control.sock"),
            kernel=kernel,
            reader=kernel,
        )

    async def say(self, *events: Event) -> None:
        """All in one breath; returns when the owner has taken them."""
        taken = asyncio.get_running_loop().create_future()
        for event in events[:-1]:
            self.agent.emit(event)
        self.agent.emit(events[-1], taken)
        await taken

    async def pass_checks(self) -> None:
        """Every probe says up."""
        await self.say(
            *(
                ProbeFinished(
                    at=clock.now(), target=target, started=clock.now(), up=True, detail=""
                )
                for target in self.agent.state.remembered.health
            )
        )

    def failing(self, address: str) -> list[Event]:
        """Probes of one server that fail as often as it takes."""
        at = clock.now()
        return [
            ProbeFinished(at=at, target=target, started=at, up=False, detail="refused")
            for target in self.agent.state.remembered.health
            if str(target.address) == address
            for _ in range(target.check.fall)
        ]

    def weights(self, service: ServiceSettings = SERVICE) -> dict[str, int]:
        entry = self.kernel.read().table.entries.get(service.kernel_keys()[0])
        return {} if entry is None else {str(k.address): s.weight for k, s in entry.servers.items()}

    def told(self) -> str:
        return "\n".join(line["text"] for line in self.agent.event_log.lines())


@asynccontextmanager
async def agent_at_work(
    folder: Path,
    kernel: FakeKernel,
    settings: Settings = SETTINGS,
    *,
    write: Callable[[Path, str], None] = state_file.write,
    patience: float = 10,
) -> AsyncIterator[Desk]:
    desk = Desk(StateFile(folder / "state.json", write=write), kernel)
    owner = asyncio.create_task(desk.agent.run())
    desk.agent.configure(settings)
    try:
        async with asyncio.timeout(patience):
            await desk.agent.first_sync_done.wait()
            yield desk
        if owner.done():
            owner.result()
    finally:
        owner.cancel()
        await asyncio.wait({owner})


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


def test_from_boot_to_weight_and_from_request_to_removal(tmp_path: Path) -> None:
    async def story() -> None:
        async with agent_at_work(tmp_path, FakeKernel()) as desk:
            await desk.say(listed(mail1=None, mail2=4))
            assert desk.weights() == {}
            await desk.pass_checks()
            assert desk.weights() == {"10.0.0.12": 1, "10.0.0.13": 1}
            await desk.say(Started(at=clock.now(), guest=guest(1), name="mail1", incarnation=5))
            assert "10.0.0.11" not in desk.weights()  # it boots
            await desk.pass_checks()
            assert desk.weights() == {"10.0.0.11": 1, "10.0.0.12": 1, "10.0.0.13": 1}
            await desk.say(
                ShutdownRequested(
                    at=clock.now(), guest=guest(1), incarnation=5, kind=RequestKind.POWEROFF
                )
            )
            assert desk.weights() == {"10.0.0.11": 0, "10.0.0.12": 1, "10.0.0.13": 1}
            await desk.say(Died(at=clock.now(), guest=guest(1), incarnation=5))
            assert desk.weights() == {"10.0.0.12": 1, "10.0.0.13": 1}
            assert "ms after the event" in desk.told()

    asyncio.run(story())


@pytest.mark.parametrize(
    ("count", "seconds"), [(10 * RESULTS, 10.0), (2 * RESULTS, 0.0), (9, 10.0)]
)
def test_a_request_does_not_wait_for_thousands_of_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, seconds: float
) -> None:
    """Nor for some that take long, as where each lets a server in, nor for a few beside it."""
    monkeypatch.setattr(agent_module, "RESULTS_TIME", seconds)

    async def story() -> None:
        async with agent_at_work(tmp_path, FakeKernel()) as desk:
            await desk.say(listed(mail1=5, mail2=4))
            await desk.pass_checks()
            host = next(
                t
                for t in desk.agent.state.remembered.health
                if t.address == ip_address("10.0.0.13")
            )
            results = [
                ProbeFinished(
                    at=clock.now(), target=host, started=clock.now(), up=n % 2 == 1, detail=str(n)
                )
                for n in range(count)
            ]
            asked = ShutdownRequested(
                at=clock.now(), guest=guest(1), incarnation=5, kind=RequestKind.POWEROFF
            )
            last = replace(results[-1], detail="the last")
            seen: list[str] = []
            desk.agent.on_state_change = lambda _, state: seen.append(
                state.remembered.health[host].detail
            )
            everything = asyncio.create_task(desk.say(*results, last))
            await asyncio.sleep(0)
            await desk.say(asked)
            assert desk.weights()["10.0.0.11"] == 0
            assert desk.agent.state.remembered.health[host].detail != "the last"
            assert not everything.done(), "who waits for a result is told when it was taken"
            await everything
            assert seen[-1] == "the last"
            numbers = [int(detail) for detail in seen[:-1]]
            assert numbers == sorted(numbers), "they are taken in the order in which they came"
            assert numbers[-1] >= count - (RESULTS if seconds else 1) or count < RESULTS

    asyncio.run(story())


def test_a_restart_takes_no_serving_server_out(tmp_path: Path) -> None:
    async def story() -> None:
        kernel = Recorder()
        async with agent_at_work(tmp_path, kernel) as desk:
            await desk.say(listed(mail1=5, mail2=4))
            await desk.pass_checks()
            await desk.say(
                ShutdownRequested(
                    at=clock.now(), guest=guest(2), incarnation=4, kind=RequestKind.REBOOT
                )
            )
            before = kernel.read().table
        kernel.ops.clear()
        async with agent_at_work(tmp_path, kernel) as desk:
            assert kernel.read().table == before
            await desk.say(listed(mail1=5, mail2=4))
            await desk.pass_checks()
            assert kernel.read().table == before  # the drain of mail2 was not forgotten
            assert kernel.ops == []

    asyncio.run(story())


def test_what_died_while_the_agent_was_away_is_removed_when_libvirt_was_listed(
    tmp_path: Path,
) -> None:
    async def story() -> None:
        kernel = FakeKernel()
        async with agent_at_work(tmp_path, kernel) as desk:
            await desk.say(listed(mail1=5, mail2=4))
            await desk.pass_checks()
        async with agent_at_work(tmp_path, kernel) as desk:
            await desk.say(Disconnected(at=clock.now(), uri=XEN, reason="refused"))
            assert set(desk.weights()) == {"10.0.0.11", "10.0.0.12", "10.0.0.13"}
            await desk.say(listed(mail1=None, mail2=9))
            assert set(desk.weights()) == {"10.0.0.13"}

    asyncio.run(story())


def test_what_has_left_the_table_is_not_ours_after_a_restart(tmp_path: Path) -> None:
    async def story() -> None:
        async with agent_at_work(tmp_path, FakeKernel()) as desk:
            await desk.say(listed(mail1=5))
            await desk.pass_checks()
            assert (KEY, key(11)) in state_file.load(desk.agent.state_file).servers
            await desk.say(Died(at=clock.now(), guest=guest(1), incarnation=5))
            desk.agent.resync()
            await until(
                lambda: (KEY, key(11)) not in state_file.load(desk.agent.state_file).servers
            )

    asyncio.run(story())


def test_drift_is_repaired_and_told(tmp_path: Path) -> None:
    async def story() -> None:
        kernel = FakeKernel()
        async with agent_at_work(tmp_path, kernel) as desk:
            await desk.say(listed(mail1=5))
            await desk.pass_checks()
            server = kernel.read().table.server(KEY, key(11))
            assert server is not None
            kernel.do(SetServer(service=KEY, server=weighing(server, 9)))
            kernel.do(DeleteServer(service=KEY, key=key(13)))
            desk.agent.resync()
            await until(lambda: desk.weights() == {"10.0.0.11": 1, "10.0.0.13": 1})
            await until(lambda: desk.told().count("drift repaired: ipvsadm") == 2)

    asyncio.run(story())


def test_the_sorry_server_leaves_by_a_read_that_counts_its_connections(tmp_path: Path) -> None:
    service = replace(SERVICE, sorry_server=(ip_address("10.0.0.99"), 0))

    async def story() -> None:
        kernel = FakeKernel()
        settings = replace(SETTINGS, services=(service,))
        async with agent_at_work(tmp_path, kernel, settings) as desk:
            await desk.say(listed(mail1=5))
            await until(lambda: desk.weights() == {"10.0.0.99": 1})
            kernel.count(KEY, key(99), Counters(active_connections=1))
            await desk.pass_checks()
            serving = {"10.0.0.11": 1, "10.0.0.13": 1}
            assert desk.weights() == {**serving, "10.0.0.99": 0}
            reads = kernel.reads
            desk.agent.resync()
            await until(lambda: kernel.reads > reads)
            assert desk.weights() == {**serving, "10.0.0.99": 0}
            kernel.count(KEY, key(99), Counters())
            desk.agent.resync()
            await until(lambda: desk.weights() == serving)

    asyncio.run(story())


def test_a_read_that_is_asked_for_repairs_at_once_and_names_what_others_changed(
    tmp_path: Path,
) -> None:
    async def story() -> None:
        kernel = FakeKernel()
        async with agent_at_work(tmp_path, kernel) as desk:
            await desk.say(listed(mail1=5))
            await desk.pass_checks()
            server = kernel.read().table.server(KEY, key(11))
            assert server is not None
            kernel.do(SetServer(service=KEY, server=weighing(server, 9)))
            kernel.count(KEY, key(13), Counters(active_connections=3))
            before = kernel.reads
            first, *others = await asyncio.gather(*(desk.agent.reread() for _ in range(20)))
            assert all(each is other for each, other in zip(others, others, strict=True))
            assert kernel.reads - before <= 2, "all that ask at one time share a read"
            repaired = first.table.server(KEY, key(11))
            assert repaired == server
            assert desk.weights() == {"10.0.0.11": 1, "10.0.0.13": 1}
            assert first.counters[KEY][key(13)].active_connections == 3
            (line,) = desk.agent.engine.repairs
            assert line == "ipvsadm -e -t 192.0.2.10:25 -r 10.0.0.11:25 -m -w 1"
            assert f"drift repaired: {line}" in desk.told()
            await desk.agent.reread()
            assert desk.agent.engine.repairs == ()
            kernel.error = IpvsError("no", "")
            with pytest.raises(IpvsError):
                await desk.agent.reread()

    asyncio.run(story())


def test_what_another_tool_changed_is_named_also_beside_an_event(tmp_path: Path) -> None:
    """And what the event itself changes is not."""

    async def story() -> None:
        kernel = FakeKernel()
        async with agent_at_work(tmp_path, kernel) as desk:
            await desk.say(listed(mail1=5, mail2=4))
            await desk.pass_checks()
            kernel.do(DeleteServer(service=KEY, key=key(13)))
            read = asyncio.create_task(desk.agent.reread())
            while desk.agent._snapshot is None:
                await asyncio.sleep(0)
            await desk.say(
                ShutdownRequested(
                    at=clock.now(), guest=guest(1), incarnation=5, kind=RequestKind.POWEROFF
                )
            )
            await read
            assert desk.told().count("drift repaired") == 1
            assert "drift repaired: ipvsadm -a -t 192.0.2.10:25 -r 10.0.0.13:25" in desk.told()

    asyncio.run(story())


def test_a_reload_repairs_and_says_how_many_connections_it_cuts(tmp_path: Path) -> None:
    async def story() -> None:
        kernel = FakeKernel()
        async with agent_at_work(tmp_path, kernel) as desk:
            await desk.say(listed(mail1=5, mail2=4))
            await desk.pass_checks()
            for last, count in ((11, 2), (13, 5)):
                kernel.count(KEY, key(last), Counters(active_connections=count))
            (tmp_path / "xenlb.yaml").write_text("services: {}\n")
            assert await desk.agent.reload() == ()
            await until(lambda: not kernel.read().table.entries)
            removed = "mail (192.0.2.10:25/tcp) removed with 3 servers and 7 connections"
            (told,) = (
                line
                for line in desk.agent.event_log.lines()
                if line["text"].startswith(f"configuration loaded: {removed}")
            )
            assert told["level"] == "warning"

    asyncio.run(story())


def test_a_failed_operation_is_told_once_and_tried_again(tmp_path: Path) -> None:
    async def story() -> None:
        kernel = FakeKernel()
        kernel.fail("10.0.0.12", errno.ENOMEM, times=1)
        async with agent_at_work(tmp_path, kernel) as desk:
            await desk.say(listed(mail1=5, mail2=4))
            await desk.pass_checks()
            assert desk.weights() == {"10.0.0.11": 1, "10.0.0.13": 1}
            await until(lambda: "10.0.0.12" in desk.weights())
            assert desk.told().count("failed") == 1

    asyncio.run(story())


def test_an_entry_made_by_another_is_adopted_when_it_is_wanted(tmp_path: Path) -> None:
    async def story() -> None:
        kernel = Recorder()
        async with agent_at_work(tmp_path, kernel) as desk:
            await desk.say(listed(mail1=5))
            await desk.pass_checks()
        (tmp_path / "state.json").unlink()  # lost: whose the servers are is not known any more
        kernel.ops.clear()
        async with agent_at_work(tmp_path, kernel) as desk:
            await desk.say(listed(mail1=5))
            assert desk.weights() == {"10.0.0.11": 1, "10.0.0.13": 1}
            await desk.pass_checks()
            assert kernel.ops == []
            await desk.say(Died(at=clock.now(), guest=guest(1), incarnation=5))
            assert desk.weights() == {"10.0.0.13": 1}

    asyncio.run(story())


def test_no_ipvs_in_the_kernel_is_told_once_and_waited_for(tmp_path: Path) -> None:
    async def story() -> None:
        kernel = FakeKernel()
        kernel.error = IpvsError("the kernel has no IPVS", "load it with: modprobe ip_vs")
        async with agent_at_work(tmp_path, kernel) as desk:
            assert "modprobe ip_vs" in desk.agent.engine.kernel_problem
            await desk.say(listed(mail1=5))
            await desk.pass_checks()
            kernel.error = None
            desk.agent.resync()
            await until(lambda: desk.weights() == {"10.0.0.11": 1, "10.0.0.13": 1})
            assert desk.agent.engine.kernel_problem == ""
            assert desk.told().count("modprobe ip_vs") == 1

    asyncio.run(story())


class Unreadable(FakeKernel):
    """The next `reads_failing` reads are lost, as with ENOBUFS; operations are taken."""

    reads_failing = 0

    def read(
        self, keys: Collection[ServiceKey] | None = None, *, counters: bool = True
    ) -> Snapshot:
        if self.reads_failing:
            self.reads_failing -= 1
            raise IpvsError("the kernel's answer was lost", "it is read again")
        return super().read(keys, counters=counters)


def test_a_read_that_failed_is_made_again_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_module, "RETRY", 3600.0)

    async def story() -> None:
        kernel = Unreadable()
        async with agent_at_work(tmp_path, kernel) as desk:
            kernel.reads_failing = 1
            desk.agent.resync()
            await until(lambda: not kernel.reads_failing and not desk.agent.engine.kernel_problem)
            assert desk.told().count("the kernel's answer was lost") == 1

    asyncio.run(story())


def test_reads_that_fail_forbid_no_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_module, "RETRY", 0.01)

    async def story() -> None:
        kernel = Unreadable()
        async with agent_at_work(tmp_path, kernel) as desk:
            await desk.say(listed(mail1=5, mail2=6))
            await desk.pass_checks()
            kernel.reads_failing = 10**9
            desk.agent.resync()
            await until(lambda: bool(desk.agent.engine.kernel_problem))
            await desk.say(
                ShutdownRequested(
                    at=clock.now(), guest=guest(1), incarnation=5, kind=RequestKind.POWEROFF
                )
            )
            left, kernel.reads_failing = kernel.reads_failing, 0
            assert left > 0
            assert desk.weights() == {"10.0.0.11": 0, "10.0.0.12": 1, "10.0.0.13": 1}
            assert desk.told().count("the kernel's answer was lost") == 1, "however often it fails"
            await until(lambda: not desk.agent.engine.kernel_problem)
            assert "drift" not in desk.told()

    asyncio.run(story())


def test_a_write_that_failed_is_made_again(tmp_path: Path) -> None:
    async def story() -> None:
        kernel = FakeKernel()
        async with agent_at_work(tmp_path, kernel) as desk:
            await desk.say(listed(mail1=5, mail2=6))
            await desk.pass_checks()
            kernel.error = IpvsError("the kernel's answer was lost", "it is tried again")
            await desk.say(
                ShutdownRequested(
                    at=clock.now(), guest=guest(1), incarnation=5, kind=RequestKind.POWEROFF
                )
            )
            kernel.error = None
            await until(lambda: desk.weights()["10.0.0.11"] == 0)
            assert "drift" not in desk.told()

    asyncio.run(story())


def test_a_new_configuration_takes_effect_at_once_and_a_wrong_one_not_at_all(
    tmp_path: Path,
) -> None:
    async def story() -> None:
        kernel = FakeKernel()
        async with agent_at_work(tmp_path, kernel) as desk:
            await desk.say(listed(mail1=5))
            await desk.pass_checks()
            file = tmp_path / "xenlb.yaml"
            file.write_text("services: [")
            assert await desk.agent.reload()
            await until(lambda: bool(desk.agent.state.observed.problems))
            assert desk.weights() == {"10.0.0.11": 1, "10.0.0.13": 1}
            file.write_text("services: {}\n")
            assert await desk.agent.reload() == ()
            await until(lambda: not kernel.read().table.entries)
            assert desk.agent.state.observed.problems == ()

    asyncio.run(story())


def test_a_service_that_another_tool_uses_since_the_last_read_stays(tmp_path: Path) -> None:
    async def story() -> None:
        kernel = FakeKernel()
        async with agent_at_work(tmp_path, kernel) as desk:
            await desk.say(listed(mail1=5))
            await desk.pass_checks()
            ours = kernel.read().table.server(KEY, key(11))
            assert ours is not None
            kernel.do(AddServer(service=KEY, server=replace(ours, key=key(99))))
            desk.agent.configure(Settings(uris=(XEN,)))
            await until(lambda: desk.weights() == {"10.0.0.99": 1})
            assert "drift" not in desk.told()

    asyncio.run(story())


def test_a_quiesce_does_not_wait_for_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_file, "SMALLEST", 0)
    let, asked = threading.Event(), threading.Event()

    def write(file: Path, text: str) -> None:
        asked.set()
        assert let.wait(20), "it is waited for in the owner's thread"
        state_file.write(file, text)

    async def story() -> None:
        kernel = FakeKernel()
        async with agent_at_work(tmp_path, kernel, write=write) as desk:
            await desk.say(listed(mail1=5, mail2=4))
            await desk.pass_checks()
            await desk.say(DrainRequested(at=clock.now(), guest=guest(2), by="root"))
            await until(asked.is_set)
            await desk.say(
                ShutdownRequested(
                    at=clock.now(), guest=guest(1), incarnation=5, kind=RequestKind.POWEROFF
                )
            )
            assert desk.weights() == {"10.0.0.11": 0, "10.0.0.12": 0, "10.0.0.13": 1}
            killed = tmp_path / "killed"
            killed.mkdir()
            (killed / "state.json").write_bytes((tmp_path / "state.json").read_bytes())
            before = kernel.read().table
            inode = os.stat(tmp_path / "state.json").st_ino
            asyncio.get_running_loop().call_later(0.1, let.set)
        assert os.stat(tmp_path / "state.json").st_ino != inode, "who ends waits for the disk"
        for folder in (tmp_path, killed):  # it stopped by itself, or by SIGKILL amid the write
            async with agent_at_work(folder, FakeKernel(before)) as desk:
                await desk.say(listed(mail1=5, mail2=4))
                assert desk.kernel.read().table == before

    asyncio.run(story())
    assert [entry.name for entry in tmp_path.glob("state.*")] == ["state.json"]


def test_a_kill_at_any_point_strands_nothing_and_forgets_no_drain(tmp_path: Path) -> None:
    """At each: the table and the file as they were, and an agent that begins from them."""

    async def story() -> None:
        kernel = Photographer(tmp_path / "state.json")
        told: list[Photo] = []
        async with agent_at_work(tmp_path, kernel) as desk:
            for event in (
                listed(mail1=5, mail2=4),
                None,
                DrainRequested(at=clock.now(), guest=guest(2), by="root"),
                ShutdownRequested(
                    at=clock.now(), guest=guest(1), incarnation=5, kind=RequestKind.REBOOT
                ),
                Died(at=clock.now(), guest=guest(1), incarnation=5),
                Started(at=clock.now(), guest=guest(1), name="mail1", incarnation=6),
                None,
            ):
                await (desk.pass_checks() if event is None else desk.say(event))
                told.append(kernel.photo())
        assert len(kernel.photos) >= 5
        for number, (table, data) in enumerate(kernel.photos):  # right after the kernel's batch
            folder = again(tmp_path, f"amid{number}", data)
            nothing = Settings(uris=(XEN,))
            async with agent_at_work(folder, FakeKernel(table), nothing) as desk:
                await desk.say(listed(mail1=None, mail2=None))
                desk.agent.resync()
                await until(lambda: not desk.kernel.read().table.entries)
        for number, (table, data) in enumerate(told):  # once who asked was told that it is done
            folder = again(tmp_path, f"after{number}", data)
            recorder = Recorder()
            recorder.do(*diff(table, Table(), Owned()))
            async with agent_at_work(folder, recorder):
                assert recorder.read().table == table
                assert recorder.ops == []

    asyncio.run(story())


def again(folder: Path, name: str, data: bytes) -> Path:
    """The folder of an agent that finds this state file."""
    (folder / name).mkdir()
    (folder / name / "state.json").write_bytes(data)
    return folder / name


Photo = tuple[Table, bytes]


class Photographer(FakeKernel):
    """Remembers its table and the state file as they were right after each batch."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.file = file
        self.photos: list[Photo] = []

    def photo(self) -> Photo:
        return self.read().table, self.file.read_bytes()

    def apply(self, ops: Sequence[Op]) -> tuple[OpFailed, ...]:
        failed = super().apply(ops)
        self.photos.append(self.photo())
        return failed


def weighing(server: Server, weight: int) -> Server:
    return replace(server, weight=weight)


class Recorder(FakeKernel):
    """Remembers what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: list[str] = []

    def apply(self, ops: Sequence[Op]) -> tuple[OpFailed, ...]:
        self.ops += [str(op) for op in ops]
        return super().apply(ops)
