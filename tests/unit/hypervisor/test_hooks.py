"""The file of hook calls: created, read as it grows, truncated, replaced, removed."""

# ruff: noqa: ASYNC240 - the file is the test's own

import asyncio
import logging
import os
import stat
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from uuid import UUID

import pytest

from xenlb.hypervisor.libvirt import hooks
from xenlb.hypervisor.libvirt.hooks import HookCall, HookSource, parse_line

IDENTITY = UUID("71d91c56-6195-5fe0-9bce-7f4cabe3c5ab")
PATIENCE = 30.0  # seconds; reached only where a call is missing


def line(name: str = "one", *, operation: str = "stopped", domid: str = "7") -> bytes:
    return f"libxl\t{operation}\tend\t{IDENTITY}\t{domid}\t{name}\n".encode()


def append(path: Path, data: bytes) -> None:
    """Append as the script does; fails if there is no file."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND)
    os.write(file, data)
    os.close(file)


class Heard:
    def __init__(self) -> None:
        self.names: list[str] = []
        self.calls: list[HookCall] = []
        self.threads: set[threading.Thread] = set()

    def __call__(self, call: HookCall) -> None:
        self.calls.append(call)
        self.names.append(call.name)
        self.threads.add(threading.current_thread())

    async def until(self, *names: str) -> None:
        await patience(lambda: self.names == list(names), lambda: self.names)


async def patience(so: Callable[[], object], shown: Callable[[], object] = lambda: "") -> None:
    loop = asyncio.get_running_loop()
    until = loop.time() + PATIENCE
    while not so():
        assert loop.time() < until, shown()
        await asyncio.sleep(0.002)


@asynccontextmanager
async def running(source: HookSource) -> AsyncIterator[None]:
    task = asyncio.create_task(source.run())
    try:
        await asyncio.sleep(0)
        yield
        assert not task.done(), task.exception()
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "hooks"


def run(path: Path, test: Callable[[Heard], Awaitable[None]]) -> Heard:
    """Run a test against a source of that path; afterwards the file must be gone."""
    heard = Heard()

    async def main() -> None:
        async with running(HookSource(path, heard)):
            await test(heard)

    asyncio.run(main())
    return heard


def test_calls_are_reported_in_the_loop_s_thread(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hooks, "POLL", 3600.0)  # inotify has to do it

    async def test(heard: Heard) -> None:
        mode = path.stat().st_mode
        assert (stat.S_ISREG(mode), stat.S_IMODE(mode)) == (True, 0o600)
        append(path, line())
        await heard.until("one")
        append(path, line("two", operation="release", domid="-") + line("three"))
        await heard.until("one", "two", "three")

    heard = run(path, test)
    assert heard.threads == {threading.main_thread()}
    assert heard.calls[0] == HookCall(
        driver="libxl",
        operation="stopped",
        suboperation="end",
        uuid=IDENTITY,
        domid=7,
        name="one",
    )
    assert (heard.calls[1].operation, heard.calls[1].domid) == ("release", None)
    assert os.listdir(path.parent) == []


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"libxl",
        line()[:-1] + b"\t",
        line().replace(b"libxl", b"xen"),
        line().replace(b"stopped", b"STOPPED"),
        line().replace(b"\tend", b"\t"),
        line().replace(b"71d9", b"71D9"),
        line().replace(b"\t7\t", b"\t-7\t"),
        line().replace(b"\t7\t", b"\t\t"),
        line().replace(b"\t7\t", b"\t12345678901\t"),
        line("n" * 256),
        line("a\rb"),
        b" " + line(),
        b"\0" + line(),
        b"\xff\xfe\n",
    ],
)
def test_malformed_lines_are_not_reported(
    path: Path, bad: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    assert parse_line(bad.removesuffix(b"\n")) is None

    async def test(heard: Heard) -> None:
        append(path, bad.removesuffix(b"\n") + b"\n" + line())
        await heard.until("one")

    with caplog.at_level(logging.DEBUG, "xenlb"):
        run(path, test)
    assert [r.levelname for r in caplog.records if "not a line of" in r.message] == ["DEBUG"]


def test_a_line_written_in_pieces_is_reported_once(path: Path) -> None:
    async def test(heard: Heard) -> None:
        whole = line()
        for place in range(0, len(whole), 20):
            append(path, whole[place : place + 20])
            await asyncio.sleep(0.01)
        await heard.until("one")
        append(path, b"x" * (hooks.LONGEST + 1))  # has no end, and is not waited for
        await asyncio.sleep(0.05)
        append(path, b"\n" + line("two"))
        await heard.until("one", "two")

    run(path, test)


def test_the_file_does_not_grow(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "LARGEST", 4096)

    async def test(heard: Heard) -> None:
        wanted = []
        for number in range(400):
            wanted.append(f"guest{number}")
            append(path, line(wanted[-1]))
            if number % 10 == 0:  # the script never writes while it is emptied here
                await heard.until(*wanted)
        await heard.until(*wanted)
        assert path.stat().st_size <= 4096 + len(line("guest100")) * 10

    run(path, test)


def test_a_truncated_file_is_read_on(path: Path) -> None:
    async def test(heard: Heard) -> None:
        append(path, line("one") + line("two"))
        await heard.until("one", "two")
        os.truncate(path, 0)
        await asyncio.sleep(0.1)
        append(path, line("three"))
        await heard.until("one", "two", "three")

    run(path, test)


def test_lines_from_before_the_start_are_not_reported(path: Path) -> None:
    path.write_bytes(line("stale"))
    path.chmod(0o644)
    path.with_name(".hooks.new").write_bytes(b"half made")
    old = os.open(path, os.O_WRONLY | os.O_APPEND)

    async def test(heard: Heard) -> None:
        os.write(old, line("stale"))  # by a hook that has opened the old one
        append(path, line("new"))
        await heard.until("new")
        assert stat.S_IMODE(path.stat().st_mode) == 0o600

    run(path, test)
    os.close(old)
    assert os.listdir(path.parent) == []


@pytest.mark.parametrize("how", ["removed", "replaced", "made a folder"])
def test_a_removed_file_is_created_again(
    path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hooks, "POLL", 0.05)

    async def test(heard: Heard) -> None:
        before = path.stat().st_ino
        path.rename(path.with_name("away"))  # keeps its inode from being used again
        if how == "replaced":
            path.write_text("somebody's\n")
        if how == "made a folder":
            path.mkdir()
            await asyncio.sleep(0.2)
            path.rmdir()
        await patience(lambda: path.exists() and path.stat().st_size == 0)
        assert path.stat().st_ino != before
        monkeypatch.setattr(hooks, "POLL", 3600.0)
        await asyncio.sleep(0.2)  # from the next look on it is inotify alone again
        append(path, line())
        await heard.until("one")

    run(path, test)
    assert os.listdir(path.parent) == ["away"]


def test_the_folder_may_appear_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(hooks, "POLL", 0.02)
    path = tmp_path / "run" / "hooks"

    async def test(heard: Heard) -> None:
        await asyncio.sleep(0.2)
        assert len([r for r in caplog.records if r.levelname == "WARNING"]) == 1
        path.parent.mkdir()
        await patience(path.exists)
        append(path, line())
        await heard.until("one")

    run(path, test)


def test_without_inotify_lines_are_polled(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Exhausted(hooks.Observer):  # type: ignore[misc, name-defined]
        def schedule(self, *_: object, **__: object) -> None:
            raise OSError(24, "inotify instance limit reached")

    monkeypatch.setattr(hooks, "Observer", Exhausted)
    monkeypatch.setattr(hooks, "POLL", 0.02)

    async def test(heard: Heard) -> None:
        append(path, line())
        await heard.until("one")

    run(path, test)
    warnings = [r.message for r in caplog.records if r.levelname == "WARNING"]
    assert len(warnings) == 1
    assert "inotify instance limit reached" in warnings[0]


def test_a_replaced_file_is_not_removed(path: Path) -> None:
    async def test(_: Heard) -> None:
        path.unlink()
        path.write_text("somebody's\n")

    run(path, test)
    assert path.read_text() == "somebody's\n"


def test_a_failing_listener_leaves_nothing_behind(path: Path) -> None:
    def fail(_: HookCall) -> None:
        raise RuntimeError("no")

    async def main() -> None:
        task = asyncio.create_task(HookSource(path, fail).run())
        await asyncio.sleep(0)
        append(path, line())
        with pytest.raises(RuntimeError):
            await task

    asyncio.run(main())
    assert not path.exists()
