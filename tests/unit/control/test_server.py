"""The control socket with real clients: rights, bounds, stuck clients, dead and living agents."""

import asyncio
import grp
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest

from xenlb.control import client
from xenlb.control.lock import Lock
from xenlb.control.protocol import FAILED, NOT_PERMITTED, REQUEST_LIMIT, USAGE, ControlError
from xenlb.control.server import ControlServer, Handler

NOBODY = 65534
as_root = pytest.mark.skipif(os.getuid() != 0, reason="needs root to become somebody else")


async def echo(request: Mapping[str, object]) -> object:
    return dict(request)


async def count(request: Mapping[str, object]) -> AsyncIterator[object]:
    for n in range(3):
        yield {"n": n}


async def refuse(request: Mapping[str, object]) -> object:
    raise ControlError("there is no such guest", hint="see xenlb status", status=FAILED)


async def stumble(request: Mapping[str, object]) -> object:
    raise OSError(5, "the kernel is unwell")


async def forever(request: Mapping[str, object]) -> AsyncIterator[object]:
    while True:
        yield "x" * 4096


HANDLERS = {
    "echo": Handler(echo),
    "count": Handler(count),
    "refuse": Handler(refuse),
    "stumble": Handler(stumble),
    "forever": Handler(forever),
    "write": Handler(echo, writes=True),
}


async def ask(path: Path, verb: str, patience: float = 10, **arguments: object) -> object:
    return await asyncio.to_thread(lambda: client.call(path, verb, patience=patience, **arguments))


async def raw(path: Path, data: bytes, *, half_close: bool = False) -> dict[str, object]:
    """Sends bytes as they are; the one line that comes back."""
    reader, writer = await asyncio.open_unix_connection(path, limit=1 << 24)
    writer.write(data)
    if half_close:
        writer.write_eof()
    line = await asyncio.wait_for(reader.readline(), 10)
    writer.transport.abort()
    answer: dict[str, object] = json.loads(line)
    return answer


def test_a_removed_socket_is_created_again(tmp_path: Path) -> None:
    """And its lock; until then the client says what is the matter."""
    folder = tmp_path / "run"
    path = folder / "s"

    async def back() -> None:
        async with asyncio.timeout(20):
            while not path.is_socket():
                await asyncio.sleep(0.01)

    async def main() -> None:
        async with ControlServer(path, HANDLERS, check_interval=0.05):
            path.unlink()
            await back()
            assert await ask(path, "echo")
            shutil.rmtree(folder)
            await back()
            assert await ask(path, "echo")
            with pytest.raises(ControlError, match="another xenlb manages the table"):
                Lock(path).take()
        async with ControlServer(path, HANDLERS, check_interval=3600.0):
            path.unlink()
            with pytest.raises(ControlError) as caught:
                await ask(path, "echo")
            assert f"it runs (pid {os.getpid()}), but {path} was removed" in str(caught.value)
        with pytest.raises(ControlError, match="there is no"):
            await ask(path, "echo")

    asyncio.run(main())


def test_an_expired_request_is_refused(tmp_path: Path) -> None:
    """As by an agent that hung; who only reads does no harm."""

    async def main() -> None:
        async with ControlServer(tmp_path / "s", HANDLERS):
            late = {"until": 1.0}
            answer = await raw(
                tmp_path / "s", json.dumps({"verb": "write", **late}).encode() + b"\n"
            )
            assert "the request write has expired" in str(answer["error"])
            answer = await raw(
                tmp_path / "s", json.dumps({"verb": "echo", **late}).encode() + b"\n"
            )
            assert "ok" in answer

    asyncio.run(main())


def test_one_answer(tmp_path: Path) -> None:
    async def main() -> None:
        async with ControlServer(tmp_path / "s", HANDLERS):
            answer = await ask(tmp_path / "s", "echo", guest="mail1", of=[1, {"a": None}])
            assert answer == {
                "verb": "echo",
                "guest": "mail1",
                "of": [1, {"a": None}],
                "by": "root" if os.getuid() == 0 else f"uid {os.getuid()}",
            }

    asyncio.run(main())


def test_items_arrive_as_they_are_made(tmp_path: Path) -> None:
    async def main() -> None:
        async with ControlServer(tmp_path / "s", HANDLERS):
            items = await asyncio.to_thread(
                lambda: list(client.stream(tmp_path / "s", "count", patience=5))
            )
            assert items == [{"n": 0}, {"n": 1}, {"n": 2}]

    asyncio.run(main())


@pytest.mark.parametrize(
    ("verb", "message", "status"),
    [
        ("refuse", "there is no such guest", FAILED),
        ("stumble", "the agent failed to answer", FAILED),
        ("nonsense", "does not know the request 'nonsense'", USAGE),
    ],
)
def test_errors_reach_the_client(tmp_path: Path, verb: str, message: str, status: int) -> None:
    async def main() -> None:
        async with ControlServer(tmp_path / "s", HANDLERS):
            with pytest.raises(ControlError, match=message) as caught:
                await ask(tmp_path / "s", verb)
            assert caught.value.status == status
            assert caught.value.hint
            assert await ask(tmp_path / "s", "echo"), "the server lives on"

    asyncio.run(main())


@pytest.mark.parametrize(
    "line", [b"{\n", b"[]\n", b"\n", b'{"verb": 7}\n', b"\xff\n", b"[" * 60000]
)
def test_malformed_requests(tmp_path: Path, line: bytes) -> None:
    async def main() -> None:
        async with ControlServer(tmp_path / "s", HANDLERS):
            answer = await raw(tmp_path / "s", line, half_close=True)
            assert "not understood" in str(answer["error"])

    asyncio.run(main())


def test_request_too_long(tmp_path: Path) -> None:
    async def main() -> None:
        async with ControlServer(tmp_path / "s", HANDLERS):
            answer = await raw(tmp_path / "s", b"x" * (REQUEST_LIMIT + 4096))
            assert "longer than 65536 bytes" in str(answer["error"])
            with pytest.raises(ControlError, match="longer than 65536 bytes"):
                await ask(tmp_path / "s", "echo", text="x" * 4 * REQUEST_LIMIT)

    asyncio.run(main())


def test_a_client_that_closes_its_side_after_asking_is_answered(tmp_path: Path) -> None:
    async def main() -> None:
        async with ControlServer(tmp_path / "s", HANDLERS):
            answer = await raw(tmp_path / "s", b'{"verb": "echo"}', half_close=True)
            assert "ok" in answer

    asyncio.run(main())


def test_stuck_clients_do_not_delay_others(tmp_path: Path) -> None:
    """Some say nothing, some ask for much and read nothing: others are served, they are cut."""

    async def main() -> None:
        async with ControlServer(tmp_path / "s", HANDLERS, patience=0.5):
            silent = [await asyncio.open_unix_connection(tmp_path / "s") for _ in range(20)]
            deaf = []
            for _ in range(20):
                connection = socket.socket(socket.AF_UNIX)
                connection.connect(os.fspath(tmp_path / "s"))
                connection.send(b'{"verb": "forever"}\n')
                deaf.append(connection)
            for _ in range(10):
                assert await ask(tmp_path / "s", "echo")
            for reader, writer in silent:
                assert await asyncio.wait_for(reader.read(), 10) == b"", "cut off"
                writer.close()
            await asyncio.sleep(1.0)  # longer than the server's patience
            for connection in deaf:
                await asyncio.to_thread(_read_to_end, connection)

    asyncio.run(main())


def _read_to_end(connection: socket.socket) -> None:
    connection.settimeout(10)
    with connection:
        while connection.recv(1 << 20):
            pass


def test_a_stream_ends_when_its_client_goes(tmp_path: Path) -> None:
    async def main() -> None:
        ended = asyncio.Event()

        async def wait(request: Mapping[str, object]) -> AsyncIterator[object]:
            try:
                yield "begun"
                await asyncio.Event().wait()
            finally:
                ended.set()

        async with ControlServer(tmp_path / "s", {"wait": Handler(wait)}):
            reader, writer = await asyncio.open_unix_connection(tmp_path / "s")
            writer.write(b'{"verb": "wait"}\n')
            assert await reader.readline() == b'{"item": "begun"}\n'
            writer.close()
            await asyncio.wait_for(ended.wait(), 5)

    asyncio.run(main())


def test_leaving_ends_streams_and_removes_the_socket(tmp_path: Path) -> None:
    async def wait(request: Mapping[str, object]) -> AsyncIterator[object]:
        yield "begun"
        await asyncio.Event().wait()

    async def main() -> None:
        async with ControlServer(tmp_path / "s", {"wait": Handler(wait)}):
            reader, writer = await asyncio.open_unix_connection(tmp_path / "s")
            writer.write(b'{"verb": "wait"}\n')
            await reader.readline()
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()
        assert not (tmp_path / "s").exists()

    asyncio.run(main())


def test_a_big_answer_arrives_whole_and_lets_others_in(tmp_path: Path) -> None:
    servers = [{"guest": f"g{n}", "weight": n} for n in range(10)]
    big = {"services": [{"name": f"s{n}", "servers": servers} for n in range(3000)], "empty": []}
    order: list[str] = []

    async def give(request: Mapping[str, object]) -> object:
        return big

    async def main() -> None:
        async with ControlServer(tmp_path / "s", {"big": Handler(give), "echo": Handler(echo)}):
            reader, writer = await asyncio.open_unix_connection(tmp_path / "s", limit=1 << 26)
            writer.write(b'{"verb": "big"}\n')
            await reader.read(1)  # it is on its way, and not taken further
            assert await ask(tmp_path / "s", "echo")
            order.append("small")
            rest = await reader.readline()
            order.append("big")
            assert json.loads(b"{" + rest) == {"ok": big}
            writer.close()

    asyncio.run(main())
    assert order == ["small", "big"]


def test_permissions_of_the_socket(tmp_path: Path) -> None:
    """The group that may read where there is one, else its owner alone."""
    group = _own_group()

    async def main(name: str) -> int:
        async with ControlServer(tmp_path / "s", HANDLERS, group=name):
            found = (tmp_path / "s").stat()
            if name == group:
                assert found.st_gid == os.getgid()
            return stat.S_IMODE(found.st_mode)

    assert asyncio.run(main(group)) == 0o660
    assert asyncio.run(main("no-such-group-here")) == 0o600


def _own_group() -> str:
    return grp.getgrgid(os.getgid()).gr_name


@as_root
def test_the_group_reads_and_only_root_writes(tmp_path: Path) -> None:
    """The same requests as root, and as somebody whose only right is the group's."""
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents:
        if parent.stat().st_uid == os.getuid() and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o055)
    ask_as = f"""
import json, os, sys
sys.path.insert(0, {os.getcwd()!r})
from pathlib import Path
from xenlb.control import client
from xenlb.control.protocol import ControlError
os.setgroups([]); os.setgid(int(sys.argv[1])); os.setuid(int(sys.argv[2]))
for verb in ("echo", "write"):
    try:
        print(verb, client.call(Path({os.fspath(tmp_path / "s")!r}), verb, by="alice (sudo)")["by"])
    except ControlError as error:
        print(verb, error.status, error.message)
"""

    async def main() -> list[str]:
        said = []
        async with ControlServer(tmp_path / "s", HANDLERS, group=_own_group()):
            for gid, uid in ((os.getgid(), 0), (os.getgid(), NOBODY), (NOBODY, NOBODY)):
                process = await asyncio.create_subprocess_exec(
                    sys.executable, "-c", ask_as, str(gid), str(uid), stdout=subprocess.PIPE
                )
                out, _ = await asyncio.wait_for(process.communicate(), 30)
                said.append(out.decode())
        return said

    root, member, stranger = asyncio.run(main())
    assert root.splitlines() == ["echo alice (sudo)", "write alice (sudo)"]
    assert member.splitlines() == [
        f"echo uid {NOBODY}",
        f"write {NOT_PERMITTED} only root may write",
    ]
    assert stranger.splitlines() == [
        f"echo {NOT_PERMITTED} not permitted to use {tmp_path / 's'}",
        f"write {NOT_PERMITTED} not permitted to use {tmp_path / 's'}",
    ]


AGENT = """
import asyncio, sys
from pathlib import Path
from xenlb.control.server import ControlServer, Handler
async def pid(request):
    return "first"
async def main():
    async with ControlServer(Path(sys.argv[1]), {"who": Handler(pid)}):
        print("ready", flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""


def test_a_second_agent_is_refused_and_a_killed_one_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"

    async def second() -> str:
        async with ControlServer(path, HANDLERS):
            answer = await ask(path, "echo")
            return str(answer)

    first = subprocess.Popen([sys.executable, "-c", AGENT, path], stdout=subprocess.PIPE)
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == b"ready\n"
        with pytest.raises(ControlError, match=f"another xenlb manages the table, pid {first.pid}"):
            asyncio.run(second())
        assert client.call(path, "who") == "first", "the refused one broke nothing"
    finally:
        first.send_signal(signal.SIGKILL)
        first.communicate()
    assert path.is_socket(), "a killed agent leaves its socket"
    assert "echo" in asyncio.run(second())


def test_the_socket_of_another_server_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "s"

    async def main() -> None:
        async with ControlServer(path, HANDLERS):
            path.unlink()
            path.write_text("not ours")

    asyncio.run(main())
    assert path.read_text() == "not ours"
