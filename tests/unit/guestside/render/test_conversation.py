"""hold.sh and the agent's listener, over TCP, with each of the tools that a guest may have."""

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from ipaddress import ip_address
from pathlib import Path
from uuid import UUID

import pytest

from tests.unit.guestside.shells import PLAIN_TOOLS, SCRIPT, SHELLS, Root
from xenlb.control.guest_report_server import GuestReportServer
from xenlb.control.guest_secrets import guest_secret
from xenlb.guestside.requirements.hold import NotifyVia, compile_hold, settings_text
from xenlb.ipvs.table import IPAddress
from xenlb.model.settings import DrainPolicy, Port, ServiceSettings

ONE = UUID("3a0f4a8e-5f05-4c8e-9df8-3dd9d9a3d0f1")
KEY = b"k" * 32
NO_CHECKSUM = tuple(tool for tool in PLAIN_TOOLS if tool != "sha256sum")


def secret_of(uuid: UUID) -> str:
    return guest_secret(KEY, uuid)


def free_port(host: str) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def agent(where: tuple[IPAddress, int]) -> AsyncIterator[list[tuple[UUID, str]]]:
    """What it has heard."""
    words: list[tuple[UUID, str]] = []

    def heard(uuid: UUID, word: str) -> bool:
        words.append((uuid, word))
        return True

    listener = GuestReportServer(secret_of, heard)
    listener.listen(where)
    task = asyncio.create_task(listener.run())
    await asyncio.sleep(0.05)
    try:
        yield words
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def guest(folder: Path, where: tuple[IPAddress, int], secret: str, *, timeout: float = 0) -> Root:
    """As it is rendered."""
    service = ServiceSettings(
        name="mail",
        address=ip_address("192.0.2.10"),
        ports=(Port(number=25),),
        drain=DrainPolicy(timeout=timeout),
    )
    hold = compile_hold([service], ONE, tell=NotifyVia.TCP, agent=where, secret=secret)
    root = Root(folder)
    root.conf.write_text(settings_text(hold))
    return root


async def start(
    root: Root, shell: str, verb: str, tools: tuple[str, ...] = PLAIN_TOOLS
) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *SHELLS[shell],
        str(SCRIPT),
        verb,
        env=root.environment(tools),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )


async def run(
    root: Root, shell: str, verb: str, tools: tuple[str, ...] = PLAIN_TOOLS
) -> tuple[str, float]:
    """What it said, and how long it took."""
    began = time.monotonic()
    process = await start(root, shell, verb, tools)
    async with asyncio.timeout(30):
        out, _ = await process.communicate()
    assert process.returncode == 0
    return out.decode(), time.monotonic() - began


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize(
    ("shell", "more"),
    [
        ("bash", ()),
        ("dash", ("bash",)),
        ("dash", ("nc",)),
        ("dash", ("python3",)),
        ("dash", ("perl",)),
        ("busybox", ("bash",)),
        ("busybox", ("nc",)),
        ("dash", ("openssl", "bash")),
    ],
    ids=lambda it: "+".join(it) if isinstance(it, tuple) else it,
)
def test_the_agent_hears_it(tmp_path: Path, shell: str, more: tuple[str, ...], host: str) -> None:
    tools = (*(NO_CHECKSUM if "openssl" in more else PLAIN_TOOLS), *more)

    async def test() -> None:
        where = ip_address(host), free_port(host)
        root = guest(tmp_path / "root", where, secret_of(ONE))
        async with agent(where) as words:
            said, _ = await run(root, shell, "start", tools)
            assert said == "xenlb-hold: this guest serves; the host is notified (tcp)\n"
            said, _ = await run(root, shell, "stop", tools)
            assert "could not" not in said
        assert words == [(ONE, "staying"), (ONE, "leaving")]
        assert sorted(os.listdir(root.path / "run")) == ["xenlb-hold"]

    asyncio.run(test())


def test_a_wrong_secret_and_a_dead_host_cost_three_seconds(tmp_path: Path) -> None:
    async def test() -> None:
        where = ip_address("127.0.0.1"), free_port("127.0.0.1")
        silent = socket.create_server(("127.0.0.1", 0))
        dead = ip_address("127.0.0.1"), silent.getsockname()[1]
        with silent:
            async with agent(where) as words:
                ways = (
                    ("bash", PLAIN_TOOLS),
                    ("dash", (*PLAIN_TOOLS, "bash")),
                    ("dash", (*PLAIN_TOOLS, "python3")),
                    ("busybox", (*PLAIN_TOOLS, "nc")),
                    ("dash", PLAIN_TOOLS),  # nothing that speaks TCP
                )
                roots = [
                    (guest(tmp_path / f"{n}{kind}", place, secret), shell, tools)
                    for n, (shell, tools) in enumerate(ways)
                    for kind, place, secret in (
                        ("wrong", where, "ab"),
                        ("dead", dead, secret_of(ONE)),
                    )
                ]
                done = await asyncio.gather(*(run(*each[:2], "stop", each[2]) for each in roots))
        assert words == []
        for said, took in done:
            assert "the host could not be notified that this guest leaves (tcp)" in said
            assert took < 6

    asyncio.run(test())


def test_an_agent_that_was_down_is_told_when_it_is_back(tmp_path: Path) -> None:
    """While the guest waits for its connections anyway."""

    async def test() -> None:
        where = ip_address("127.0.0.1"), free_port("127.0.0.1")
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            client = socket.create_connection(("127.0.0.1", port))
            serving, _ = server.accept()
            root = guest(tmp_path / "root", where, secret_of(ONE), timeout=60)
            with root.conf.open("a") as conf:
                conf.write(f"watch=127.0.0.1 {port}\n")
            root.real_connections()
            stopping = await start(root, "dash", "stop", (*PLAIN_TOOLS, "bash"))
            says = stopping.stdout
            assert says is not None

            async def line() -> str:
                async with asyncio.timeout(15):
                    said = await says.readline()
                return said.decode().removeprefix("xenlb-hold: ").strip()

            assert (await line()).endswith("waiting until none is left, at most 60 s")
            assert await line() == "the host could not be notified that this guest leaves (tcp)"
            async with agent(where) as words:
                assert await line() == "the host is notified now that this guest leaves"
                client.close()
                serving.close()
                assert (await line()).startswith("no connections left after ")
                assert await stopping.wait() == 0
            assert words == [(ONE, "leaving")]

    asyncio.run(test())


def command_lines() -> set[str]:
    """Of every process there is."""
    found = set()
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            found.add(place.read_bytes().decode(errors="replace"))
    return found


def test_the_secret_is_shown_to_nobody(tmp_path: Path) -> None:
    """Not on a command line, where ps(1) shows it, and not by `status`."""

    async def test() -> None:
        where = ip_address("127.0.0.1"), free_port("127.0.0.1")
        secret = secret_of(ONE)
        root = guest(tmp_path / "root", where, secret)
        seen: set[str] = set()
        async with agent(where) as words:
            stopping = asyncio.create_task(run(root, "dash", "stop", (*PLAIN_TOOLS, "nc")))
            while not stopping.done():
                seen |= command_lines()
                await asyncio.sleep(0)
            said, _ = await stopping
            assert words == [(ONE, "leaving")]
        assert not [each for each in seen if secret in each]
        status = root.run("dash", "status")
        assert secret not in said + "".join(status.lines)

    asyncio.run(test())
