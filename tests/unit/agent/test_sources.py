"""Which sources run for which configuration, and what hooks come to."""

import asyncio
from pathlib import Path
from uuid import UUID

import pytest

from tests.fakes.kernel import FakeKernel
from tests.unit.agent.test_loop import agent_at_work, listed
from xenlb import clock
from xenlb.agent.loop import Agent
from xenlb.agent.sources import Sources
from xenlb.hypervisor.libvirt.hooks import HookCall
from xenlb.hypervisor.libvirt.source import LibvirtSource
from xenlb.hypervisor.uri import is_local_xen
from xenlb.model.domain import GuestId
from xenlb.model.events import Died, Event
from xenlb.model.guest import Guest
from xenlb.model.settings import Settings
from xenlb.model.state import LibvirtLink, Observed, State

LXC, QEMU, FAR = "lxc:///", "qemu:///system", "lxc+ssh://dom0b/"


@pytest.mark.parametrize(
    ("uri", "capabilities", "local"),
    [
        ("xen:///system", None, True),  # a service with a private /proc sees no /proc/xen
        ("xen:///", None, True),
        ("default", "control_d\n", True),
        ("default", "", False),  # a guest of Xen
        ("default", None, False),
        ("qemu:///system", "control_d\n", False),
        ("xen+ssh://dom0b/system", "control_d\n", False),
    ],
)
def test_whether_a_libvirt_has_the_guests_of_this_dom0(
    uri: str, capabilities: str | None, local: bool, tmp_path: Path
) -> None:
    file = tmp_path / "capabilities"
    if capabilities is not None:
        file.write_text(capabilities)
    assert is_local_xen(uri, file) is local


def test_what_hooks_tell(tmp_path: Path) -> None:
    """Of the guests of this host's own libvirts, by the driver that called the hook."""
    ids = {uri: GuestId(uri=uri, uuid=UUID(int=1)) for uri in (LXC, QEMU, FAR)}

    async def story() -> tuple[list[Event], list[str], set[str]]:
        agent = Agent(
            config=tmp_path / "x",
            state_file=tmp_path / "s",
            socket=tmp_path / "c",
            kernel=FakeKernel(),
        )
        guests = [Guest(id=key, name="mail1") for key in ids.values()]
        agent.engine.state = State().with_guests(*guests)
        sources = Sources(agent)
        heard: list[Event] = []
        agent.emit = lambda event, applied=None: heard.append(event)  # type: ignore[method-assign]
        hurried = set()
        for uri, kind in ((LXC, "LXC"), (QEMU, "QEMU"), (FAR, "LXC")):
            source = LibvirtSource(uri, agent.emit, clock.now)
            source._memory.hypervisor_type = kind
            source.reconnect_now = lambda uri=uri: hurried.add(uri)  # type: ignore[method-assign,misc]
            sources.libvirts[uri] = source
        for driver, operation, domid in (
            ("lxc", "prepare", None),
            ("qemu", "migrate", None),
            ("lxc", "started", 7),
            ("qemu", "stopped", None),  # whose domain? libvirt's event tells
            ("lxc", "stopped", 7),
            ("lxc", "release", None),
            ("lxc", "reconnect", 8),
        ):
            call = HookCall(
                driver=driver,
                operation=operation,
                suboperation="begin",
                uuid=UUID(int=1),
                domid=domid,
                name="mail1",
            )
            sources.hooked(call)
        return heard, [line["text"] for line in agent.event_log.lines()], hurried

    heard, notes, hurried = asyncio.run(story())
    assert [(type(event), getattr(event, "guest", None)) for event in heard] == [(Died, ids[LXC])]
    assert notes == ["libvirt's hook: prepare", "libvirt's hook: migrate"]
    assert hurried == {LXC}


def test_what_guests_say_is_taken_before_it_is_answered(tmp_path: Path) -> None:
    async def story() -> None:
        async with agent_at_work(tmp_path, FakeKernel()) as desk:
            sources = Sources(desk.agent)
            await desk.say(listed(mail1=5, mail2=None))
            await desk.pass_checks()
            assert await sources.reported(UUID(int=1), "leaving")
            assert desk.weights()["10.0.0.11"] == 0
            assert await sources.reported(UUID(int=1), "staying")
            assert desk.weights()["10.0.0.11"] == 0, "it serves again when a check has passed"
            await desk.pass_checks()
            assert desk.weights()["10.0.0.11"] == 1
            assert not await sources.reported(UUID(int=2), "leaving"), "it does not run"
            assert not await sources.reported(UUID(int=9), "leaving"), "no such guest"

    asyncio.run(story())


def test_a_changed_keepalive_reaches_the_source(tmp_path: Path) -> None:
    async def story() -> None:
        agent = Agent(
            config=tmp_path / "x",
            state_file=tmp_path / "s",
            socket=tmp_path / "c",
            kernel=FakeKernel(),
        )
        sources = Sources(agent)
        for keepalive in (8.0, 60.0):
            before = agent.state
            settings = Settings(uris=("test:///default",), keepalive=keepalive)
            links = {"test:///default": LibvirtLink(since=0.0)}
            agent.engine.state = State(observed=Observed(settings=settings, links=links))
            sources.on_state_change(before, agent.state)
            assert sources.libvirts["test:///default"].keepalive == keepalive
        await sources.stop()

    asyncio.run(story())
