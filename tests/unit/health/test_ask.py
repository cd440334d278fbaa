"""Probes are found by what is asked, and loaded when the first check of their type is there."""

import asyncio
import subprocess
import sys
from dataclasses import replace
from ipaddress import ip_address

import pytest

from tests.unit.health.datagrams import target
from xenlb.health import ask
from xenlb.health.runner import HealthRunner
from xenlb.model.checks import Tcp
from xenlb.model.events import Probed
from xenlb.model.health import Health

FIRST = """
import asyncio
from ipaddress import ip_address
from xenlb.health.ask import loaded
from xenlb.model.checks import Dns
from xenlb.model.events import Target
from xenlb.model.settings import Check

target = Target(check=Check(asks=Dns()), address=ip_address("127.0.0.1"), port=53)

async def main():
    probes = await asyncio.gather(*(loaded(target) for _ in range(100)))
    print(len(set(probes)))

asyncio.run(main())
"""


def test_many_first_probes_at_once() -> None:
    """A module is in sys.modules while another thread is still executing it."""
    done = subprocess.run(
        [sys.executable, "-c", FIRST], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("1\n", "")


@pytest.mark.parametrize("module", sorted(set(ask.MODULES.values())))
def test_each_has_its_module(module: str) -> None:
    __import__(f"xenlb.health.{module}")
    assert callable(sys.modules[f"xenlb.health.{module}"].probe)


def test_a_check_of_a_service_address_goes_through_the_server() -> None:
    plain = target(Tcp(), 80)
    through = replace(plain, vip=ip_address("192.0.2.10"))

    async def main() -> list[str]:
        return [(await ask.loaded(each)).__module__ for each in (plain, through)]

    assert asyncio.run(main()) == ["xenlb.health.tcp", "xenlb.health.vip"]


def test_loading_is_not_the_servers_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that takes longer to load than the check's timeout."""
    loaded = ask.loaded

    async def slowly(asked: object) -> object:
        await asyncio.sleep(0.6)
        return await loaded(plain)

    plain = target(Tcp(), 1, timeout=0.5)
    monkeypatch.setattr("xenlb.health.runner.loaded", slowly)

    async def main() -> Probed:
        results: asyncio.Queue[Probed] = asyncio.Queue()
        runner = HealthRunner(results.put_nowait, asyncio.get_running_loop().time)
        runner.targets({plain: Health(valid_from=0.0)})
        task = asyncio.create_task(runner.run())
        result = await asyncio.wait_for(results.get(), 10)
        task.cancel()
        await asyncio.wait([task])
        return result

    assert asyncio.run(main()).detail == "connection refused by 127.0.0.1 port 1"
