"""Who has a place at the control socket, and who never keeps root out."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest

from tests.unit.control.test_server import HANDLERS, NOBODY, as_root, ask
from xenlb.control import client_limits
from xenlb.control.client_limits import ClientSlots
from xenlb.control.protocol import ControlError
from xenlb.control.server import ControlServer, Handler


def let_in(it: ClientSlots, uid: int, number: int) -> int:
    """How many of so many clients of a user get in."""
    inside = 0
    for _ in range(number):
        if not it.refusal(uid):
            it.take(uid)
            inside += 1
    return inside


def test_a_user_has_limited_slots_and_root_has_its_own() -> None:
    it = ClientSlots()
    assert let_in(it, 1000, 100) == client_limits.SLOTS_OF_USER
    assert it.refusal(1000) == "the agent has too many clients of uid 1000"
    assert let_in(it, 1001, 1) == 1
    assert sum(let_in(it, uid, 100) for uid in range(1002, 1010)) == client_limits.SLOTS - 17
    assert it.refusal(2000) == "the agent has too many clients"
    assert let_in(it, 0, 1000) == client_limits.SLOTS_OF_ROOT
    it.release(0)
    assert it.refusal(0) == ""


async def forever(request: Mapping[str, object]) -> AsyncIterator[object]:
    yield "x"
    await asyncio.Event().wait()


WITH_STREAM = {**HANDLERS, "follow": Handler(forever)}

READER = f"""
import json, os, socket, sys, time
os.setgroups([]); os.setuid({NOBODY})
inside, refused, held = 0, [], []
for _ in range(70):
    client = socket.socket(socket.AF_UNIX)
    client.connect(sys.argv[1])
    try:
        client.send(json.dumps({{"verb": "follow"}}).encode() + b"\\n")
    except OSError:
        pass
    answer = json.loads(client.makefile().readline())
    inside += "item" in answer
    refused += [answer["error"]] if "error" in answer else []
    held.append(client)
print(inside, len(refused), json.dumps(refused[0]), flush=True)
sys.stdin.read()
"""


@as_root
def test_a_reader_does_not_block_root(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents:
        if parent.stat().st_uid == os.getuid() and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o055)
    path = tmp_path / "s"

    async def main() -> str:
        async with ControlServer(path, WITH_STREAM):
            path.chmod(0o666)
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", READER, str(path),
                stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            )  # fmt: skip
            assert process.stdout is not None
            line = (await asyncio.wait_for(process.stdout.readline(), 30)).decode()
            for _ in range(12):
                assert isinstance(await ask(path, "write"), dict)
            await process.communicate(b"")
            return line

    inside, refused, error = asyncio.run(main()).split(" ", 2)
    assert int(inside) == client_limits.SLOTS_OF_USER
    assert int(refused) == 70 - client_limits.SLOTS_OF_USER
    assert json.loads(error)["busy"] is True


@pytest.fixture
def _one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_limits, "SLOTS_OF_ROOT", 1)
    monkeypatch.setattr(client_limits, "SLOTS_OF_USER", 1)


@pytest.mark.usefixtures("_one_place")
def test_the_client_waits_for_a_slot_until_its_patience_ends(tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "s"
        async with ControlServer(path, WITH_STREAM):
            _reader, writer = await asyncio.open_unix_connection(path)
            writer.write(b'{"verb": "follow"}\n')
            await _reader.readline()
            with pytest.raises(ControlError, match="too many clients") as caught:
                await ask(path, "echo", patience=0.3)
            assert "start it" not in caught.value.hint
            waiting = asyncio.create_task(ask(path, "echo"))
            await asyncio.sleep(0.3)
            assert not waiting.done()
            writer.close()
            assert isinstance(await waiting, dict)

    asyncio.run(main())


CONNECTS = """
import socket, sys, time
print("ready", flush=True)
while True:
    client = socket.socket(socket.AF_UNIX)
    client.setblocking(False)
    try:
        client.connect(sys.argv[1])
    except BlockingIOError:
        pass
    client.close()
"""


def test_a_user_who_connects_without_end_blocks_no_other_client(tmp_path: Path) -> None:
    """The queue is full all the time; commands wait in the kernel, in turn."""

    async def main() -> None:
        path = tmp_path / "s"
        async with ControlServer(path, WITH_STREAM):
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", CONNECTS, str(path), stdout=subprocess.PIPE
            )
            assert process.stdout is not None
            await process.stdout.readline()
            try:
                for _ in range(40):
                    assert isinstance(await ask(path, "echo"), dict)
            finally:
                process.kill()
                await process.communicate()

    asyncio.run(main())


def test_slots_are_released(tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "s"
        server = ControlServer(path, WITH_STREAM)
        async with server:
            for _ in range(3 * client_limits.SLOTS_OF_ROOT):
                _reader, writer = await asyncio.open_unix_connection(path)
                writer.transport.abort()
            assert isinstance(await ask(path, "echo"), dict)
            while server._slots._users:
                await asyncio.sleep(0.01)

    asyncio.run(main())
