"""Which probe is asked, and that all who ask at once get it."""

import asyncio
import socket
import subprocess
import sys
from ipaddress import ip_address

from xenlb.health.answer import Answer
from xenlb.health.ask import ask
from xenlb.model.events import Target
from xenlb.model.settings import Check

# In a process of its own, where no probe is loaded yet, and where other threads are slow.
ALL_AT_ONCE = """
import asyncio, threading, time
from tests.unit.health.test_ask import many
threading.setprofile(lambda *_: time.sleep(0.0001))
asyncio.run(many())
"""


async def many() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=1000) as server:
        here = Target(check=Check(), address=ip_address("127.0.0.1"), port=server.getsockname()[1])
        tasks: list[asyncio.Task[Answer]] = []
        while not tasks or not tasks[0].done():
            tasks.append(asyncio.create_task(ask(here)))
            await asyncio.sleep(0.001)
        answers = await asyncio.gather(*tasks)
    assert {answer.up for answer in answers} == {True}


def test_the_first_checks_of_a_type_all_get_its_probe() -> None:
    """It is loaded in a thread, and half loaded for a while."""
    done = subprocess.run(
        [sys.executable, "-c", ALL_AT_ONCE], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
