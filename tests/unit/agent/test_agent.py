"""The owner task against the strict fake kernel: what is heard becomes what the kernel has."""

import asyncio
import errno
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from uuid import UUID

from tests.fakes.kernel import FakeKernel
from xenlb import clock
from xenlb.agent import RESULTS, Agent
from xenlb.ipvs.errors import IpvsError
from xenlb.ipvs.op import AddServer, DeleteServer, Op, OpFailed, SetServer
from xenlb.ipvs.table import AddressKey, Protocol, Server, ServerKey
from xenlb.model.events import (
    Ask,
    Asked,
    Described,
    Died,
    Disconnected,
    Event,
    GuestId,
    Listed,
    Power,
    Probed,
    Started,
)
from xenlb.model.settings import Member, Port, ServiceSettings, Settings

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


def listed(**power: int | None) -> Listed:
    """mail1=5: it runs as domain 5; mail1=None: it is off."""
    at = clock.now()
    described = tuple(
        Described(
            guest=guest(int(name.removeprefix("mail"))),
            name=name,
            power=Power.OFF if domain is None else Power.RUNNING,
            incarnation=domain,
        )
        for name, domain in power.items()
    )
    return Listed(at=at, asked=at, uri=XEN, guests=described)


class Desk:
    """An agent at work on a fake kernel, and what a test does with it."""

    def __init__(self, folder: Path, kernel: FakeKernel) -> None:
        self.kernel = kernel
        self.agent = Agent(
            config=folder / "xenlb.yaml",
            state_file=folder / "state.json",
            socket=folder / "control.sock",
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
                Probed(at=clock.now(), target=target, asked=clock.now(), up=True, detail="")
                for target in self.agent.state.health
            )
        )

    def weights(self) -> dict[str, int]:
        entry = self.kernel.read().table.entries.get(KEY)
        return {} if entry is None else {str(k.address): s.weight for k, s in entry.servers.items()}

    def told(self) -> str:
        return "\n".join(line["text"] for line in self.agent.journal.lines())


@asynccontextmanager
async def agent_at_work(
    folder: Path, kernel: FakeKernel, settings: Settings = SETTINGS
) -> AsyncIterator[Desk]:
    desk = Desk(folder, kernel)
    owner = asyncio.create_task(desk.agent.own())
    desk.agent.configure(settings)
    try:
        async with asyncio.timeout(10):
            await desk.agent.begun.wait()
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
            await desk.say(Asked(at=clock.now(), guest=guest(1), incarnation=5, ask=Ask.POWEROFF))
            assert desk.weights() == {"10.0.0.11": 0, "10.0.0.12": 1, "10.0.0.13": 1}
            await desk.say(Died(at=clock.now(), guest=guest(1), incarnation=5))
            assert desk.weights() == {"10.0.0.12": 1, "10.0.0.13": 1}
            assert "ms after the event" in desk.told()

    asyncio.run(story())


def test_a_request_does_not_wait_for_thousands_of_results(tmp_path: Path) -> None:
    async def story() -> None:
        async with agent_at_work(tmp_path, FakeKernel()) as desk:
            await desk.say(listed(mail1=5, mail2=4))
            await desk.pass_checks()
            host = next(t for t in desk.agent.state.health if t.address == ip_address("10.0.0.13"))
            results = [
                Probed(at=clock.now(), target=host, asked=clock.now(), up=n % 2 == 1, detail=str(n))
                for n in range(10 * RESULTS)
            ]
            asked = Asked(at=clock.now(), guest=guest(1), incarnation=5, ask=Ask.POWEROFF)
            last = replace(results[-1], detail="the last")
            everything = asyncio.create_task(desk.say(*results, last))
            await asyncio.sleep(0)
            await desk.say(asked)
            assert desk.weights()["10.0.0.11"] == 0
            assert desk.agent.state.health[host].detail != "the last"
            assert not everything.done(), "who waits for a result is told when it was taken"
            await everything
            assert desk.agent.state.health[host].detail == "the last"

    asyncio.run(story())


def test_a_restart_takes_no_serving_server_out(tmp_path: Path) -> None:
    async def story() -> None:
        kernel = Recorder()
        async with agent_at_work(tmp_path, kernel) as desk:
            await desk.say(listed(mail1=5, mail2=4))
            await desk.pass_checks()
            await desk.say(Asked(at=clock.now(), guest=guest(2), incarnation=4, ask=Ask.REBOOT))
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
            assert "modprobe ip_vs" in desk.agent.kernel_problem
            await desk.say(listed(mail1=5))
            await desk.pass_checks()
            kernel.error = None
            desk.agent.resync()
            await until(lambda: desk.weights() == {"10.0.0.11": 1, "10.0.0.13": 1})
            assert desk.agent.kernel_problem == ""
            assert desk.told().count("modprobe ip_vs") == 1

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
            await until(lambda: bool(desk.agent.state.problems))
            assert desk.weights() == {"10.0.0.11": 1, "10.0.0.13": 1}
            file.write_text("services: {}\n")
            assert await desk.agent.reload() == ()
            await until(lambda: not kernel.read().table.entries)
            assert desk.agent.state.problems == ()

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
