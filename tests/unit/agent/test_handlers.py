"""What the agent answers to a command: refusals, and what they say."""

import asyncio
import errno
import json
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.kernel import FakeKernel
from tests.unit.agent.test_loop import KEY, SERVICE, XEN, Desk, agent_at_work, key, listed, until
from xenlb.agent.handlers import Handlers
from xenlb.cli import status_lines
from xenlb.control import answers
from xenlb.control.json_chunks import SharedJson, json_chunks
from xenlb.control.protocol import ControlError
from xenlb.ipvs.errors import IpvsError
from xenlb.ipvs.op import AddServer, DeleteServer
from xenlb.ipvs.table import Counters, Forwarding, Server
from xenlb.model.settings import Member, Settings


def verbs_of(desk: Desk) -> Handlers:
    return Handlers(desk.agent, lambda: [])


def asked(guest: str, **more: object) -> dict[str, object]:
    return {"guest": guest, "by": "root", **more}


async def settled(desk: Desk) -> None:
    """Two guests and a host that serve."""
    await desk.say(listed(mail1=5, mail2=4))
    await desk.pass_checks()


def test_a_drain_that_would_leave_no_serving_server_asks_for_force(tmp_path: Path) -> None:
    async def story() -> None:
        async with agent_at_work(tmp_path, FakeKernel()) as desk:
            await settled(desk)
            verbs = verbs_of(desk)
            only = {"10.0.0.12": 1, "10.0.0.13": 1}
            await verbs.drain(asked("mail1"))
            assert desk.weights() == {"10.0.0.11": 0, **only}
            await desk.say(*desk.failing("10.0.0.13"))
            with pytest.raises(ControlError) as caught:
                await verbs.drain(asked("mail2", then="reboot"))
            assert caught.value.message == (
                "that would leave mail (192.0.2.10:25/tcp) without a serving server"
            )
            assert "--force" in caught.value.hint
            assert desk.weights()["10.0.0.12"] == 1, "nothing was done"
            assert await alarms(verbs) == []
            await verbs.drain(asked("mail2", force=True))
            assert desk.weights()["10.0.0.12"] == 0
            (told,) = await alarms(verbs)
            assert (told["service"], told["address"], told["kind"], told["text"]) == (
                "mail",
                "192.0.2.10:25/tcp",
                "down",
                "no server serves: 1 failed, 2 draining",
            )
            await verbs.drain(asked("mail2"))  # it serves no client any more: nothing to lose
            await verbs.undrain(asked("mail2"))
            await desk.pass_checks()
            assert await alarms(verbs) == []
            assert desk.told().count("no server serves") == 1
            assert desk.told().count("serves again") == 1

    asyncio.run(story())


CONFIGURATION = """\
director: {addresses: leave}
libvirt: {uris: ["xen:///system"]}
services:
  mail:
    address: 192.0.2.10
    ports: [25]
    servers: [{guest: mail1, address: 10.0.0.11}, {guest: mail2, address: 10.0.0.12, weight: 2}]
"""


def test_a_reload_says_what_it_changes_and_the_connections_on_what_goes(tmp_path: Path) -> None:
    async def story() -> None:
        kernel = FakeKernel()
        async with agent_at_work(tmp_path, kernel) as desk:
            await settled(desk)
            verbs = verbs_of(desk)
            kernel.count(KEY, key(13), Counters(active_connections=14))
            file = tmp_path / "xenlb.yaml"
            file.write_text(CONFIGURATION)
            said = await verbs.reload({})
            changes = (
                "mail (192.0.2.10:25/tcp): 1 server removed (10.0.0.13:25) with 14 connections,"
                " weight 10.0.0.12:25 1 → 2 (1 service)"
            )
            assert said == {"reloaded": True, "changes": changes}
            assert f"configuration loaded: {changes}" in desk.told()
            kernel.count(KEY, key(12), Counters(active_connections=1))
            file.write_text("services: {}")
            said = await verbs.reload({})
            assert isinstance(said, dict)
            assert said["changes"].startswith(
                "mail (192.0.2.10:25/tcp) removed with 2 servers and 1 connection (0 services)"
            )
            status = await verbs.status({})
            assert isinstance(status, dict)
            assert status["config"]["changes"] == said["changes"]

    asyncio.run(story())


def test_what_others_change_is_named_and_repaired_at_once(tmp_path: Path) -> None:
    async def story() -> None:
        kernel = FakeKernel()
        async with agent_at_work(tmp_path, kernel) as desk:
            await settled(desk)
            verbs = verbs_of(desk)
            assert (await status(verbs))["differences"] == []
            kernel.do(DeleteServer(service=KEY, key=key(11)))
            told = await status(verbs)
            assert told["differences"] == ["ipvsadm -a -t 192.0.2.10:25 -r 10.0.0.11:25 -m -w 1"]
            head = status_lines.plain_text(status_lines.status_page(told, 0.0))
            assert "WAS NOT IN STEP: 1 difference found and repaired" in head
            assert "REPAIRED NOW: ipvsadm -a -t 192.0.2.10:25 -r 10.0.0.11:25" in head
            assert "10.0.0.11" in desk.weights()
            told = await status(verbs)
            assert told["differences"] == []
            assert status_lines.agent_state(told) == "in step"

    asyncio.run(story())


def test_what_the_kernel_refuses_is_not_in_step(tmp_path: Path) -> None:
    async def story() -> None:
        kernel = FakeKernel()
        kernel.fail("-A -t 192.0.2.10:25 -s wlc", errno.ENOENT, times=99)
        async with agent_at_work(tmp_path, kernel) as desk:
            await desk.say(listed(mail1=5, mail2=4))
            told = await status(verbs_of(desk))
            (refused,) = told["refused"]
            assert refused["operation"] == "ipvsadm -A -t 192.0.2.10:25 -s wlc"
            assert "wlc" in refused["reason"]
            assert status_lines.agent_state(told).startswith("NOT IN STEP: 1 operation refused")

    asyncio.run(story())


def test_a_repair_that_the_kernel_refuses_is_none(tmp_path: Path) -> None:
    async def story() -> None:
        kernel = FakeKernel()
        async with agent_at_work(tmp_path, kernel) as desk:
            await settled(desk)
            for last in (11, 12):
                kernel.do(DeleteServer(service=KEY, key=key(last)))
            kernel.fail("-a -t 192.0.2.10:25 -r 10.0.0.11:25 -m -w 1", errno.ENOMEM, times=99)
            told = await status(verbs_of(desk))
            assert told["differences"] == ["ipvsadm -a -t 192.0.2.10:25 -r 10.0.0.12:25 -m -w 1"]
            assert status_lines.agent_state(told).startswith(
                "NOT IN STEP: 1 operation refused by the kernel, 1 difference found and repaired"
            )

    asyncio.run(story())


def test_a_foreign_server_is_named_with_the_line_that_removes_it(tmp_path: Path) -> None:
    async def story() -> None:
        kernel = FakeKernel()
        async with agent_at_work(tmp_path, kernel) as desk:
            await settled(desk)
            stranger = Server(key=key(77), forwarding=Forwarding.MASQUERADE, weight=3)
            kernel.do(AddServer(service=KEY, server=stranger))
            kernel.count(KEY, key(77), Counters(active_connections=5))
            verbs = verbs_of(desk)
            told = await status(verbs)
            removal = "ipvsadm -d -t 192.0.2.10:25 -r 10.0.0.77:25"
            (service,) = told["services"]
            assert service["foreign_servers"] == 1
            assert service["foreign"] == [
                {
                    "address": "10.0.0.77",
                    "port": 25,
                    "weight": 3,
                    "active_connections": 5,
                    "remove": removal,
                }
            ]
            shown = status_lines.plain_text(status_lines.status_page(told, 0.0))
            assert "in step, 1 foreign server" in shown
            line = f"foreign server 10.0.0.77:25, weight 3, 5 connections; to remove it: {removal}"
            assert line in shown
            for _ in range(2):
                reads = kernel.reads
                desk.agent.resync()
                await until(lambda before=reads: kernel.reads > before)  # type: ignore[misc]
                await desk.say(listed(mail1=5, mail2=4))
            assert desk.told().count(removal) == 1
            with pytest.raises(ControlError, match="no service 'mial'") as caught:
                await verbs.take_over({"service": "mial", "by": "root"})
            assert caught.value.hint == "did you mean mail?"
            done = await verbs.take_over({"service": "mail", "by": "root"})
            assert done == {"done": [removal]}
            assert "10.0.0.77" not in desk.weights()
            assert "drift" not in desk.told()

    asyncio.run(story())


def test_undrain_of_a_guest_in_service_is_no_event(tmp_path: Path) -> None:
    async def story() -> None:
        async with agent_at_work(tmp_path, FakeKernel()) as desk:
            await settled(desk)
            verbs = verbs_of(desk)
            for _ in range(2):
                said = await verbs.undrain(asked("mail1"))
                assert isinstance(said, dict)
                assert said["changed"] is False
            assert "undrained" not in desk.told()
            await verbs.drain(asked("mail1"))
            said = await verbs.undrain(asked("mail1"))
            assert isinstance(said, dict)
            assert said["changed"] is True
            await desk.say(listed(mail1=None, mail2=4))
            for verb in (verbs.undrain, verbs.drain):
                with pytest.raises(ControlError, match="guest mail1 is not running"):
                    await verb(asked("mail1"))

    asyncio.run(story())


class Reports:
    """How many reports were made: of each, its services are built once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made = 0
        services = answers.services

        def counted(*arguments: Any, **settings: Any) -> Any:
            self.made += 1
            return services(*arguments, **settings)

        monkeypatch.setattr(answers, "services", counted)


@pytest.mark.parametrize("refused", [False, True])
def test_one_report_for_all_who_ask_at_the_same_time(
    refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the table cannot be read."""

    async def story() -> None:
        async with agent_at_work(tmp_path, kernel := FakeKernel()) as desk:
            await settled(desk)
            verbs, reports = verbs_of(desk), Reports(monkeypatch)
            if refused:
                kernel.error = IpvsError("no buffer space", "")
            before = kernel.reads
            told = await asyncio.gather(*(status(verbs) for _ in range(40)))
            assert all(each is told[0] for each in told)
            assert reports.made == 1
            assert kernel.reads - before <= 2, "the one under way when it was asked, and the next"
            later = await status(verbs)
            assert later is not told[0], "a later one is of a later read"
            one = await asyncio.gather(*(verbs.status({"service": "mail"}) for _ in range(40)))
            assert all(each is one[0] for each in one)
            assert reports.made == 3

    asyncio.run(story())


def test_an_answer_for_many_is_written_as_json_once() -> None:
    steps = 0

    def rows() -> Iterator[dict[str, int]]:
        nonlocal steps
        for n in range(20_000):
            steps += 1
            yield {"n": n}

    class Rows(list[dict[str, int]]):
        def __iter__(self) -> Iterator[dict[str, int]]:
            return rows()

    shared = SharedJson({"services": Rows([{}])})
    readers = [json_chunks({"ok": shared}) for _ in range(40)]
    texts = ["".join(parts) for parts in zip(*readers, strict=True)]  # in turn, piece by piece
    assert len(texts) > 2, "more than one piece"
    assert steps == 20_000
    first = json.loads("".join(json_chunks({"ok": shared})))
    assert first["ok"]["services"][-1] == {"n": 19_999}


def test_the_loop_runs_on_while_a_report_is_made(tmp_path: Path) -> None:
    """By pieces: others have their turn after some dozens of servers."""

    async def story() -> None:
        async with agent_at_work(tmp_path, FakeKernel()) as desk:
            service = replace(
                SERVICE,
                servers=tuple(
                    Member(host=ip_address("10.1.0.0") + n, weight=1) for n in range(1, 1001)
                ),
            )
            taken = asyncio.get_running_loop().create_future()
            desk.agent.configure(Settings(uris=(XEN,), services=(service,)), applied=taken)
            await taken
            verbs = verbs_of(desk)
            turns = 0

            async def other() -> None:
                nonlocal turns
                while True:
                    turns += 1
                    await asyncio.sleep(0)

            snapshot = await desk.agent.reread()
            running = asyncio.create_task(other())
            await asyncio.sleep(0)
            before = turns
            told = await verbs._services(snapshot)
            running.cancel()
            assert len(told[0]["servers"]) == 1000
            assert turns - before >= 1000 // answers.BATCH

    asyncio.run(story())


async def status(verbs: Handlers) -> dict[str, Any]:
    said = await verbs.status({})
    assert isinstance(said, dict)
    return said


async def alarms(verbs: Handlers) -> list[dict[str, Any]]:
    said = await verbs.status({})
    assert isinstance(said, dict)
    found: list[dict[str, Any]] = said["alarms"]
    return found
