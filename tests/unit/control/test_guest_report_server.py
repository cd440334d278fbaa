"""Guests' words by TCP: who is heard, and what hostile ones cannot do."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from ipaddress import ip_address
from pathlib import Path
from uuid import UUID

import pytest

from xenlb.control import guest_limits
from xenlb.control.guest_report_server import GuestReportServer
from xenlb.control.guest_secrets import HostKey, guest_secret, report_checksum

ONE = UUID("3a0f4a8e-5f05-4c8e-9df8-3dd9d9a3d0f1")
OTHER = UUID("3a0f4a8e-5f05-4c8e-9df8-3dd9d9a3d0f2")
KEY = b"k" * 32


def secret_of(uuid: UUID) -> str:
    return guest_secret(KEY, uuid)


class Heard:
    """What the agent's side was told; `answer` is what it says to it."""

    def __init__(self) -> None:
        self.words: list[tuple[UUID, str]] = []
        self.answer = True

    async def __call__(self, uuid: UUID, word: str) -> bool:
        self.words.append((uuid, word))
        await asyncio.sleep(0)
        return self.answer


def free_port(host: str = "127.0.0.1") -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def listening(
    heard: Heard, port: int, *, host: str = "127.0.0.1", patience: float = 5.0
) -> AsyncIterator[GuestReportServer]:
    it = GuestReportServer(secret_of, heard, timeout=patience, retry=(0.05, 0.1))
    it.listen((ip_address(host), port))
    task = asyncio.create_task(it.run())
    try:
        async with asyncio.timeout(5):
            while True:
                try:
                    _, writer = await asyncio.open_connection(host, port)
                    break
                except ConnectionRefusedError:
                    await asyncio.sleep(0.01)
        writer.close()
        await writer.wait_closed()
        yield it
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def say(port: int, line: str | None, *, host: str = "127.0.0.1") -> str:
    """One conversation; `line` may hold {nonce}. None: the right one of guest ONE."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        greeting = (await reader.readline()).decode()
        if not greeting:
            return ""
        name, version, nonce = greeting.split()
        assert (name, version, len(nonce)) == ("xenlb", "1", 32)
        if line is None:
            mac = report_checksum(nonce, secret=secret_of(ONE), word="leaving")
            line = f"{ONE} leaving {mac}\n"
        writer.write(line.replace("{nonce}", nonce).encode("utf-8", "surrogateescape"))
        await writer.drain()
        return (await reader.readline()).decode()
    except ConnectionError:
        return ""
    finally:
        writer.transport.abort()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("word", ["leaving", "staying"])
def test_a_report_is_received(host: str, word: str) -> None:
    async def run() -> None:
        heard, port = Heard(), free_port(host)
        async with listening(heard, port, host=host):
            reader, writer = await asyncio.open_connection(host, port)
            nonce = (await reader.readline()).decode().split()[2]
            mac = report_checksum(nonce, secret=secret_of(ONE), word=word)
            writer.write(f"{ONE} {word} {mac}\n".encode())
            assert await reader.read() == b"ok\n"
            writer.close()
            await writer.wait_closed()
        assert heard.words == [(ONE, word)]

    asyncio.run(run())


def test_an_unknown_guest_gets_no_ok(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        heard, port = Heard(), free_port()
        heard.answer = False
        async with listening(heard, port):
            assert await say(port, None) == ""
        assert heard.words == [(ONE, "leaving")]

    with caplog.at_level(logging.DEBUG):
        asyncio.run(run())
    assert f"no guest {ONE} runs here" in caplog.text


def wrong_lines() -> list[str]:
    mac = "a" * 64
    other = report_checksum("{nonce}", secret=secret_of(ONE), word="leaving")
    return [
        f"{ONE} leaving {mac}\n",  # no secret
        f"{OTHER} leaving {other}\n",
        f"{ONE} leaving\n",
        f"{ONE} leaving {mac} more\n",
        f"{ONE}  {mac}\n",
        f"{ONE} poweroff {mac}\n",
        f"{{{ONE}}} leaving {mac}\n",  # what UUID() takes, too
        f"{ONE.hex} leaving {mac}\n",
        f"{str(ONE).upper()} leaving {mac}\n",
        f"{ONE} leaving {mac}",  # no end
        "\n",
        "GET / HTTP/1.1\r\n\r\n",
        "é" * 20 + "\n",
        "\udcff\udcfe\n",
        "\0\n",
        "x" * 100_000,
        "x" * 100_000 + "\n",
    ]


@pytest.mark.parametrize("line", wrong_lines(), ids=range(len(wrong_lines())))
def test_a_report_without_proof_is_refused(line: str) -> None:
    async def run() -> None:
        heard, port = Heard(), free_port()
        async with listening(heard, port, patience=0.3):
            assert await say(port, line) == ""
            assert await say(port, None) == "ok\n"
        assert heard.words == [(ONE, "leaving")]

    asyncio.run(run())


def test_a_report_cannot_be_replayed() -> None:
    """Not for another conversation, not for another word, not for another guest."""

    async def run() -> None:
        heard, port = Heard(), free_port()
        async with listening(heard, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            nonce = (await reader.readline()).decode().split()[2]
            mac = report_checksum(nonce, secret=secret_of(ONE), word="leaving")
            writer.write(f"{ONE} leaving {mac}\n".encode())
            assert await reader.read() == b"ok\n"
            writer.close()
            await writer.wait_closed()
            assert await say(port, f"{ONE} leaving {mac}\n") == ""
            assert await say(port, f"{ONE} staying {mac}\n") == ""
            assert await say(port, f"{OTHER} leaving {mac}\n") == ""
        assert heard.words == [(ONE, "leaving")]

    asyncio.run(run())


def about(caplog: pytest.LogCaptureFixture, address: str) -> list[str]:
    return [record.message for record in caplog.records if address in record.message]


class Silent:
    """Connections that say nothing, each with its greeting."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.connections: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def more(self, number: int, host: str) -> None:
        for _ in range(number):
            connection = await asyncio.open_connection(
                "127.0.0.1", self._port, local_addr=(host, 0)
            )
            self.connections.append(connection)
            assert (await connection[0].readline()).startswith(b"xenlb 1 ")

    async def over(self) -> list[bool]:
        """Which of them the agent has ended."""
        await asyncio.sleep(0.05)
        return [it.at_eof() or it.exception() is not None for it, _ in self.connections]

    async def __aenter__(self) -> "Silent":
        return self

    async def __aexit__(self, *error: object) -> None:
        for _, writer in self.connections:
            writer.transport.abort()
        await asyncio.sleep(0)


def test_a_silent_connection_is_closed() -> None:
    async def run() -> None:
        heard, port = Heard(), free_port()
        async with listening(heard, port, patience=0.2), Silent(port) as silent:
            await silent.more(1, "127.0.0.2")
            async with asyncio.timeout(5):
                assert await silent.connections[0][0].read() == b""
            assert await say(port, None) == "ok\n"
        assert heard.words == [(ONE, "leaving")]

    asyncio.run(run())


def test_the_longest_silent_connection_of_an_address_makes_room() -> None:
    async def run() -> None:
        heard, port = Heard(), free_port()
        async with listening(heard, port, patience=30), Silent(port) as silent:
            await silent.more(1, "127.0.0.3")
            await silent.more(guest_limits.SLOTS_OF_ADDRESS + 2, "127.0.0.2")
            assert (
                await silent.over() == [False, True, True] + [False] * guest_limits.SLOTS_OF_ADDRESS
            )
            assert await say(port, None) == "ok\n"

    asyncio.run(run())


def test_silent_addresses_do_not_keep_all_slots(caplog: pytest.LogCaptureFixture) -> None:
    """Sixteen addresses that hold all places for as long as they may: the others are heard."""

    async def run() -> None:
        heard, port = Heard(), free_port()
        async with listening(heard, port, patience=30), Silent(port) as silent:
            for last in range(guest_limits.SLOTS // guest_limits.SLOTS_OF_ADDRESS):
                await silent.more(guest_limits.SLOTS_OF_ADDRESS, f"127.0.1.{last + 1}")
            assert await say(port, None) == "ok\n"
            assert await silent.over() == [True] + [False] * (guest_limits.SLOTS - 1)
        assert heard.words == [(ONE, "leaving")]

    with caplog.at_level(logging.WARNING):
        asyncio.run(run())
    assert about(caplog, "127.0.1.1 ") == [
        "the guest at 127.0.1.1 was refused: it was silent longest when another guest needed room"
    ]


def test_a_flood_of_one_address_costs_the_others_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Some thousand connections that wait in front of a guest: it is heard at its first try."""

    async def run() -> None:
        heard, port = Heard(), free_port()
        async with listening(heard, port):
            flood = []
            for _ in range(1000):
                client = socket.socket()
                client.setblocking(False)
                client.bind(("127.0.0.2", 0))
                with suppress(BlockingIOError):
                    client.connect(("127.0.0.1", port))
                flood.append(client)
            try:
                for _ in range(6):
                    assert await say(port, None) == "ok\n"
            finally:
                for client in flood:
                    client.close()
        assert heard.words == [(ONE, "leaving")] * 6

    with caplog.at_level(logging.WARNING):
        asyncio.run(run())
    assert len(about(caplog, "127.0.0.2")) == 1, "a line a minute"


def test_an_unusable_key_is_read_and_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        port = free_port()
        path = tmp_path / "key"
        path.write_bytes(KEY)
        path.chmod(0o644)
        key = HostKey(path)
        it = GuestReportServer(lambda uuid: guest_secret(key.key(), uuid), Heard())
        it.listen((ip_address("127.0.0.1"), port))
        task = asyncio.create_task(it.run())
        await asyncio.sleep(0.05)
        for _ in range(5):
            assert await say(port, None) == ""
        path.chmod(0o600)
        assert await say(port, None) == "ok\n", "it is read again once its rights are others"
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    with caplog.at_level(logging.WARNING):
        asyncio.run(run())
    said = [record.message for record in caplog.records]
    assert len(said) == 2, "of the key, and of the guest that is not heard"
    assert said[0].startswith(
        f"guests cannot report by TCP: other users than root may read {tmp_path}"
    )
    assert "this host's key cannot be used" in said[1]
    assert not any(record.exc_info for record in caplog.records), "no traceback"


def test_the_endpoint_changes_and_the_server_stops(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        heard, first, second = Heard(), free_port(), free_port()
        async with listening(heard, first) as it:
            # A conversation that has begun goes on where it is.
            reader, writer = await asyncio.open_connection("127.0.0.1", first)
            nonce = (await reader.readline()).decode().split()[2]
            it.listen((ip_address("127.0.0.1"), second))
            await asyncio.sleep(0.05)
            assert await say(second, None) == "ok\n"
            mac = report_checksum(nonce, secret=secret_of(OTHER), word="staying")
            writer.write(f"{OTHER} staying {mac}\n".encode())
            assert await reader.read() == b"ok\n"
            writer.transport.abort()
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", first)
            it.listen(None)
            await asyncio.sleep(0.05)
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", second)
            it.listen((ip_address("127.0.0.1"), first))
            await asyncio.sleep(0.05)
            assert await say(first, None) == "ok\n"
        assert heard.words == [(ONE, "leaving"), (OTHER, "staying"), (ONE, "leaving")]

    asyncio.run(run())
    assert "cannot listen" not in caplog.text


def test_a_port_in_use_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        heard = Heard()
        it = GuestReportServer(secret_of, heard, retry=(0.02, 0.05))
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            other.listen()
            port = int(other.getsockname()[1])
            it.listen((ip_address("127.0.0.1"), port))
            task = asyncio.create_task(it.run())
            await asyncio.sleep(0.2)
            assert it.problem.startswith(f"cannot listen for guests at 127.0.0.1:{port}: Address")
        async with asyncio.timeout(5):
            while it.problem:
                await asyncio.sleep(0.01)
        assert await say(port, None) == "ok\n"
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    with caplog.at_level(logging.INFO):
        asyncio.run(run())
    said = [(record.levelname, record.message.split(" at ")[0]) for record in caplog.records]
    assert said == [
        ("WARNING", "cannot listen for guests"),
        ("INFO", "listening for guests"),
    ]


@pytest.mark.parametrize("text", ["203.0.113.77", "2001:db8:77::1"])
def test_the_server_listens_at_an_address_that_does_not_exist_yet(text: str) -> None:
    async def run() -> None:
        it = GuestReportServer(secret_of, Heard())
        it.listen((ip_address(text), free_port()))
        task = asyncio.create_task(it.run())
        await asyncio.sleep(0.1)
        assert it.problem == ""
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())


def test_a_bug_with_one_guest_does_not_end_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def run() -> None:
        port = free_port()
        it = GuestReportServer(secret_of, lambda _uuid, word: bool(1 / (word == "staying")))
        it.listen((ip_address("127.0.0.1"), port))
        task = asyncio.create_task(it.run())
        await asyncio.sleep(0.05)
        assert await say(port, None) == ""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        nonce = (await reader.readline()).decode().split()[2]
        mac = report_checksum(nonce, secret=secret_of(ONE), word="staying")
        writer.write(f"{ONE} staying {mac}\n".encode())
        assert await reader.read() == b"ok\n"
        writer.transport.abort()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())
    assert "ZeroDivisionError" in caplog.text
