"""What a developer sees of a running agent: its state, and on a signal its stacks."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from uuid import UUID

from tests.fakes.kernel import FakeKernel
from tests.unit.agent.test_loop import XEN, agent_at_work, listed
from xenlb.agent import debug
from xenlb.agent.handlers import Handlers
from xenlb.control import client
from xenlb.control.json_chunks import json_chunks
from xenlb.model.checks import Exec, Http, Tcp
from xenlb.model.domain import GuestId
from xenlb.model.guest import Guest
from xenlb.model.health import Health
from xenlb.model.settings import Check, Member, ServiceSettings, Settings
from xenlb.model.state import Derived, Observed, Remembered, State
from xenlb.model.target import Target

PATIENCE = 20.0  # seconds


def shown(state: State) -> Any:
    """The state as a client reads it."""
    return json.loads("".join(json_chunks(asyncio.run(debug.state_answer(state)))))["state"]


def test_debug_state_shows_the_state_of_the_agent(tmp_path: Path) -> None:
    async def story() -> None:
        async with agent_at_work(tmp_path, FakeKernel()) as desk:
            await desk.say(listed(mail1=5, mail2=4))
            await desk.pass_checks()
            answer = await Handlers(desk.agent, lambda: []).debug_state({})
            parsed = json.loads("".join(json_chunks({"ok": answer})))["ok"]
            assert parsed["now"] > 0
            state = parsed["state"]
            guests = {entry["value"]["name"]: entry for entry in state["remembered"]["guests"]}
            assert guests["mail1"]["key"]["uri"] == XEN
            assert guests["mail1"]["value"]["incarnation"] == 5
            assert guests["mail1"]["value"]["drain"] is None
            assert [entry["value"]["up"] for entry in state["remembered"]["health"]] == [True] * 3
            assert state["observed"]["settings"]["services"][0]["name"] == "mail"
            (link,) = state["observed"]["links"]
            assert (link["key"], link["value"]["connected"]) == (XEN, True)

    asyncio.run(story())


def test_only_root_may_see_the_state(tmp_path: Path) -> None:
    async def story() -> None:
        async with agent_at_work(tmp_path, FakeKernel()) as desk:
            assert Handlers(desk.agent, lambda: []).handlers()["debug-state"].writes

    asyncio.run(story())


def test_a_state_with_all_kinds_of_values_is_json() -> None:
    check = Check(asks=Http(path="/ok"), via_vip=True)
    target = Target(check=check, address=ip_address("::1"), port=1, vip=ip_address("::2"))
    state = State(
        observed=Observed(wrong_sysctls=frozenset({"b", "a"})),
        remembered=Remembered(health={target: Health(valid_from=1.0)}),
        derived=Derived(owners={ip_address("10.0.0.1"): None}, targets={target: {"web": ()}}),
    )
    (entry,) = shown(state)["remembered"]["health"]
    assert (entry["key"]["vip"], entry["key"]["check"]["asks"]["path"]) == ("::2", "/ok")
    assert shown(state)["observed"]["wrong_sysctls"] == ["a", "b"]
    assert shown(state)["derived"]["owners"] == [{"key": "10.0.0.1", "value": None}]
    assert shown(state)["derived"]["targets"][0]["value"] == [{"key": "web", "value": []}]


def test_passwords_are_not_shown() -> None:
    checks = (
        Check(asks=Exec(command=("/usr/bin/check", "-p", "geheim"))),
        Check(asks=Tcp(send="AUTH geheim\r\n")),
        Check(asks=Http(path="/ok?token=geheim")),
    )
    target = Target(check=checks[0], address=ip_address("10.0.0.1"), port=1)
    state = State(
        observed=Observed(
            settings=Settings(services=(ServiceSettings(name="web", checks=checks),))
        ),
        remembered=Remembered(health={target: Health(valid_from=1.0)}),
    )
    assert "geheim" not in json.dumps(shown(state))
    first, second, third = shown(state)["observed"]["settings"]["services"][0]["checks"]
    assert first["asks"]["command"] == ["/usr/bin/check", "(argument)", "(argument)"]
    assert second["asks"]["send"] == "(13 characters)"
    assert third["asks"]["path"] == "/ok?(query)"


def test_a_large_state_is_encoded_in_small_pieces() -> None:
    ids = [GuestId(uri=XEN, uuid=UUID(int=number)) for number in range(1000)]
    servers = tuple(Member(host=ip_address("10.0.0.0") + number) for number in range(1000))
    state = State(
        observed=Observed(
            settings=Settings(services=(ServiceSettings(name="web", servers=servers),))
        ),
        remembered=Remembered(guests={each: Guest(id=each, name="web1") for each in ids}),
    )
    parts = list(debug._parts(state))
    assert max(map(len, parts)) < 4096
    parsed = json.loads("".join(parts))
    assert len(parsed["remembered"]["guests"]) == 1000
    assert len(parsed["observed"]["settings"]["services"][0]["servers"]) == 1000


# --- signals, to a real process -------------------------------------------------------------------


@contextmanager
def process(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        [sys.executable, *arguments], stderr=subprocess.PIPE, stdout=subprocess.PIPE
    ) as running:
        assert running.stderr is not None
        os.set_blocking(running.stderr.fileno(), False)
        try:
            yield running
        finally:
            running.kill()


def written(running: subprocess.Popen[bytes], *patterns: str) -> str:
    """What it writes to stderr until all patterns are in it."""
    assert running.stderr is not None
    text, until = "", time.monotonic() + PATIENCE
    while not all(re.search(pattern, text) for pattern in patterns):
        assert time.monotonic() < until, f"{patterns} not within {PATIENCE} s:\n{text}"
        text += (running.stderr.read() or b"").decode()
        time.sleep(0.01)
    return text


def test_sigusr1_shows_tasks_and_threads_of_an_agent_that_goes_on(tmp_path: Path) -> None:
    config = tmp_path / "xenlb.yaml"
    config.write_text("director: {addresses: leave, sysctls: check}\nservices: {}\n")
    socket = tmp_path / "control.sock"
    paths = ["--state", f"{tmp_path}/state.json", "--last-good", f"{tmp_path}/last-good.yaml"]
    with process(
        "-m", "xenlb.cli", "--config", str(config), "--socket", str(socket), "run", *paths
    ) as agent:
        written(agent, "ready")
        for _ in range(2):
            agent.send_signal(signal.SIGUSR1)
            text = written(agent, r"Current thread 0x", r"tasks, threads: ", r"task sysctls")
            assert re.search(r"Thread 0x\w+ .*\n(  File .*\n)+", text)
            owner = re.search(r"task owner\n((?:  File .*\n)+)", text)
            assert owner is not None
            assert "in Agent.run\n" in owner[1]
            assert "in Agent._wait\n" in owner[1], "a task is shown with what it waits for"
        answer = client.call(socket, "debug-state")
        assert isinstance(answer, dict)
        assert answer["state"]["remembered"]["guests"] == []
        agent.terminate()
        assert agent.wait(PATIENCE) == 0


BUSY = """
import asyncio, time
from xenlb.agent import debug
async def main():
    debug.install(asyncio.get_running_loop())
    for number in range(8):
        asyncio.create_task(asyncio.sleep(60), name=f"probe {number}")
    await asyncio.sleep(0)
    print("begins", flush=True)
    end = time.monotonic() + 1
    while time.monotonic() < end:
        time.sleep(1)
    await asyncio.sleep(60)
asyncio.run(main())
"""


def test_sigusr1_shows_the_threads_at_once_where_the_loop_does_not_turn() -> None:
    with process("-c", BUSY) as busy:
        assert busy.stdout is not None
        busy.stdout.readline()
        busy.send_signal(signal.SIGUSR1)
        text = written(busy, r"Current thread 0x\w+ .*\n  File \"<string>\", line \d+ in main")
        text += written(busy, "task ")
        assert text.index("Current thread") < text.index("tasks, threads")
        assert "task probe 0, probe 1, probe 2, probe 3, probe 4 and 3 more\n" in text


def test_a_fatal_signal_leaves_the_stacks() -> None:
    with process("-c", BUSY) as busy:
        assert busy.stdout is not None
        busy.stdout.readline()
        busy.send_signal(signal.SIGSEGV)
        written(busy, "Fatal Python error: Segmentation fault", r"line \d+ in main")
        assert busy.wait(PATIENCE) == -signal.SIGSEGV
