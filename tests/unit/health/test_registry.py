"""Probes are found by the type of check, and loaded with its first check."""

import asyncio
import socket
import subprocess
import sys
from dataclasses import replace
from ipaddress import ip_address

import pytest

from tests.unit.health.datagrams import target
from xenlb.health import registry
from xenlb.health.runner import HealthRunner
from xenlb.health.transport.result import Answer, answer_budget
from xenlb.model.checks import Tcp
from xenlb.model.events import ProbeFinished
from xenlb.model.health import Health
from xenlb.model.settings import Check
from xenlb.model.target import Target

# In a process of its own, where no probe is loaded yet, and where other threads are slow.
ALL_AT_ONCE = """
import asyncio, threading, time
from tests.unit.health.test_registry import many
threading.setprofile(lambda *_: time.sleep(0.0001))
asyncio.run(many())
"""


async def many() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=1000) as server:
        here = Target(check=Check(), address=ip_address("127.0.0.1"), port=server.getsockname()[1])
        tasks: list[asyncio.Task[Answer]] = []
        while not tasks or not tasks[0].done():
            tasks.append(asyncio.create_task(registry.run_probe(here, answer_budget())))
            await asyncio.sleep(0.001)
        answers = await asyncio.gather(*tasks)
    assert {answer.up for answer in answers} == {True}


def test_concurrent_first_checks_of_a_type_get_its_probe() -> None:
    """The module is loaded in a thread, and partly loaded for a while."""
    done = subprocess.run(
        [sys.executable, "-c", ALL_AT_ONCE], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", sorted(set(registry.MODULES.values())))
def test_each_type_of_check_has_a_module(module: str) -> None:
    __import__(f"xenlb.health.{module}")
    assert callable(sys.modules[f"xenlb.health.{module}"].probe)


def test_a_check_of_a_service_address_goes_through_the_server() -> None:
    plain = target(Tcp(), 80)
    through = replace(plain, vip=ip_address("192.0.2.10"))

    async def main() -> list[str]:
        return [(await registry.load_probe(each)).__module__ for each in (plain, through)]

    assert asyncio.run(main()) == ["xenlb.health.probes.tcp", "xenlb.health.via_vip.vip"]


def test_loading_a_probe_is_not_part_of_the_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that takes longer to load than the check's timeout."""
    loaded = registry.load_probe

    async def slowly(asked: object) -> object:
        await asyncio.sleep(0.6)
        return await loaded(plain)

    plain = target(Tcp(), 1, timeout=0.5)
    monkeypatch.setattr("xenlb.health.runner.load_probe", slowly)

    async def main() -> ProbeFinished:
        results: asyncio.Queue[ProbeFinished] = asyncio.Queue()
        runner = HealthRunner(results.put_nowait, asyncio.get_running_loop().time)
        runner.set_targets({plain: Health(valid_from=0.0)})
        task = asyncio.create_task(runner.run())
        result = await asyncio.wait_for(results.get(), 10)
        task.cancel()
        await asyncio.wait([task])
        return result

    assert asyncio.run(main()).detail == "connection refused by 127.0.0.1 port 1"
